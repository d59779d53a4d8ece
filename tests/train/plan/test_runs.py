"""Tables of runs: what is understood, and how everything else is refused."""

import doctest
import re

import numpy as np
import pytest

from train.plan import runs as runs_module
from train.plan.runs import Runs, read_runs

GOOD = [(10**6 * k, 10**8 * j, 3.0 + 1 / k + 1 / j) for k in (1, 2, 4) for j in (1, 3, 9)]


def table(tmp_path, header, rows):
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def test_doctests():
    assert doctest.testmod(runs_module).failed == 0


def test_tokens_come_as_they_are_or_from_flops(tmp_path):
    given = read_runs(table(tmp_path, "parameters,tokens,loss", GOOD))
    derived = read_runs(table(tmp_path, "loss,Model Size,Training FLOP", [(loss, n, 6.0 * n * d) for n, d, loss in GOOD]))
    np.testing.assert_allclose(derived.tokens, given.tokens)
    assert (given.tokens_from, derived.tokens_from) == ("tokens", "flops")
    assert given.lines == tuple(range(2, 11))
    np.testing.assert_allclose(given.flops, 6 * given.parameters * given.tokens)


def test_given_tokens_win_over_flops_and_blank_lines_are_passed_over(tmp_path):
    path = table(tmp_path, "flops,tokens,parameters,loss,note", [(1e9, d, n, loss, "x") for n, d, loss in GOOD])
    with open(path, "a") as file:
        file.write("\n,,,,\n")
    runs = read_runs(path)
    assert len(runs) == len(GOOD)
    assert runs.tokens_from == "tokens"


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_semicolons_and_tabs_are_understood(tmp_path, delimiter):
    path = table(tmp_path, "parameters,tokens,loss", GOOD)
    expected = read_runs(path)
    with open(path) as file:
        text = file.read().replace(",", delimiter)
    with open(path, "w") as file:
        file.write(text)
    np.testing.assert_array_equal(read_runs(path).loss, expected.loss)


def test_a_subset_is_of_all_columns(tmp_path):
    runs = read_runs(table(tmp_path, "parameters,tokens,unique_tokens,loss", [(n, d, d / 2, loss) for n, d, loss in GOOD]))
    part = runs.subset(runs.loss > np.median(runs.loss))
    assert 0 < len(part) < len(runs)
    np.testing.assert_allclose(part.unique * 2, part.tokens)
    assert [GOOD[line - 2][2] for line in part.lines] == part.loss.tolist()
    assert runs.subset(np.array([3, 3])).loss.tolist() == [runs.loss[3]] * 2


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        ("parameters,loss", GOOD, "no column tokens or flops; its header is: parameters, loss"),
        ("tokens,flops", GOOD, "no column parameters and none loss"),
        ("", [], "no column parameters and none tokens or flops and none loss"),
        ("parameters,tokens,loss", GOOD[:5], "holds 5 runs; a law needs at least 6"),
        ("parameters,tokens,loss", [*GOOD, ("1e6", "many", 3)], "line 11: tokens is 'many'; must be a number"),
        (
            "parameters,tokens,loss",
            [*GOOD, ('"1,000,000"', 1e8, 3)],
            "line 11: parameters is '1,000,000'; must be a number, such as 1500000",
        ),
        ("parameters,tokens,loss", [*GOOD, ("1" * 200_000, 1e8, 3)], "line 11: cannot be read as a csv: field larger than"),
        ("parameters,tokens,loss", [*GOOD, ("x" * 99, 1e8, 3)], f"line 11: parameters is '{'x' * 40}…'"),
        (
            "parameters,tokens,loss",
            [(n / 1e6, d / 1e6, x) for n, d, x in GOOD],
            "no run has more than 4 parameters; must be counts, not millions",
        ),
        ("parameters,tokens,loss", [(n, d / 1e6, x) for n, d, x in GOOD], "no run has more than 900 tokens; must be counts"),
        ("parameters,tokens,loss", [*GOOD, (1e6, 1e8)], "line 11: loss is ''; must be a number"),
        ("parameters,tokens,loss", [*GOOD, (1e6, 1e8, "nan")], "line 11: loss is nan; must be above 0 and finite"),
        ("parameters,tokens,loss", [*GOOD, (1e6, -1, 3)], "line 11: tokens is -1; must be above 0"),
        ("parameters,tokens,loss", [*GOOD, (0.07, 1.4, 3)], "line 11: parameters is 0.07; must be a count, not billions"),
        ("parameters,flops,loss", [(n, 5.0, loss) for n, _, loss in GOOD], "are parameters and flops counted, not in billions?"),
        ("parameters,tokens,unique_tokens,loss", [(n, d, 2 * d, loss) for n, d, loss in GOOD], "line 2: unique_tokens 2e+08 exceed"),
        ("parameters,tokens,loss", GOOD[:3] * 4, "fewer than 6 different pairs"),
    ],
)
def test_what_is_no_table_of_runs_is_refused_in_one_line(tmp_path, header, rows, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        read_runs(table(tmp_path, header, rows))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_runs(str(tmp_path / "none.csv"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_runs(str(tmp_path / "binary"))
    with pytest.raises(ValueError, match="cannot be read"):
        read_runs(str(tmp_path))


def test_what_a_table_cannot_tell():
    n, d, loss = (np.array(column, dtype=float) for column in zip(*GOOD, strict=True))
    assert (Runs(n, d, loss).thin, Runs(n, d, loss).along_a_line) == ((), False)
    assert Runs(n**0.9, d, loss).thin == ("parameters",)
    assert Runs(n, np.full_like(d, 1e9), loss).thin == ("tokens",)
    assert Runs(n, 20 * n, loss).along_a_line
    assert Runs(n, 1e18 / n, loss).along_a_line, "runs of one compute"
