"""Dropping whole attention heads, MLP channels and blocks: a smaller model of the same architecture, which everything runs.

Promise: `shrunk` gives a model whose config.json says its new sizes; what the dropped columns of an output or down projection gave is
made up for by the others as well as the calibration inputs allow, with the least squares of the kept columns. Sizes are the same in
every layer, since no config.json says otherwise; which heads and channels go is each layer's own choice. Price: for K columns K^3
operations in 64 rounds of choosing, and one solve.
Sources: ZipLM (arXiv 2302.04089) for the choice, the optimal brain surgeon's saliency of a group of columns; ShortGPT (2403.03853) for
blocks, whose influence is 1 - the cosine of what enters and what leaves them. For layers built as Llama's are (Qwen, Mistral, OLMo …).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.compress.calibrate import Moments

__all__ = ["Block", "block_influence", "blocks_of", "refitted", "shrunk", "without_blocks", "worth_keeping"]

_ROUNDS = 64
_PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def worth_keeping(weight: Tensor, moments: Moments, size: int, num_kept: int) -> list[int]:
    """The `num_kept` groups of `size` neighbouring columns of `weight` [N, K] without whose others the outputs change least.

    The cheapest go first, a 64th of those to go at a time, the rest being refitted in between.

    >>> worth_keeping(torch.tensor([[1.0, 0.1, 2.0, 0.2]]), Moments.identity(4), 1, 2)
    [0, 2]
    """
    count = weight.shape[1] // size
    left = list(range(count))
    wide = weight.detach().double()
    inverse = torch.linalg.inv(moments.damped)
    a_round = max(1, -(-(count - num_kept) // _ROUNDS))
    while len(left) > num_kept:
        harms = _harms(wide, inverse, size)
        gone = set(harms.argsort(stable=True)[: min(a_round, len(left) - num_kept)].tolist())
        out = torch.tensor([g * size + c for g in sorted(gone) for c in range(size)])
        stay = torch.tensor([g * size + c for g in range(len(left)) if g not in gone for c in range(size)])
        solved = torch.linalg.solve(inverse[out][:, out], inverse[out][:, stay])
        wide = wide[:, stay] - wide[:, out] @ solved
        inverse = inverse[stay][:, stay] - inverse[stay][:, out] @ solved
        left = [group for index, group in enumerate(left) if index not in gone]
    return left


def _harms(wide: Tensor, inverse: Tensor, size: int) -> Tensor:
    """[groups]: by how much the error grows when a group goes and the others are refitted, tr(W_g (H⁻¹_gg)⁻¹ W_gᵀ)."""
    groups = torch.arange(wide.shape[1]).view(-1, size)
    blocks = inverse[groups[:, :, None], groups[:, None, :]]
    columns = wide.T.view(-1, size, len(wide))
    return (torch.linalg.solve(blocks, columns) * columns).sum((1, 2))


def refitted(weight: Tensor, moments: Moments, kept: Tensor) -> Tensor:
    """[N, kept] in the weight's type: the columns that, alone, come closest to the outputs of `weight` [N, K]."""
    h = moments.damped
    return torch.linalg.solve(h[kept][:, kept], h[kept] @ weight.detach().double().T).T.to(weight.dtype)


def block_influence(model: Any, sequences: Sequence[Sequence[int]]) -> list[float]:
    """Per block 1 - the mean cosine between what enters it and what leaves it: the least may be missed the least."""
    sums = [0.0] * len(_layers(model))
    with torch.no_grad():
        for tokens in sequences:
            states = model(torch.tensor([list(tokens)]), output_hidden_states=True, use_cache=False).hidden_states
            for index in range(len(sums)):
                cosine = torch.cosine_similarity(states[index].float(), states[index + 1].float(), dim=-1)
                sums[index] += float(1 - cosine.mean()) / len(sequences)
    return sums


@dataclass(frozen=True, slots=True)
class Block:
    """A block's matrices by their module paths, those that give its parts' outputs last."""

    name: str
    attention: tuple[str, ...]
    mlp: tuple[str, ...]

    @property
    def matrices(self) -> tuple[str, ...]:
        """Of both parts."""
        return self.attention + self.mlp


def blocks_of(model: Any) -> list[Block]:
    """The blocks of a model in each of which attention and MLP give nothing where their matrices are zero; else ValueError."""
    layers = _layers(model)
    prefix = _path(model, layers)
    for layer in layers:
        if any(getattr(_sub(layer, name), "bias", None) is not None for name in ("self_attn.o_proj", "mlp.down_proj")):
            raise ValueError(f"structure: the blocks of {type(model).__name__} add biases; they cannot be dropped yet")
    paths = [[f"{prefix}.{index}.{name}" for name in _PROJECTIONS] for index in range(len(layers))]
    return [Block(f"{prefix}.{index}", tuple(names[:4]), tuple(names[4:])) for index, names in enumerate(paths)]


