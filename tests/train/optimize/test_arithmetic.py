from __future__ import annotations

import pytest
import torch

from train.optimize.arithmetic import arithmetic_of_all, arithmetic_on, use_bfloat16

CPU = torch.device("cpu")


def test_what_is_asked_for_is_what_is_done():
    assert [arithmetic_on(CPU, precision) for precision in ("bfloat16", "float32")] == ["bfloat16", "float32"]
    assert arithmetic_on(torch.device("cuda"), "float16") == "float16"
    assert arithmetic_of_all(CPU, "float32") == "float32"


def test_auto_is_what_pays_on_this_processor():
    assert arithmetic_on(CPU, "auto") == ("bfloat16" if use_bfloat16("auto", CPU) else "float32")


def test_float16_is_refused_on_a_processor_in_one_line():
    with pytest.raises(ValueError, match="precision: float16 needs a GPU; on a processor give bfloat16, float32 or auto"):
        arithmetic_on(CPU, "float16")
