"""The folder of a served model, on the machine that asks: a local path as it is, an s3:// one downloaded once per content.

Promise: what lacks a file that serving needs is one `ValueError` line. Price: none for a local folder; one read and one copy of
an s3:// one per machine, by whoever is there first (its engine replicas, its gateway).
"""

from __future__ import annotations

from pathlib import Path

from cluster.storage import content_digest, downloaded, list_files, one_line, resolve

__all__ = ["model_folder"]


def model_folder(model: str) -> Path:
    """The local folder of the model at `model`, a path or s3://bucket/folder. ValueError if it is not there or no model."""
    filesystem, path = resolve(model)
    try:
        names = {name for name in list_files(filesystem, path) if "/" not in name}
    except OSError as error:
        raise ValueError(f"{model}: cannot be read ({one_line(error)}); check the location and your access to it") from None
    if not names and not ("://" not in model and Path(path).is_dir()):
        raise ValueError(f"{model}: no such folder; `sterna pretrain`, `tune` or `compress` makes one, or save one with save_pretrained")
    missing = [name for name in ("config.json", "tokenizer.json") if name not in names]
    if not missing and not any(name.endswith(".safetensors") for name in names):
        missing = ["*.safetensors"]
    if missing:
        raise ValueError(
            f"{model}: not a model folder, {missing[0]} is missing; save the model with save_pretrained, its tokenizer beside it"
        )
    return downloaded(model, content_digest(model)) if "://" in model else Path(path)
