"""Where a model runs here, in which number type, on which kernels and which KV: the choice, and the runner that follows from it.

Promise: bfloat16 on a CPU that has the instructions runs natively (kernels: auto), as one call a step where `native/decoder.py` knows
the shape, operator by operator where not; everything else runs on torch. Price: none beyond loading.
"""

from __future__ import annotations

from functools import partial

import torch

from serve.engine.adapters import AdapterSet
from serve.engine.attention import KvCache, block_bytes
from serve.engine.config import EngineConfig
from serve.engine.cuda import DecodeGraphs
from serve.engine.model import Model
from serve.engine.native import cache as native_cache
from serve.engine.native import decoder as native_decoder
from serve.engine.native import library
from serve.engine.native.runner import NativeRunner
from serve.engine.parts import parts_of, sizes_of
from serve.engine.runner import Runner
from serve.engine.shape import Shape
from serve.engine.weights import Weights

__all__ = ["device_of", "dtype_of", "make_runner", "runs_native", "swap_blocks"]

DEFAULT_KV_BYTES = 1 << 30
_MOST_BYTES = 1 << 46
"""64 TiB: memory that is not touched costs nothing, but a process has no more addresses."""


def device_of(config: EngineConfig) -> torch.device:
    """Where the settings put the model. ValueError for a GPU that is not there."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ValueError("device: cuda is not available here; use device auto or cpu")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def dtype_of(config: EngineConfig, data: dict[str, object]) -> torch.dtype:
    """The number type that the settings ask for; for auto, what the folder was saved in, bfloat16 for float16."""
    name = config.dtype
    if name == "auto":
        stored = str(data.get("dtype") or data.get("torch_dtype") or "float32")
        name = "bfloat16" if stored in ("bfloat16", "float16") else "float32"
    return {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}[name]


def runs_native(config: EngineConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the matrices run on our own kernels. ValueError if the settings insist on what cannot be."""
    if dtype == torch.bfloat16 and device.type == "cpu":
        return library.native(config.kernels)
    if config.kernels == "native":
        raise ValueError(f"kernels: native kernels run bfloat16 on a CPU, not {dtype} on {device.type}; use auto or torch")
    return False


def make_runner(
    config: EngineConfig, shape: Shape, weights: Weights, adapters: AdapterSet, dtype: torch.dtype, device: torch.device, max_length: int
) -> Runner | NativeRunner:
    """The runner for weights that were read as `runs_native` said. ValueError if they are not of the shape's sizes."""
    weights.check(sizes_of(shape, parts_of(shape, weights)))
    model = partial(Model, shape, weights, dtype, device, max_length)
    cache = _make_cache(config, shape, dtype, device, max_length, native=weights.native)
    if isinstance(cache, native_cache.NativeCache) and native_decoder.supported(shape) and weights.all_native:
        return NativeRunner(native_decoder.NativeDecoder(shape, weights, max_length), cache, adapters, model)
    whole = model()
    if device.type == "cuda" and isinstance(cache, KvCache) and not any(shape.sparse):
        return Runner(whole, cache, adapters, DecodeGraphs(whole, cache, capture=True))
    return Runner(whole, cache, adapters)


def _make_cache(
    config: EngineConfig, shape: Shape, dtype: torch.dtype, device: torch.device, max_length: int, *, native: bool
) -> KvCache | native_cache.NativeCache:
    """KV blocks, as many as the settings say. ValueError if they are more than the machine can promise."""
    sizes = (shape.num_layers, shape.num_kv_heads, shape.head_dim)
    quantised, size = config.kv_dtype == "int8", config.block_size
    ours = native and native_cache.fits(shape.num_heads, shape.num_kv_heads, shape.head_dim, size)
    each = native_cache.block_bytes(*sizes, size, quantised) if ours else block_bytes(*sizes, size, dtype, quantised)
    count = _num_blocks(config, each, max_length)
    too_many = f"KV: {count} blocks of {each} bytes are more than there is memory for; set num_blocks, kv_bytes or max_length to less"
    if count * each > _MOST_BYTES:
        raise ValueError(too_many)
    try:
        if ours:
            return native_cache.NativeCache(*sizes, count, size, quantised)
        return KvCache(*sizes, count, size, dtype, device, quantised)
    except (MemoryError, OSError, torch.OutOfMemoryError):
        raise ValueError(too_many) from None


def _num_blocks(config: EngineConfig, each: int, max_length: int) -> int:
    """As configured; by default 1 GiB of blocks, or fewer if every sequence can reach the longest length with less."""
    if config.num_blocks is not None:
        return config.num_blocks
    if config.kv_bytes is not None:
        if config.kv_bytes < each:
            raise ValueError(f"kv_bytes: {config.kv_bytes} holds no block of {each} bytes; raise it")
        return config.kv_bytes // each
    longest = -(-max_length // config.block_size)
    return max(longest, min(DEFAULT_KV_BYTES // each, longest * config.max_sequences))


def swap_blocks(config: EngineConfig, bytes_per_block: int) -> int:
    """How many blocks may be in host memory; none where a sequence's state is not in blocks, which then have no bytes."""
    each = bytes_per_block if config.preempt == "swap" else 0
    return config.swap_bytes // each if each else 0
