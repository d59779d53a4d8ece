"""A model folder's config.json and safetensors, read lazily and checked.

Promise: one ValueError line for a folder that is no model, lacks a tensor, or is quantised in a way we do not run; tensors are
memory-mapped, and each is converted only when it is asked for. Price: the pages that are touched.
Formats: Hugging Face folders; compressed-tensors `pack-quantized` (see quantised.py), which stores `weight_packed` (int32: values plus half
their range, lowest bits first), `weight_scale` and `weight_shape`; its `int-quantized` (`weight` int8, `weight_scale`); see layouts.py.
"""

from __future__ import annotations

import ctypes
import json
import mmap
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from serve.engine.digest import model_digest
from serve.engine.layouts import scattered, unpacked
from serve.engine.linear import Linear, Stored, fuse, widened
from serve.engine.native.linear import fits
from serve.engine.quantised import Quantisation, Scheme

__all__ = ["Weights", "read_config"]

Part, Made = TypeVar("Part"), TypeVar("Made")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json with the folder's generation_config.json laid over its end tokens."""
    file = folder / "config.json"
    if not folder.is_dir():
        raise ValueError(f"model: no folder {folder}; give a Hugging Face model folder")
    if not file.is_file():
        raise ValueError(f"model: {folder} has no config.json; give a Hugging Face model folder")
    try:
        config: dict[str, Any] = dict(json.loads(file.read_text()))
        generation = folder / "generation_config.json"
        if generation.is_file():
            config |= {k: v for k, v in dict(json.loads(generation.read_text())).items() if k == "eos_token_id" and v is not None}
    except (ValueError, TypeError, RecursionError) as error:  # no JSON, no text, no object, or brackets without end
        raise ValueError(f"model: {folder}: broken JSON in config.json or generation_config.json ({error}); save the model again") from None
    return config


def _matrix(module: str) -> str:
    return module if module.endswith("]") else f"{module}.weight"


def _let_go(raw: Tensor) -> None:
    """Drop the pages of a tensor fresh from its file: it has been copied. Else a model is in memory twice while it loads."""
    page = mmap.PAGESIZE
    start, end = -(-raw.data_ptr() // page) * page, (raw.data_ptr() + raw.nbytes) // page * page
    if end > start and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of a model: those its index names, else all there are (some folders keep a second copy beside the shards)."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise ValueError(f"model: {folder} lacks {missing[0]}, which its index names; fetch the whole folder again")
        return [folder / name for name in sorted(names)]
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"model: {folder} has no *.safetensors; save the weights with save_pretrained")
    return files


