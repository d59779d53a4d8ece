"""Schemes by module, as compressed-tensors assigns them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.quantised import Quantisation, Scheme

NAMES = ["lm_head", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"]
TARGETS = ["Linear", "re:.*mlp.*", "re:model.layers.0.*", "re:.*q_proj$", *NAMES]
CHANNEL8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
GROUP4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": True}


def config(*groups: tuple[dict[str, Any], list[str]], ignore: list[str] | None = None) -> dict[str, Any]:
    described = {f"group_{i}": {"weights": weights, "targets": targets} for i, (weights, targets) in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": described, "ignore": ignore}


@given(
    first=st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3, unique=True),
    second=st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3, unique=True),
    ignore=st.lists(st.sampled_from(["lm_head", "re:.*layers.1.*"]), max_size=2),
)
def test_schemes_are_those_the_library_assigns(first: list[str], second: list[str], ignore: list[str]) -> None:
    import torch
    from compressed_tensors.utils.match import match_name, match_targets

    second = [target for target in second if target not in first]
    ours = Quantisation.of(config((CHANNEL8, first), (GROUP4, second), ignore=ignore), "x")
    schemes = dict.fromkeys(first, Scheme(8)) | dict.fromkeys(second, Scheme(4, 64))
    for name in NAMES:
        matches = match_targets(name, torch.nn.Linear(1, 1), [*first, *second])
        ignored = any(match_name(name, target) for target in ignore)
        assert ours.scheme(name) == (None if ignored or not matches else schemes[matches[0]])


def test_nothing_said_is_nothing_quantised() -> None:
    assert Quantisation.of(None, "x").scheme("lm_head") is None


@pytest.mark.parametrize(
    "change",
    [
        {"num_bits": 1},
        {"type": "float"},
        {"symmetric": False},
        {"strategy": "tensor"},
        {"strategy": "group", "group_size": None},
        {"strategy": "block"},
    ],
)
def test_what_is_not_run_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model: x has \d-bit weights .*; the engine runs int8 and int4 weights"):
        Quantisation.of(config((CHANNEL8 | change, ["Linear"])), "x")


def test_quantised_activations_and_other_formats_are_refused() -> None:
    good = config((CHANNEL8, ["Linear"]))
    for change in ({"format": "naive-quantized"}, {"input_activations": {"num_bits": 8}}):
        bad = good | {"config_groups": {"a": good["config_groups"]["group_0"] | change}}
        with pytest.raises(ValueError, match="with activations as they are"):
            Quantisation.of(bad, "x")
    with pytest.raises(ValueError, match="quantised by 'awq'"):
        Quantisation.of(good | {"quant_method": "awq"}, "x")


def test_bits_go_with_the_format() -> None:
    for bits in range(2, 9):
        assert Quantisation.of(config((GROUP4 | {"num_bits": bits}, ["Linear"])), "x").scheme("a") == Scheme(bits, 64)
    plain = config((CHANNEL8, ["Linear"])) | {"format": "int-quantized"}
    assert Quantisation.of(plain, "x").scheme("a") == Scheme(8)
    with pytest.raises(ValueError, match="x has 4-bit weights"):
        Quantisation.of(config((GROUP4, ["Linear"])) | {"format": "int-quantized"}, "x")


def test_it_is_pure() -> None:
    code = "import sys, serve.engine.quantised; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
