"""What `sterna curate` can be told; every field's docstring is its help text."""

from __future__ import annotations

from typing import Literal

from cluster.settings import settings

__all__ = ["CurateConfig"]


@settings
class CurateConfig:
    """From raw text to a corpus: read, normalise, judge by named rules, drop exact and near duplicates."""

    output: str
    """Folder to write the corpus to: a local path or s3://bucket/folder."""
    input: tuple[str, ...] = ()
    """Directories, files or globs of .py .md .rst .txt .jsonl(.gz .zst) .parquet, local or s3://; none: the text that this Python
    installation has, its standard library and its installed packages."""
    max_bytes: int | None = None
    """Read at most this many bytes (as stored): a sample of whole files, chosen by the hash of their names, so always the same one."""
    text_field: str = "text"
    """The key or column that holds the text in jsonl and parquet."""
    profile: Literal["auto", "web", "code"] = "auto"
    """Quality rules: web (Gopher, C4, FineWeb) for prose, code for source code; auto chooses for each document by its format."""
    threshold: float = 0.8
    """Drop a document whose word n-gram set has at least this Jaccard similarity with a kept one's; 1.0 drops equal sets only."""
    ngram: int = 5
    """Words in a shingle, for near-duplicates."""
    bands: int = 14
    """MinHash bands: with `rows`, a pair of similarity s becomes a candidate with probability 1 - (1 - s^rows)^bands."""
    rows: int = 8
    """MinHash values in a band; 14 bands of 8 find 92 % of the pairs of similarity 0.8 and 99 % of 0.85."""
    num_partitions: int = 0
    """Tasks the reading is cut into; 0: one for each 8 MB. The corpus holds the same documents whatever it is."""
    seed: int = 0
    """Of the MinHash functions and of the sample that `max_bytes` takes."""

    def __post_init__(self) -> None:
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes: is {self.max_bytes}; give at least 1, or leave it out to read everything")
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold: is {self.threshold}; give a similarity above 0 and up to 1")
        for name, value in (("ngram", self.ngram), ("bands", self.bands), ("rows", self.rows)):
            if value < 1:
                raise ValueError(f"{name}: is {value}; give at least 1")
        if self.num_partitions < 0:
            raise ValueError(f"num_partitions: is {self.num_partitions}; give 0 (automatic) or more")
        if not self.text_field:
            raise ValueError("text_field: is empty; name the key that holds the text")