class Weights:
    """The tensors of a folder by name, as `dtype` on `device`; `native`: matrices on our own kernels (see native/library.py)."""

    def __init__(self, folder: Path, config: dict[str, Any], dtype: torch.dtype, device: torch.device, *, native: bool = False) -> None:
        self._folder, self._dtype, self._device, self.native = folder, dtype, device, native
        self._made: dict[tuple[str, ...], Linear] = {}
        self._quantisation = Quantisation.of(config.get("quantization_config"), str(folder))
        try:
            self._shards = _shards(folder)
            opened = [safe_open(str(file), framework="pt") for file in self._shards]
        except Exception as error:  # safetensors raises a bare exception type of its own for a broken file
            raise ValueError(f"model: {folder}: cannot read the safetensors ({error}); save the weights again") from None
        self._file_of = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    @property
    def all_native(self) -> bool:
        """Whether every matrix runs on our own kernels."""
        return self.native and all(fits(scheme) for _, scheme in self._quantisation.schemes)

    def digest(self) -> str:
        """What the model is, whatever its folder is called; quick once the weights have been read."""
        return model_digest(self._folder, self._shards)

    def raw(self, name: str) -> Tensor:
        """A tensor as stored; NAME[i] is part i of it, and the only part that is read."""
        stack, bracket, index = name.removesuffix("]").partition("[")
        file = self._file(stack)
        return file.get_slice(stack)[int(index)] if bracket else file.get_tensor(stack)

    def _file(self, name: str) -> Any:
        if name not in self._file_of:
            raise ValueError(f"model: {self._folder} lacks the tensor {name}; its config.json and its weights do not belong together")
        return self._file_of[name]

    def check(self, sizes: Iterable[tuple[Sequence[str], tuple[int, ...]]]) -> None:
        """ValueError unless the weights have these sizes (see `parts.sizes_of`): our own kernels read as much as config.json says."""
        for modules, size in sizes:
            stored = [self._size(module) for module in modules]
            if (sum(s[0] for s in stored), *stored[0][1:]) != size or len({s[1:] for s in stored}) > 1:
                sides = ", ".join(f"{module} {list(s)}" for module, s in zip(modules, stored, strict=True))
                raise ValueError(
                    f"model: {self._folder} holds {sides}, where its config.json asks for {list(size)}; the two do not belong together"
                )

    def _size(self, module: str) -> tuple[int, ...]:
        """Of a module's weight; no tensor is read."""
        if f"{module}.weight_shape" in self:
            return tuple(map(int, self.raw(f"{module}.weight_shape")))
        if f"{module}.weight_right" in self:
            return (self._shape(f"{module}.weight")[0], self._shape(f"{module}.weight_right")[1])
        stack, bracket, _ = _matrix(module).partition("[")
        return self._shape(stack)[1 if bracket else 0 :]

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file(name).get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """A tensor in the engine's type and place."""
        return self.raw(name).to(self._device, self._dtype)

    def is_plain(self, module: str) -> bool:
        """Whether a module's weight is stored as the floats that it is."""
        return not any(f"{module}.{name}" in self for name in ("weight_packed", "weight_scale", "weight_bitmask", "weight_right"))

    def table(self, module: str) -> Tensor:
        """A module's weight [N, K] in the engine's type, however it is stored."""
        return widened(self.stored(module), self._dtype)

    def optional(self, name: str) -> Tensor | None:
        """A tensor that only some families have."""
        return self.tensor(name) if name in self else None

    def norm(self, module: str, offset: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """A norm's weight [N] and bias; with the offset added the weight is in float32 at least, so that nothing is rounded away."""
        name = f"{module}.weight"
        if offset == 0:
            return self.tensor(name), self.optional(f"{module}.bias")
        wide = torch.promote_types(self._dtype, torch.float32)
        return self.raw(name).to(self._device, wide) + offset, self.optional(f"{module}.bias")

    def linear(self, *modules: str) -> Linear:
        """The projections `modules` (all of the same input), stacked into one; NAME[i] is a matrix of a stacked tensor.

        Made once on our own kernels: the decoder and the piecewise model beside it share what they were packed into."""
        if modules in self._made:
            return self._made[modules]
        stored = [self.stored(module) for module in modules]
        made = fuse(stored, native=self.native)
        if self.native:  # our own kernels have copied them
            self._made[modules] = made
            for module in modules:
                _let_go(self.raw(_matrix(module) if f"{module}.weight_packed" not in self else f"{module}.weight_packed"))
        return made

    def side_by_side(self, make: Callable[[int, Part], Made], parts: Sequence[Part]) -> list[Made]:
        """[make(0, parts[0]), make(1, parts[1]), …], on all cores where our own kernels pack (torch's bring their own threads)."""
        if not self.native:
            return list(map(make, range(len(parts)), parts))
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return list(threads.map(make, range(len(parts)), parts))

    def stored(self, module: str) -> Stored:
        """A module's weight and bias, as they are held in memory."""
        bias = self.optional(f"{module}.bias")
        if self.is_plain(module):
            return Stored(self.tensor(_matrix(module)), bias)
        if f"{module}.weight_scale" in self:
            return self._integers(module, bias)
        values = self.raw(f"{module}.weight")
        if f"{module}.weight_right" in self:
            dense = values.float() @ self.raw(f"{module}.weight_right").float()
        else:
            dense = scattered(values, self.raw(f"{module}.weight_bitmask"), int(self.raw(f"{module}.weight_shape")[1]))
        return Stored(dense.to(self._device, self._dtype), bias)

    def _integers(self, module: str, bias: Tensor | None) -> Stored:
        scheme = self._quantisation.scheme(module)
        if scheme is None or f"{module}.weight_g_idx" in self:
            why = "its columns are in another order (activation order)" if scheme else "no config group names it"
            raise ValueError(
                f"model: {self._folder}: {module} is stored packed, but {why}; quantise the model again (see `sterna compress`)"
            )
        if f"{module}.weight_packed" not in self:
            values = self.raw(f"{module}.weight")
            packed, columns = values.view(torch.uint8) ^ 0x80, values.shape[1]
        else:
            columns = int(self.raw(f"{module}.weight_shape")[1])
            packed = self.raw(f"{module}.weight_packed").view(torch.uint8)[:, : -(-columns * scheme.bits // 8)]
        if scheme.bits not in (4, 8):
            packed, scheme = unpacked(packed, scheme.bits, columns), Scheme(8, scheme.group)
        scale = f"{module}.weight_scale"
        return Stored(packed.to(self._device), bias, scheme, columns, self.raw(scale) if self.native else self.tensor(scale))