def without_blocks(model: Any, gone: Collection[str]) -> tuple[Any, dict[str, str]]:
    """(a copy of `model` without the blocks of these names, every other block's name -> its name there)."""
    kept = [(index, block.name) for index, block in enumerate(blocks_of(model)) if block.name not in gone]
    if not kept:
        raise ValueError("structure: every block is dropped; a model needs one")
    prefix = kept[0][1].rpartition(".")[0]
    return shrunk(model, {}, blocks=[index for index, _ in kept]), {name: f"{prefix}.{place}" for place, (_, name) in enumerate(kept)}


def shrunk(
    model: Any, known: Mapping[str, Moments], *, num_key_value_heads: int = 0, num_channels: int = 0, blocks: Sequence[int] | None = None
) -> Any:
    """A copy of `model` with fewer key-value heads (their query heads go with them), MLP channels and blocks; 0 and None: all.

    `known`: see `calibrate.moments`. Raises ValueError for layers that are not built as Llama's and for more than there is.
    """
    config = model.config
    layers, kept_blocks = _layers(model), sorted(set(range(config.num_hidden_layers) if blocks is None else blocks))
    heads, channels = num_key_value_heads or config.num_key_value_heads, num_channels or config.intermediate_size
    for name, asked, there in (("key-value heads", heads, config.num_key_value_heads), ("channels", channels, config.intermediate_size)):
        if not 0 < asked <= there:
            raise ValueError(f"structure: {asked} {name} of {there} cannot be kept; give 1 to {there}")
    if not kept_blocks or kept_blocks[-1] >= config.num_hidden_layers:
        raise ValueError(f"structure: blocks {list(blocks or [])} cannot be kept of {config.num_hidden_layers}; number them from 0")
    smaller = type(model)(_resized(config, heads, channels, kept_blocks)).to(model.dtype)
    state = {name: tensor for name, tensor in model.state_dict().items() if ".layers." not in name}
    prefix = _path(model, layers)
    for place, index in enumerate(kept_blocks):
        old = f"{prefix}.{index}"
        tensors = dict(layers[index].state_dict())
        _drop_heads(tensors, known.get(f"{old}.self_attn.o_proj"), config, heads)
        _drop_channels(tensors, known.get(f"{old}.mlp.down_proj"), channels)
        state |= {f"{prefix}.{place}.{name}": tensor for name, tensor in tensors.items()}
    smaller.load_state_dict(state)
    return smaller.eval()


def _layers(model: Any) -> nn.ModuleList:
    layers = getattr(model.base_model, "layers", None)
    if not layers or any(not isinstance(_sub(layer, name), nn.Linear) for layer in layers for name in _PROJECTIONS):
        raise ValueError(f"structure: the layers of {type(model).__name__} are not built as Llama's; heads and channels cannot be dropped")
    assert isinstance(layers, nn.ModuleList)
    return layers


def _path(model: Any, layers: nn.ModuleList) -> str:
    return next(name for name, module in model.named_modules() if module is layers)


def _sub(layer: nn.Module, name: str) -> nn.Module | None:
    return dict(layer.named_modules()).get(name)


def _resized(config: Any, heads: int, channels: int, blocks: list[int]) -> Any:
    resized = copy.deepcopy(config)
    resized.head_dim = _head_dim(config)
    resized.num_attention_heads = config.num_attention_heads // config.num_key_value_heads * heads
    resized.num_key_value_heads, resized.intermediate_size, resized.num_hidden_layers = heads, channels, len(blocks)
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:  # layer_types, no_rope_layers: one entry per block
            setattr(resized, name, [value[index] for index in blocks])
    return resized


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _drop_heads(tensors: dict[str, Tensor], known: Moments | None, config: Any, num_kept: int) -> None:
    """Keep `num_kept` key-value heads of a layer, with the query heads that read them, and refit the output projection."""
    if num_kept == config.num_key_value_heads:
        return
    head_dim, group = _head_dim(config), config.num_attention_heads // config.num_key_value_heads
    weight = tensors["self_attn.o_proj.weight"]
    known = known or Moments.identity(weight.shape[1])
    kept = worth_keeping(weight, known, group * head_dim, num_kept)
    queries, keys = (torch.tensor([h * size + c for h in kept for c in range(size)]) for size in (group * head_dim, head_dim))
    tensors["self_attn.o_proj.weight"] = refitted(weight, known, queries)
    for names, rows in ((("q_proj",), queries), (("k_proj", "v_proj"), keys)):
        for name in (f"self_attn.{projection}.{part}" for projection in names for part in ("weight", "bias")):
            if name in tensors:
                tensors[name] = tensors[name][rows]


def _drop_channels(tensors: dict[str, Tensor], known: Moments | None, num_kept: int) -> None:
    """Keep `num_kept` channels of a layer's MLP and refit the down projection."""
    weight = tensors["mlp.down_proj.weight"]
    if num_kept == weight.shape[1]:
        return
    known = known or Moments.identity(weight.shape[1])
    kept = torch.tensor(worth_keeping(weight, known, 1, num_kept))
    tensors["mlp.down_proj.weight"] = refitted(weight, known, kept)
    for name in (f"mlp.{projection}.{part}" for projection in ("gate_proj", "up_proj") for part in ("weight", "bias")):
        if name in tensors:
            tensors[name] = tensors[name][kept]
