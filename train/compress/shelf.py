"""What the search works out of one model and one set of calibration texts, before it searches: variants, and what each would do.

Promise: what was made for the same key is read, not made again, whatever the budget and whichever other options are asked for; an
interrupted run loses one variant, or one pass. Variants stand in files and are read from there when their values are asked for,
so that they need not be held in memory. Price: the bytes of every variant on disk. Without a store all is made anew, and held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from train.compress.candidates import Variant
from train.compress.options import Option
from train.compress.store import Store
from train.compress.variant_file import read_variants, write_variants

__all__ = ["Pair", "Shelf"]

Pair = tuple[str, str]
"""(matrix, option)."""


class Shelf:
    """Variants and tables of figures by (matrix, option)."""

    def __init__(self, store: Store | None = None, key: Any = None) -> None:
        """`key` (JSON) says what all of it depends on: the model, and the texts that its matrices are fitted to."""
        self._store, self._key = store, key

    def variant(self, matrix: str, choice: Option, make: Callable[[], Variant]) -> Variant:
        """The matrix under the option: read, or made and kept."""
        if self._store is None:
            return make()
        key = [self._key, matrix, choice.name]
        path = self._store.file("variant", key, "safetensors", lambda scratch: write_variants(scratch, {matrix: make()}))
        return read_variants(path)[matrix]

    def read(self, what: str, key: Any) -> dict[Pair, Any]:
        """The table `what` of `key`, as far as it is known."""
        table = self._store.read(what, [self._key, key]) if self._store else {}
        return {(matrix, name): row for matrix, rows in table.items() for name, row in rows.items()}

    def write(self, what: str, key: Any, rows: Mapping[Pair, Any]) -> None:
        """Keep a table of JSON values in the place of an earlier one."""
        if self._store is None:
            return
        table: dict[str, dict[str, Any]] = {}
        for (matrix, name), row in rows.items():
            table.setdefault(matrix, {})[name] = row
        self._store.write(what, [self._key, key], table)
