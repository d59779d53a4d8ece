"""A causal transformers module as a function from tokens and memory to logits and memory; transformers is imported here alone.

Promise: one calling convention for every architecture, whatever it calls its memory (`past_key_values`, `cache_params`, `state`, or
attributes of its own submodules), and `Abilities` measured on the loaded module itself. Price: some eight passes over a few tokens at load,
widened to float32 meanwhile if they are shorter (twice the memory, for that long).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from collections.abc import Sequence as Series
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from serve.engine.config import LENGTHS, UNLIMITED
from serve.engine.guest_state import is_plain_kv, joined, picked, stacked

__all__ = ["Abilities", "GuestModule", "GuestShape", "load_module"]

_MEMORIES = ("past_key_values", "cache_params", "state")
_OWN_STATES = ("recurrent_states", "conv1d_state")
"""Attributes in which RecurrentGemma's submodules keep what they remember."""
_NOISE = {torch.float64: 1e-5, torch.float32: 1e-4}
"""How far two ways to the same logits may differ, in standard deviations of the logits (some modules round to float32 inside)."""
_WRONG = 0.1
"""The same for what is plainly another result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestShape:
    """What the engine needs to know of a foreign model."""

    vocab_size: int
    hidden_size: int
    max_length: int
    eos_token_ids: tuple[int, ...]
    window: None = None
    """Nothing that the blocks count is given back early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a module was seen to do with the same result."""

    extends: bool
    """Go on from a memory with several tokens at once: chunks, drafts."""
    crops: bool
    """Memory is keys and values alone, so tokens can be taken back."""
    batches: bool
    """Several sequences in one pass: of equal lengths, or of any where no keys and values are held."""
    pads: bool
    """Sequences of different lengths in one pass, padded and masked."""


def load_module(folder: Path, data: dict[str, Any], dtype: torch.dtype, device: torch.device, unlimited: int | None = None) -> GuestModule:
    """Load a folder with AutoModelForCausalLM. `unlimited`: the longest sequence of an architecture that sets no limit.

    ValueError, in one line, for what transformers does not know or cannot run here.
    """
    name = (data.get("architectures") or ["?"])[0]
    transformers = importlib.import_module("transformers")
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loader = transformers.AutoModelForCausalLM
        module, about = loader.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
        if missing := sorted(about["missing_keys"]):  # transformers would make them up
            raise ValueError(f"its weights lack {missing[0]}")
        return GuestModule(module.eval().to(device), data, dtype, device, unlimited or UNLIMITED)
    except Exception as error:  # modules and their configurations raise whatever they like
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"model: {folder} is a {name}, which neither the lean decoder nor transformers {transformers.__version__} runs here: {reason}"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class GuestModule:
    """A loaded module; `module(tokens, memory)` goes on from a memory (None: from nothing)."""

    def __init__(self, module: Any, data: dict[str, Any], dtype: torch.dtype, device: torch.device, unlimited: int = UNLIMITED) -> None:
        self.dtype, self.device, self._module = dtype, device, module
        self._config = module.config.get_text_config(decoder=True)
        self.accepts = set(inspect.signature(module.forward).parameters)
        name = next((name for name in _MEMORIES if name in self.accepts), None)
        if name is None:
            raise ValueError("its module takes no memory of earlier tokens")
        self._memory = name
        self._keepers: list[tuple[nn.Module, str]] = [
            (part, attribute) for part in module.modules() for attribute in _OWN_STATES if attribute in vars(part)
        ]
        eos = data.get("eos_token_id", getattr(self._config, "eos_token_id", None))
        self.shape = GuestShape(
            vocab_size=int(self._config.vocab_size),
            hidden_size=int(self._config.hidden_size),
            max_length=_max_length(self._config) or unlimited,
            eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (int(eos),),
        )
        with _widened(module):
            self.abilities, size = _find_out(self)
        self.bytes_per_token = size * dtype.itemsize

    def __call__(
        self, tokens: Tensor, starts: Series[int], memory: Any = None, *, mask: Tensor | None = None, keep: int = 0
    ) -> tuple[Tensor, Any]:
        """Logits [B, n, vocab] after tokens [B, n] at positions from `starts` [B], of the last `keep` (0: all), and the memory with them.

        The given memory is used up. `mask` [B, L + n] has zeros where the memory is padding. Positions are always said: some modules
        (Bamba) count from zero again when they are not.
        """
        own = self._restore(memory)
        positions = torch.tensor(starts)[:, None] + torch.arange(tokens.shape[1])
        given = {"attention_mask": mask, "position_ids": positions, "input_ids": tokens}
        given = {name: tensor.to(self.device) for name, tensor in given.items() if tensor is not None and name in self.accepts}
        extra = {"logits_to_keep": keep} if "logits_to_keep" in self.accepts else {}
        out = self._module(**given, **extra, **{self._memory: own}, use_cache=True)
        after = getattr(out, self._memory, None)
        return out.logits[:, -keep:], self._collect(own if after is None else after)

    def _restore(self, memory: Any) -> Any:
        """What the module is to be given, with its submodules' own states put back."""
        if self._keepers:
            own = [None] * len(self._keepers) if memory is None else memory[1]
            for (part, attribute), state in zip(self._keepers, own, strict=True):
                setattr(part, attribute, state)
            memory = None if memory is None else memory[0]
        if memory is None and self._memory == "past_key_values":
            return importlib.import_module("transformers").DynamicCache(config=self._config)
        return memory

    def _collect(self, memory: Any) -> Any:
        return (memory, [getattr(part, attribute) for part, attribute in self._keepers]) if self._keepers else memory

    def states(self, tokens: Tensor) -> Tensor:
        """The last hidden states [B, n, hidden] of texts [B, n], as the module's body returns them."""
        self._restore(None)
        return self._module.base_model(tokens.to(self.device)).last_hidden_state


