"""A compressed model's folder: each matrix as its variant stores it, everything else as it was.

Promise: with integers in linear layers, and in the embedding 8 bits, a compressed-tensors folder that transformers and our
engine read, each with the numbers of `Variant.dense`; with anything else a folder that our engine reads and that transformers
refuses rather than draws weights at random. Blocks that were dropped whole are not written, and config.json counts fewer. `dense`
writes an ordinary folder, rounded to the model's own type. The tensors of a plan take what `stored_bytes` says. Price: the model is
written, then its files are rewritten one at a time.
Formats: `pack-quantized` for linear layers; `int-quantized` for the embedding, since transformers asks for a `weight` there: in a tied
model the output layer has the scales once more, as it has a module of its own. The engine's own ones: see serve/engine/layouts.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from train.compress.calibrate import CompressibleMatrix, matrices
from train.compress.candidates import Variant
from train.compress.options import fitting_group
from train.compress.quantize import copy_the_rest
from train.compress.structure import blocks_of, without_blocks

__all__ = ["Exported", "export", "readers"]

_PACKED, _PLAIN = "pack-quantized", "int-quantized"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of an export."""

    readers: tuple[str, ...]
    """Who loads the folder: sterna, and transformers unless `why_not` says otherwise."""
    why_not: str
    """Which matrices transformers has no format for; empty when it reads the folder."""


def readers(found: list[CompressibleMatrix], variants: Mapping[str, Variant]) -> Exported:
    """Who will load a folder in which the matrices `found` are stored as their `variants` are."""
    roles = {matrix.name: matrix.role for matrix in found}
    kinds = {f"{v.option.kind} matrices" for v in variants.values() if v.option.kind in ("sparse", "lowrank")}
    if any(v.option.kind == "int" and v.option.bits != 8 and roles[name] in _LOOKED_UP for name, v in variants.items()):
        kinds.add("an embedding of fewer than 8 bits")
    if not kinds:
        return Exported(("sterna", "transformers"), "")
    return Exported(("sterna",), f"transformers has no format for {' and '.join(sorted(kinds))}; export dense for it")


_LOOKED_UP = ("embedding", "tied")


def export(model: Any, variants: Mapping[str, Variant], source: Path, output: Path, *, dense: bool = False) -> Exported:
    """Write `model` to `output` with its matrices as `variants` (module path -> variant; others stay) and the other files of `source`.

    `dense`: their values in the model's own type, for whoever reads no compressed folder. `model` is left as it is.
    """
    changed = {name: variant for name, variant in variants.items() if variant.option.kind != "keep"}
    unknown = sorted(changed.keys() - {matrix.name for matrix in matrices(model)})
    if unknown:
        raise ValueError(f"{source}: {unknown[0]} is no matrix of this model that can be compressed")
    model, changed = _without_the_dropped(model, changed)
    found = {matrix.name: matrix for matrix in matrices(model)}
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), "")
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    if dense:
        dtypes = {name: model.get_submodule(name).weight.dtype for name in changed}
        stored = {name: {f"{name}.weight": variant.dense.to(dtypes[name])} for name, variant in changed.items()}
    else:
        stored = {name: _stored(found[name], variant, head) for name, variant in changed.items()}
        _describe(output / "config.json", found, changed, head)
    _rewrite(output, stored)
    copy_the_rest(source, output)
    return Exported(("sterna", "transformers"), "") if dense else readers(list(found.values()), changed)


def _without_the_dropped(model: Any, changed: Mapping[str, Variant]) -> tuple[Any, Mapping[str, Variant]]:
    """The model without the blocks that were dropped whole, and what changes in the others by their names there."""
    dropped = {name for name, variant in changed.items() if variant.option.name == "drop-block"}
    if not dropped:
        return model, changed
    gone = {block.name for block in blocks_of(model) if dropped.issuperset(block.matrices)}
    smaller, places = without_blocks(model, gone)
    inside = {f"{old}.": f"{new}." for old, new in places.items()}
    renamed: dict[str, Variant] = {}
    for name, variant in changed.items():
        place = next((old for old in inside if name.startswith(old)), "")
        if place or not any(name.startswith(f"{block}.") for block in gone):
            renamed[inside[place] + name.removeprefix(place) if place else name] = variant
    return smaller, renamed


def _is_plain(matrix: CompressibleMatrix, variant: Variant) -> bool:
    """Whether it is stored as int8 numbers rather than packed words."""
    return matrix.role in _LOOKED_UP and variant.option.kind == "int" and variant.option.bits == 8


def _stored(matrix: CompressibleMatrix, variant: Variant, head: str) -> dict[str, Tensor]:
    """A matrix' tensors by their names in the folder."""
    tensors = dict(variant.tensors)
    if _is_plain(matrix, variant):
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        shape = torch.Size(tensors["weight_shape"].tolist())
        tensors = {"weight": unpack_from_int32(tensors["weight_packed"], 8, shape), "weight_scale": tensors["weight_scale"]}
    named = {f"{matrix.name}.{name}": tensor for name, tensor in tensors.items()}
    if matrix.role == "tied" and _is_plain(matrix, variant):
        named[f"{head}.weight_scale"] = tensors["weight_scale"].clone()
    return named


def _describe(config: Path, found: Mapping[str, CompressibleMatrix], changed: Mapping[str, Variant], head: str) -> None:
    """Add `quantization_config` for the integers among the changed; none, no entry."""
    from compressed_tensors import __version__
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    targets: dict[tuple[int, int, str], list[str]] = {}
    for name, variant in changed.items():
        if variant.option.kind == "int":
            matrix = found[name]
            form = _PLAIN if _is_plain(matrix, variant) else _PACKED
            names = [name, head] if matrix.role == "tied" else [name]
            targets.setdefault((variant.option.bits, fitting_group(variant.option.group_size, matrix.columns), form), []).extend(names)
    if not targets:
        return
    groups = {}
    for (bits, group, form), names in sorted(targets.items()):
        strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
        weights = QuantizationArgs(num_bits=bits, type="int", symmetric=True, **strategy)
        groups[f"int{bits}{f'_g{group}' if group else ''}_{form.partition('-')[0]}"] = QuantizationScheme(
            targets=names, weights=weights, format=form
        )
    forms = {form for _, _, form in targets}
    chosen = {name for names in targets.values() for name in names}
    kept = [name for name, matrix in found.items() if matrix.role in ("linear", "head") and name not in chosen]
    kept += [head] if head and head not in found and head not in chosen else []
    quantisation = QuantizationConfig(
        config_groups=groups, ignore=kept, format=forms.pop() if len(forms) == 1 else "mixed-precision", quantization_status="compressed"
    )
    described = json.loads(config.read_text())
    described["quantization_config"] = {"version": __version__, **quantisation.model_dump(mode="json")}
    config.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def _rewrite(folder: Path, stored: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put the tensors of each matrix where its weight was, file by file, and the index right where there is one."""
    left = dict(stored)
    places: dict[str, str] = {}
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  safe_open is no mapping
        for name in [name for name in left if f"{name}.weight" in tensors]:
            del tensors[f"{name}.weight"]
            tensors |= {key: tensor.contiguous() for key, tensor in left.pop(name).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if left:
        raise ValueError(f"{folder}: transformers writes {next(iter(left))} under another name; this architecture cannot be compressed yet")
    if (folder / _INDEX).is_file():
        (folder / _INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n")
