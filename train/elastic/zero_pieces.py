"""The pieces of a DeepSpeed engine: where ZeRO keeps which stretch of which parameter, and how its masters reach the model again.

Promise: the layouts of stages 1 to 3 (partitioned by group, partitioned by parameter) as the same list of pieces.
Price: reads DeepSpeed's own attributes, which no documentation fixes; tests hold them for the release in constraints.txt.
Source: deepspeed/utils/tensor_fragment.py, runtime/zero/stage3.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from train.elastic.pieces import Piece

__all__ = ["publish_masters", "zero_pieces"]


def zero_pieces(engine: Any, rename: Callable[[str], str]) -> list[Piece]:
    """What this worker's engine holds; `rename` gives a parameter of the engine's module its name in checkpoints."""
    named = [(rename(name), p) for name, p in engine.module.named_parameters() if p.requires_grad]
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return _by_parameter(optimizer, named)
    return _by_group(optimizer, _flat_groups(optimizer), named)


def publish_masters(engine: Any) -> None:
    """Bring what was loaded into the masters to the model's own parameters; all workers must call it."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if kept := optimizer.persistent_parameters:
            kept[0].partition(kept, has_been_updated=False)
            kept[0].all_gather(kept)
    else:
        optimizer._hp_optimizer_states_linked = False  # its views of the optimizer's state may be of tensors that are gone
        optimizer.update_lp_params()


def _by_parameter(optimizer: Any, named: list[tuple[str, Any]]) -> list[Piece]:
    """Stage 3: each parameter is cut into equal parts, the last of them padded."""
    found, inner = [], optimizer.optimizer
    for name, parameter in named:
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        master = optimizer.fp32_partitioned_groups_flat[group]
        start = size * optimizer._get_param_partition_rank(parameter)
        count = min(size, parameter.ds_numel - start)
        if count > 0:
            found.append(Piece(name, start, count, master, offset, inner.state[master], scalars_on=_scalars_on(inner, master)))
    return found


def _by_group(optimizer: Any, flat: list[torch.Tensor], named: list[tuple[str, Any]]) -> list[Piece]:
    """Stages 1 and 2: the parameters of a group in a row, cut into equal parts wherever the cuts fall."""
    found, inner = [], optimizer.optimizer
    for name, parameter in named:
        if (mapping := parameter._hp_mapping) is not None:
            master = flat[mapping.param_group_index]
            place, here = mapping.lp_fragment_address, mapping.hp_fragment_address
            found.append(
                Piece(name, place.start, place.numel, master, here.start, inner.state[master], scalars_on=_scalars_on(inner, master))
            )
    return found


def _flat_groups(optimizer: Any) -> list[torch.Tensor]:
    """The masters of stages 1 and 2, one flat part a group; stage 1 in bfloat16 is another class with another name for them."""
    return list(getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_groups_flat_partition)


def _scalars_on(inner: Any, master: torch.Tensor) -> str | None:
    """Where the optimizer keeps its count of steps: torch's fused kernels beside the weights, its others on the processor."""
    if not type(inner).__module__.startswith("torch."):
        return None
    return str(master.device) if any(group.get("fused") for group in inner.param_groups) else "cpu"