def _max_length(config: Any) -> int | None:
    """The config's own limit, by whichever of its names is there."""
    return next((value for name in LENGTHS if isinstance(value := getattr(config, name, None), int)), None)


# ---- finding out -----------------------------------------------------------------------------------------------------


@contextmanager
def _widened(module: Any) -> Iterator[None]:
    """A module in float32 for a while: in bfloat16, rounding is no smaller than what a wrong state does to the logits."""
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.dtype in (torch.bfloat16, torch.float16)]
    dtypes = [tensor.dtype for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    yield
    for tensor, dtype in zip(tensors, dtypes, strict=True):
        tensor.data = tensor.data.to(dtype)


@torch.inference_mode()
def _find_out(module: GuestModule) -> tuple[Abilities, int]:
    """Abilities, and keys' and values' numbers a token (0 where none is held), from a few passes over ten tokens."""
    vocab = module.shape.vocab_size
    first = torch.arange(3, 13).remainder(vocab)[None]
    second = (torch.arange(5, 45, 4) * 7).remainder(vocab)[None]
    whole, memory = module(first, [0])
    if not _agree(_in_parts(module, first, [4, *[1] * 6]), whole, _WRONG):
        raise ValueError("its memory does not continue a text as one pass over the text does")
    extends = _agree(_in_parts(module, first, [3, 5, 2]), whole)
    crops = extends and is_plain_kv(memory)
    pads = crops and "attention_mask" in module.accepts and _pads(module, first, second)
    return Abilities(extends=extends, crops=crops, batches=_stacks(module, first, second), pads=pads), _num_kept(memory) // 10


def _in_parts(module: GuestModule, tokens: Tensor, sizes: Series[int]) -> Tensor:
    """Logits of a text read in chunks of `sizes`."""
    rows, memory, start = [], None, 0
    for size in sizes:
        row, memory = module(tokens[:, start : start + size], [start], memory)
        rows.append(row)
        start += size
    return torch.cat(rows, 1)


def _num_kept(memory: Any) -> int:
    """Numbers in the keys and values that a memory holds."""
    memory = memory[0] if isinstance(memory, tuple) else memory
    kept = [getattr(layer, name, None) for layer in getattr(memory, "layers", ()) for name in ("keys", "values")]
    return sum(tensor.numel() for tensor in kept if tensor is not None)


def _agree(one: Tensor, other: Tensor, most: float | None = None) -> bool:
    noise = _NOISE[other.dtype] if most is None else most
    return bool((one - other).abs().max() <= noise * other.float().std())


def _stacks(module: GuestModule, first: Tensor, second: Tensor) -> bool:
    """Two states in one pass; each alone; and one of them gone on with alone."""
    texts = (first, second)
    alone = [module(tokens[:, 9:], [9], module(tokens[:, :9], [0])[1])[0] for tokens in texts]
    memories = [module(tokens[:, :9], [0])[1] for tokens in texts]
    together, memory = module(torch.cat([first[:, 9:], second[:, 9:]]), [9, 9], stacked(memories))
    after = module(first[:, :1], [10], picked(memory, 0))[0]
    expected = module(torch.cat([first, first[:, :1]], 1), [0])[0][:, -1:]
    return together.shape[:2] == (2, 1) and _agree(together, torch.cat(alone)) and _agree(after, expected, _WRONG)


def _pads(module: GuestModule, first: Tensor, second: Tensor) -> bool:
    """Seven and three tokens of memory in one batch, two more each, and each alone."""
    memories = [module(first[:, :7], [0])[1], module(second[:, :3], [0])[1]]
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    rows, _ = module(torch.cat([first[:, 7:9], second[:, 3:5]]), [7, 3], joined(memories), mask=mask)
    return _agree(rows, torch.cat([module(first[:, :9], [0])[0][:, 7:], module(second[:, :5], [0])[0][:, 3:]]))
