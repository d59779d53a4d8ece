"""What curate reads, told by a file's name: text, records, web pages and source code in many languages.

Promise: a name has one format or none, whatever the case of its suffix; a format is code or prose. A suffix is listed where
the files that bear it are written by people: data (.json, .csv), styles (.css) and configuration (.yaml) are not.
"""

from __future__ import annotations

__all__ = ["CODE", "SUFFIXES", "format_of", "known_formats"]

_PROSE = {
    "md": "md", "rst": "rst", "txt": "txt", "jsonl": "jsonl jsonl.gz jsonl.zst", "parquet": "parquet",
    "html": "html htm xhtml", "tex": "tex", "warc": "warc warc.gz",
}  # fmt: skip
_LANGUAGES = {
    "py": "py", "pyi": "pyi", "pyx": "pyx pxd", "c": "c h", "cpp": "cpp cc cxx hpp hh hxx", "cu": "cu cuh", "cs": "cs", "fs": "fs fsx",
    "go": "go", "rs": "rs", "zig": "zig", "nim": "nim", "java": "java", "kt": "kt kts", "scala": "scala", "groovy": "groovy",
    "clj": "clj cljs", "swift": "swift", "m": "m mm", "dart": "dart", "js": "js mjs cjs jsx", "ts": "ts mts cts tsx", "vue": "vue",
    "svelte": "svelte", "rb": "rb", "php": "php", "pl": "pl pm", "lua": "lua", "r": "r", "jl": "jl", "f90": "f90 f95 f", "hs": "hs",
    "ml": "ml mli", "ex": "ex exs", "erl": "erl hrl", "lisp": "lisp el scm", "sh": "sh bash zsh", "ps1": "ps1", "sql": "sql",
    "proto": "proto", "thrift": "thrift", "tf": "tf", "sol": "sol", "vhd": "vhd vhdl", "sv": "sv", "asm": "asm s",
}  # fmt: skip

CODE = frozenset(_LANGUAGES)
"""The formats that are source code; every other is prose."""

SUFFIXES = {f".{suffix}": format_ for format_, suffixes in (_PROSE | _LANGUAGES).items() for suffix in suffixes.split()}
"""Suffix -> format: the column `format`."""


def format_of(name: str) -> str | None:
    """By the suffix, the one before .gz or .zst included.

    >>> format_of("a/b.JSONL.gz"), format_of("include/vector.hh"), format_of("setup.cfg")
    ('jsonl', 'cpp', None)
    """
    parts = name.rsplit("/", 1)[-1].lower().split(".")
    return SUFFIXES.get("." + ".".join(parts[-2:])) or SUFFIXES.get("." + parts[-1]) if len(parts) > 1 else None


def known_formats() -> str:
    """For a message: what can be read, on one line."""
    prose = " ".join(f".{suffix}" for suffixes in _PROSE.values() for suffix in suffixes.split())
    return f"{prose} and source code in {len(CODE)} languages (.py .c .js .rs .java …)"
