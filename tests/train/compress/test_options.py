"""Options by name: what they say, what they cost, and what is no option."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.compress.options import NAMES, fitting_group, has_kernel, kept_per_row, option, parse_options, rank, stored_bytes

SIZES = st.integers(4, 5000)


@pytest.mark.parametrize("name", NAMES)
def test_named_options_are_options(name: str) -> None:
    assert option(name).name == name
    assert stored_bytes(option(name), 512, 512, 2) <= 512 * 512 * 2 * 9 / 16 + 16 or name == "keep"


@given(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
def test_names_parse_in_their_order(names: list[str]) -> None:
    assert [each.name for each in parse_options(" , ".join([*names, names[0]]))] == names


@pytest.mark.parametrize("text", ["int9", "int1", "sparse100-wanda", "sparse0-wanda", "sparse50", "2:4", "rank0", "rank", "int4-", "KEEP"])
def test_other_names_are_refused_with_the_names(text: str) -> None:
    with pytest.raises(ValueError, match=r"options: no option '.*'; use some of keep, int8"):
        parse_options(f"int8,{text}")


@pytest.mark.parametrize("name", ["int4-g1", "int4-g16", "int8-g48", "int4-rtn-g100"])
def test_groups_that_no_kernel_knows_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"has groups of \d+ columns; use 32, 64, 128 and so on, or 0"):
        option(name)


def test_no_option_is_refused() -> None:
    with pytest.raises(ValueError, match="options: none given"):
        parse_options(" , ")


def test_what_a_name_says() -> None:
    assert [option(name).method for name in ("int8", "int8-gptq", "int4", "int4-rtn", "int3-g32")] == ["rtn", "gptq", "gptq", "rtn", "gptq"]
    assert [option(name).group_size for name in ("int8", "int8-g64", "int4", "int4-g0", "int5-rtn-g128")] == [0, 64, 64, 0, 128]
    assert option("sparse90-wanda").density == pytest.approx(0.1)
    assert option("2:4-magnitude").pattern == "2:4"
    assert [name for name in ("keep", "int8", "int4", "int6", "2:4-wanda", "rank50") if has_kernel(option(name))] == [
        "keep",
        "int8",
        "int4",
    ]


@given(st.sampled_from([16, 32, 64, 128]), SIZES)
def test_groups_fit_the_row(group: int, columns: int) -> None:
    fitting = fitting_group(group, columns)
    assert fitting == 0 or (columns % fitting == 0 and 16 <= fitting <= group and fitting < columns)
    if columns % group == 0 and columns > group:
        assert fitting == group


@given(SIZES, SIZES, st.integers(2, 7))
def test_more_bits_and_smaller_groups_take_more(rows: int, columns: int, bits: int) -> None:
    sizes = [stored_bytes(option(f"int{b}-g{g}"), rows, columns, 2) for b, g in ((bits, 128), (bits, 32), (bits + 1, 32))]
    assert sizes == sorted(sizes)


@given(SIZES, SIZES, st.integers(1, 99))
def test_shares_are_kept(rows: int, columns: int, percent: int) -> None:
    assert rank(option(f"rank{percent}"), rows, columns) * (rows + columns) <= max(percent / 100 * rows * columns, rows + columns)
    kept = kept_per_row(option(f"sparse{percent}-wanda"), columns)
    assert abs(kept - columns * (100 - percent) / 100) <= 1
    assert kept_per_row(option("2:4-wanda"), columns) in (columns // 2, -(-columns // 2), columns // 2 + 1)


def test_it_is_pure() -> None:
    code = "import sys, train.compress.options; print('torch' in sys.modules, 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False False\n"
