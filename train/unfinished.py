"""What an interrupted run left behind: checkpoints that nobody throws away unasked.

Promise: the same verb with the same inputs and settings goes on with them; with others it is refused in one line that says where they lie
and how far they had come. Price: one small file is read before a run, and where it tells of another, the newest checkpoint's marker.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pyarrow import fs as arrow_fs

from cluster.artifact import fingerprint
from cluster.storage import PARTIAL_STATE, resolve

__all__ = ["refuse_to_lose"]


def refuse_to_lose(output: str, *, stage: str, inputs: Mapping[str, str], config: Any) -> None:
    """ValueError if publishing to `output` would clear the checkpoints of an unfinished run with other inputs or settings."""
    uri = output if "://" in output else os.path.realpath(resolve(output)[1])
    partial = f"{uri.rstrip('/')}.partial"
    if _fingerprint_at(partial) in (None, fingerprint(stage, inputs, config)):
        return
    from train.checkpoint import newest

    saved = newest(f"{partial}/checkpoints")
    if saved is not None and saved.state.step:
        raise ValueError(
            f"{partial}: holds an unfinished run with other inputs or settings, at step {saved.state.step:,}; give those again to go on "
            "with it, choose another --output, or delete the folder to begin anew"
        )


def _fingerprint_at(partial: str) -> str | None:
    """Of the run that left its work there; None if there is none, or nothing that tells."""
    filesystem, path = resolve(f"{partial}/{PARTIAL_STATE}")
    if filesystem.get_file_info(path).type != arrow_fs.FileType.File:
        return None
    with filesystem.open_input_stream(path) as stream:
        raw = stream.readall()
    try:
        return str(json.loads(raw)["fingerprint"])
    except (ValueError, KeyError, TypeError):
        return None
