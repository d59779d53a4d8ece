"""Text to judge models on: a tokens folder's held-out documents, or files of one's own.

Promise: documents in the order of the files, empty ones skipped, lines that cannot be read counted; a file that gives
nothing is the user's mistake and one line. Price: the text is held in memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as arrow_fs

from cluster.storage import resolve
from train.files import read_whole
from train.instructions import is_text

__all__ = ["Document", "is_tokens_folder", "read_documents"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text and what kind it is ("code", "prose", or a file's own)."""

    text: str
    kind: str

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode("utf-8"))


def is_tokens_folder(uri: str) -> bool:
    """Whether `uri` is a folder: the only folders that evaluate reads are tokens folders."""
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type == arrow_fs.FileType.Directory


def read_documents(uris: Sequence[str]) -> tuple[list[Document], int]:
    """(documents, number of unreadable lines) of tokens folders (held_out.parquet), parquet, jsonl, txt and md files.

    Raises ValueError for a missing file, an unknown kind of file, or one without any text.
    """
    documents: list[Document] = []
    unreadable = 0
    for uri in uris:
        found, bad = _read(uri.rstrip("/") + "/held_out.parquet" if is_tokens_folder(uri) else uri)
        if not found:
            raise ValueError(f"{uri}: no text to judge ({bad} unreadable lines); give a file that has some")
        documents += found
        unreadable += bad
    return documents, unreadable


def _read(uri: str) -> tuple[list[Document], int]:
    suffixes = [s for s in PurePosixPath(resolve(uri)[1]).suffixes if s not in (".gz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    raw = read_whole(uri, wanted="a tokens folder from `sterna tokenize`, or a parquet, jsonl, txt or md file", packed=kind != ".parquet")
    if kind == ".parquet":
        return _from_parquet(uri, raw), 0
    text = raw.decode("utf-8", errors="replace")
    if kind == ".jsonl":
        return _from_jsonl(text)
    if kind in (".txt", ".md", ".py", ".rst"):
        return ([Document(text, "code" if kind == ".py" else "prose")] if text.strip() else []), 0
    raise ValueError(f"{uri}: a {kind or 'nameless'} file is not text that evaluate reads; give parquet, jsonl, txt, md, rst or py")


def _from_parquet(uri: str, raw: bytes) -> list[Document]:
    try:
        rows = pq.read_table(pa.BufferReader(raw)).to_pydict()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{uri}: not a parquet file ({str(error).splitlines()[0]}); make it again") from None
    if "text" not in rows:
        raise ValueError(f"{uri}: has no column `text`, but {', '.join(rows)}")
    kinds = rows.get("kind") or ["text"] * len(rows["text"])
    return [Document(text, kind or "text") for text, kind in zip(rows["text"], kinds, strict=True) if text and text.strip()]


def _from_jsonl(text: str) -> tuple[list[Document], int]:
    documents, bad = [], 0
    for line in text.split("\n"):  # not splitlines: JSON may hold other line separators as they are
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError):  # brackets by the thousand
            row = None
        value = row.get("text") if isinstance(row, dict) else None
        if is_text(value) and value.strip():
            documents.append(Document(value, str(row.get("kind") or "text")))
        else:
            bad += 1
    return documents, bad
