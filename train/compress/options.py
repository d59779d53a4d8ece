"""What may become of a weight matrix: the options by name, and the bytes that each takes on disk.

Promise: a name says all of an option; `stored_bytes` is to the byte what the tensors of `candidates.degraded` hold and what
`export` writes (a file's header aside). Price: none, no tensor is read.
Sources: GPTQ (arXiv 2210.17323), SparseGPT (2301.00774), Wanda (2306.11695), SVD-LLM (2403.07378); LLM.int8() (2208.07339) for
int8 by rows; compressed-tensors for how integers are packed.

Names: `keep`; `intB`, `intB-rtn`, `intB-gptq` with B of 2 to 8 bits (8: by rows and round-to-nearest unless said otherwise, fewer: GPTQ
in groups of 64 columns), each with `-gG` for groups of G columns (0: by rows); `sparseP-METHOD` with P % of zeros and `2:4-METHOD`, METHOD
one of magnitude, wanda, sparsegpt; `rankP`, two factors with P % of the matrix's numbers. `drop-block`, `drop-attention` and `drop-mlp` are
of all matrices of a block, or of a part of it, together (see drops.py): zeros, stored as integers of 2 bits where they are stored at all.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = [
    "NAMES",
    "Kind",
    "Method",
    "Option",
    "fitting_group",
    "has_kernel",
    "kept_per_row",
    "option",
    "parse_options",
    "rank",
    "stored_bytes",
]

Kind = Literal["keep", "int", "sparse", "lowrank"]
Method = Literal["", "rtn", "gptq", "magnitude", "wanda", "sparsegpt", "svd", "zero"]

NAMES = (
    "keep",
    "int8",
    "int8-gptq",
    "int6",
    "int5",
    "int4",
    "int4-rtn",
    "int4-g32",
    "int4-g128",
    "int3",
    "sparse50-magnitude",
    "sparse50-wanda",
    "sparse50-sparsegpt",
    "sparse75-sparsegpt",
    "2:4-magnitude",
    "2:4-wanda",
    "2:4-sparsegpt",
    "rank50",
    "drop-block",
    "drop-attention",
    "drop-mlp",
)
"""The options that are named in messages; the module's docstring says which others there are."""

_GROUP = 64
_SHAPE_BYTES = 2 * 8  # the matrix's shape, two int64
_INT = re.compile(r"int([2-8])(?:-(rtn|gptq))?(?:-g(\d+))?")
_SPARSE = re.compile(r"(?:sparse(\d+)|(2:4))-(magnitude|wanda|sparsegpt)")
_RANK = re.compile(r"rank(\d+)")


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a matrix."""

    name: str
    kind: Kind
    bits: int = 16
    """Of a stored value; 16 stands for the model's own type."""
    group_size: int = 0
    """Columns that share a scale; 0: all of a row."""
    method: Method = ""
    density: float = 1.0
    """Share of the values kept (sparse), or of the numbers that two factors hold (lowrank)."""
    pattern: Literal["", "2:4"] = ""
    """2:4: at most two values of every four neighbouring columns."""

    def __post_init__(self) -> None:
        assert self.kind in get_args(Kind)
        assert self.method in get_args(Method)
        assert 0 < self.density <= 1
        assert 2 <= self.bits <= 16
        assert self.group_size >= 0

    @property
    def is_drop(self) -> bool:
        """Whether it is an option of a whole block, or of its attention or MLP, which then gives nothing."""
        return self.method == "zero"

    @property
    def needs_moments(self) -> bool:
        """Whether it asks what the matrix's inputs look like."""
        return self.method in ("gptq", "wanda", "sparsegpt")


def option(name: str) -> Option:
    """The option called `name`; ValueError, with the names, when there is none.

    >>> option("int4").group_size, option("int8").method, option("sparse75-wanda").density
    (64, 'rtn', 0.25)
    """
    if name == "keep":
        return Option(name, "keep")
    if found := _INT.fullmatch(name):
        bits = int(found[1])
        method: Method = "rtn" if found[2] == "rtn" or (bits == 8 and not found[2]) else "gptq"
        return Option(name, "int", bits, (0 if bits == 8 else _GROUP) if found[3] is None else int(found[3]), method)
    if name in ("drop-block", "drop-attention", "drop-mlp"):
        return Option(name, "int", 2, method="zero")
    if found := _SPARSE.fullmatch(name):
        pruned: Method = "magnitude" if found[3] == "magnitude" else "wanda" if found[3] == "wanda" else "sparsegpt"
        if found[2]:
            return Option(name, "sparse", method=pruned, density=0.5, pattern="2:4")
        if 0 < int(found[1]) < 100:
            return Option(name, "sparse", method=pruned, density=(100 - int(found[1])) / 100)
    if (found := _RANK.fullmatch(name)) and 0 < int(found[1]) < 100:
        return Option(name, "lowrank", method="svd", density=int(found[1]) / 100)
    if name == "w8a8":
        raise ValueError("options: w8a8 is not offered, since no kernel takes activations of 8 bits (int8 weights meet 16 bits); use int8")
    raise ValueError(f"options: no option {name!r}; use some of {', '.join(NAMES)}")


def parse_options(text: str) -> tuple[Option, ...]:
    """Options from their names with commas between, in that order, each once; ValueError when one is unknown or none is given."""
    names = dict.fromkeys(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError(f"options: none given; use some of {', '.join(NAMES)}")
    return tuple(map(option, names))


def fitting_group(group_size: int, columns: int) -> int:
    """The columns per scale that a matrix of `columns` is really stored with: readers want groups that divide the row.

    >>> fitting_group(64, 704), fitting_group(128, 704), fitting_group(64, 50)
    (64, 64, 0)
    """
    while group_size and columns % group_size:
        group_size = group_size // 2 if group_size > 32 else 0  # fewer than 32 have no kernel
    return 0 if group_size == columns else group_size


def kept_per_row(option: Option, columns: int) -> int:
    """Values that a sparse matrix keeps of each row of `columns`: 2 of every 4, or the density's share, rounded."""
    if option.pattern:
        return columns // 4 * 2 + min(columns % 4, 2)
    return max(1, round(option.density * columns))


def rank(option: Option, rows: int, columns: int) -> int:
    """The rank at which two factors hold the option's share of the numbers."""
    return max(1, int(option.density * rows * columns / (rows + columns)))


def stored_bytes(option: Option, rows: int, columns: int, width: int) -> int:
    """Bytes on disk of a matrix [rows, columns] whose own type takes `width` bytes: values, scales, mask, shape.

    >>> [stored_bytes(option(name), 256, 256, 2) for name in ("keep", "int8", "int4", "2:4-wanda", "rank50")]
    [131072, 66064, 34832, 73744, 65536]
    """
    if option.kind == "int":
        groups = columns // (fitting_group(option.group_size, columns) or columns)
        return rows * (math.ceil(columns * option.bits / 32) * 4 + groups * width) + _SHAPE_BYTES
    if option.kind == "sparse":
        return rows * (kept_per_row(option, columns) * width + math.ceil(columns / 8)) + _SHAPE_BYTES
    if option.kind == "lowrank":
        return rank(option, rows, columns) * (rows + columns) * width
    return rows * columns * width


def has_kernel(option: Option) -> bool:
    """Whether our engine computes with it as it is stored; else it is widened on loading, and counts for size on disk only.

    Integers of 5 to 7, 3 and 2 bits are widened to int8, sparse and low-rank matrices to floats. A block that is dropped is not there.
    """
    return option.kind == "keep" or option.name == "drop-block" or (option.kind == "int" and option.bits in (4, 8))
