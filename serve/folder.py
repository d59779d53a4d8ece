"""The folder of a served model or adapter, on the machine that asks: a local path as it is, an s3:// one downloaded once per content.

Promise: what lacks a file that serving needs is one `ValueError` line. Price: none for a local folder; one read and one copy of
an s3:// one per machine, by whoever is there first (its engine replicas, its gateway).
"""

from __future__ import annotations

from pathlib import Path

from cluster.storage import content_digest, downloaded, list_files, one_line, resolve

__all__ = ["adapter_folder", "model_folder"]


def model_folder(model: str) -> Path:
    """The local folder of the model at `model`, a path or s3://bucket/folder. ValueError if it is not there or no model."""
    names = _names(model)
    if not names and not ("://" not in model and Path(resolve(model)[1]).is_dir()):
        raise ValueError(f"{model}: no such folder; `sterna pretrain`, `tune` or `compress` makes one, or save one with save_pretrained")
    missing = [name for name in ("config.json", "tokenizer.json") if name not in names]
    if not missing and not any(name.endswith(".safetensors") for name in names):
        missing = ["*.safetensors"]
    if missing:
        raise ValueError(
            f"{model}: not a model folder, {missing[0]} is missing; save the model with save_pretrained, its tokenizer beside it"
        )
    return _local(model)


def adapter_folder(adapter: str) -> Path:
    """The local folder of the LoRA adapter at `adapter`, a path or s3://bucket/folder. ValueError if it is not there or none of peft's."""
    if "adapter_config.json" not in _names(adapter):
        raise ValueError(
            f"{adapter}: no adapter, adapter_config.json is missing; `sterna tune --no-merge` makes one, or peft's save_pretrained"
        )
    return _local(adapter)


def _names(folder: str) -> set[str]:
    """The files of a folder."""
    filesystem, path = resolve(folder)
    try:
        return {name for name in list_files(filesystem, path) if "/" not in name}
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({one_line(error)}); check the location and your access to it") from None


def _local(folder: str) -> Path:
    return downloaded(folder, content_digest(folder)) if "://" in folder else Path(resolve(folder)[1])
