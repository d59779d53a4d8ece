"""Times of products: there for every option, told once, and those of what is really run."""

from __future__ import annotations

import torch

from train.compress import timing
from train.compress.options import NAMES, option
from train.compress.store import Store
from train.compress.timing import Times, seconds, seconds_by_tokens


def test_every_option_takes_time_and_is_timed_once():
    first = {name: seconds(option(name), 64, 128) for name in NAMES}
    assert all(0 < each < 0.1 for times in first.values() for each in times)
    assert first == {name: seconds(option(name), 64, 128) for name in NAMES}


def test_what_has_no_kernel_takes_what_its_widened_form_takes():
    for name, as_name in (("2:4-wanda", "keep"), ("rank50", "keep"), ("int6", "int8-g64"), ("int3", "int8-g64"), ("int4", "int4-rtn")):
        assert seconds(option(name), 64, 128) == seconds(option(as_name), 64, 128)


def test_more_tokens_take_longer():
    torch.manual_seed(0)
    few, many = seconds_by_tokens(option("keep"), 256, 512, (1, 256))
    assert few < many


def test_a_search_that_goes_on_sees_the_times_that_it_began_with(tmp_path, monkeypatch):
    first = Times(Store(tmp_path))(option("int8"), 64, 128)
    assert first == seconds(option("int8"), 64, 128)[0]
    monkeypatch.setattr(timing, "seconds", lambda *_: (first + 1, 0.0, 0.0))
    assert Times(Store(tmp_path))(option("int8"), 64, 128) == first
    assert Times(Store(tmp_path))(option("int8"), 128, 64) == first + 1
    monkeypatch.setattr(timing, "machine", lambda: ["another", "1"])
    assert Times(Store(tmp_path))(option("int8"), 64, 128) == first + 1
