"""A table of training runs: what a law is fitted to.

Promise: every row is understood or the file is refused in one line that names the row; tokens are taken as given or from FLOPs as
C = 6·N·D, and which of the two is said. Price: none. Source: the columns of the tables that scaling studies publish.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Runs", "read_runs"]

Floats = NDArray[np.float64]

_NAMES = {
    "parameters": ("parameters", "params", "param", "n", "modelsize", "numparameters", "numparams", "modelparameters", "modelparams"),
    "tokens": ("tokens", "d", "trainingtokens", "traintokens", "numtokens", "datasetsize", "tokensseen", "datatokens"),
    "flops": ("flops", "flop", "c", "compute", "trainingflop", "trainingflops", "trainflops", "totalflops"),
    "unique": ("uniquetokens", "unique", "u", "uniquedata"),
    "loss": ("loss", "testloss", "valloss", "validationloss", "finalloss", "evalloss", "heldoutloss"),
}
LEAST_RUNS = 6
"""A law of five coefficients and something to be wrong about."""
LEAST_SPREAD = 3.5  # between the least and the most; a sweep has four
"""Factor between the largest and the smallest N (or D) of a table that can tell what N (or D) does."""
LINE = 0.99
"""Correlation of log N and log D of a table that cannot tell one from the other."""
LEAST_COUNT = 10_000
"""A table whose largest model, or longest run, is smaller has them in other units."""
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0


@dataclass(frozen=True, slots=True)
class Runs:
    """n training runs; every array has shape [n]."""

    parameters: Floats
    """N, as the table counts it."""
    tokens: Floats
    """D, repetitions included."""
    loss: Floats
    """Final loss, in whatever unit the table has it (nats per token, as a rule)."""
    unique: Floats | None = None
    """Different tokens among D, where the table says so; such a table can have a law of repeated data."""
    lines: tuple[int, ...] = ()
    """Line of each run in its file, for naming it."""
    tokens_from: str = "tokens"
    """The column that tokens come from: `tokens`, or `flops` as C / 6N."""

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def flops(self) -> Floats:
        """Training compute, 6·N·D."""
        return FLOPS_PER_PARAMETER_AND_TOKEN * self.parameters * self.tokens

    @property
    def thin(self) -> tuple[str, ...]:
        """Which of parameters and tokens differ too little for a law to say anything of them."""
        return tuple(what for what in ("parameters", "tokens") if np.ptp(np.log(getattr(self, what))) < np.log(LEAST_SPREAD))

    @property
    def along_a_line(self) -> bool:
        """Whether parameters and tokens grow together, so that nothing tells their terms apart."""
        n, d = (each - each.mean() for each in (np.log(self.parameters), np.log(self.tokens)))
        return not self.thin and abs(float(n @ d)) > LINE * float(np.sqrt((n @ n) * (d @ d)))

    def subset(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Runs:
        """The runs that a mask or an index (repetitions allowed) chooses."""
        where = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
        return Runs(
            self.parameters[where],
            self.tokens[where],
            self.loss[where],
            None if self.unique is None else self.unique[where],
            tuple(self.lines[i] for i in where) if self.lines else (),
            self.tokens_from,
        )


def read_runs(path: str) -> Runs:
    """The runs of a csv file with columns parameters, tokens or flops, loss (and, optional, unique_tokens).

    Raises ValueError, in one line, for a file that is not there or no such table, and for a cell that is no positive number.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give a csv with columns parameters, tokens or flops, loss") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a csv: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    reader = csv.reader(io.StringIO(text), delimiter=_delimiter(text))
    try:
        header = next(reader, [])
        columns = _columns(path, header)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: cannot be read as a csv: {error}") from None
    if len(rows) < LEAST_RUNS:
        raise ValueError(f"{path}: holds {len(rows)} runs; a law needs at least {LEAST_RUNS}")
    found = {name: np.array([_number(path, header[at], line, row, at) for line, row in rows]) for name, at in columns.items()}
    return _runs(path, found, tuple(line for line, _ in rows))


def _delimiter(text: str) -> str:
    """What separates the header's cells: commas, or, in tables from elsewhere, semicolons or tabs.

    >>> _delimiter("parameters;tokens;loss")
    ';'
    """
    return max(",;\t", key=text.lstrip().partition("\n")[0].count)


def _columns(path: str, header: list[str]) -> dict[str, int]:
    """Where each quantity stands; ValueError naming what is missing."""
    plain = [re.sub(r"[^a-z]", "", name.lower()) for name in header]
    found = {}
    for what, names in _NAMES.items():
        at = [plain.index(name) for name in names if name in plain]
        if at:
            found[what] = at[0]
    missing = [what for what in ("parameters", "loss") if what not in found]
    if not {"tokens", "flops"} & set(found):
        missing.insert(len(missing) and missing[0] == "parameters", "tokens or flops")
    if missing:
        has = ", ".join(name.strip() or "(no name)" for name in header[:12]) or "nothing"
        raise ValueError(f"{path}: has no column {' and none '.join(missing)}; its header is: {has}")
    if "tokens" in found:
        found.pop("flops", None)
    return found


def _number(path: str, column: str, line: int, row: list[str], at: int) -> float:
    raw = row[at].strip().replace("_", "") if at < len(row) else ""
    try:
        value = float(raw)
    except ValueError:
        shown = raw if len(raw) <= 40 else f"{raw[:40]}…"
        raise ValueError(f"{path}: line {line}: {column} is {shown!r}; must be a number, such as 1500000 or 1.5e6") from None
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{path}: line {line}: {column} is {raw}; must be above 0 and finite")
    return value


def _runs(path: str, found: Mapping[str, Floats], lines: tuple[int, ...]) -> Runs:
    parameters = found["parameters"]
    tokens = found["tokens"] if "tokens" in found else found["flops"] / (FLOPS_PER_PARAMETER_AND_TOKEN * parameters)
    unique = found.get("unique")
    for what, most in (("parameters", parameters.max()), ("tokens", tokens.max())):
        if 1 <= most < LEAST_COUNT:
            raise ValueError(f"{path}: no run has more than {most:g} {what}; must be counts, not millions or billions")
    _check(path, lines, parameters < 1, lambda i: f"parameters is {parameters[i]:g}; must be a count, not billions")
    _check(
        path,
        lines,
        tokens < 1,
        lambda i: f"{tokens[i]:g} tokens (flops / 6 / parameters); are parameters and flops counted, not in billions?",
    )
    if unique is not None:
        _check(path, lines, unique > tokens, lambda i: f"unique_tokens {unique[i]:g} exceed the tokens, {tokens[i]:g}")
    if len(set(zip(parameters.tolist(), tokens.tolist(), strict=True))) < LEAST_RUNS:
        raise ValueError(f"{path}: holds fewer than {LEAST_RUNS} different pairs of parameters and tokens; a law needs that many")
    return Runs(parameters, tokens, found["loss"], unique, lines, "tokens" if "tokens" in found else "flops")


def _check(path: str, lines: tuple[int, ...], wrong: NDArray[np.bool_], say: Callable[[int], str]) -> None:
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(f"{path}: line {lines[first]}: {say(first)}")
