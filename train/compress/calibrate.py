"""What can be compressed in a model, and what its matrices read: the second moments of their inputs on calibration text.

Promise: `moments` makes one pass without gradients; matrices that read the same tensor (query, key and value; gate and up) share one
sum. The tied matrix of a model counts once, as the output layer, whose inputs are the last hidden states. Price: the forward pass
without its output layer, 2 K^2 operations per token and distinct input of K numbers, and K^2 float32 held for each.
Sources: the layer-wise Hessian 2 X X^T of GPTQ (arXiv 2210.17323) and SparseGPT (2301.00774); Wanda (2306.11695) needs its diagonal,
SVD-LLM (2403.07378) its Cholesky factor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn

from train.compress.options import Option, fitting_group, stored_bytes

__all__ = ["CompressibleMatrix", "Moments", "matrices", "moments", "weight_of"]

_BATCH_TOKENS = 2048
_DAMPING = 0.01
"""GPTQ's: this share of the mean of the diagonal is added to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressibleMatrix:
    """A weight that an option can be chosen for."""

    name: str
    """Module path in the model; the embedding's where the output layer is tied to it."""
    rows: int
    columns: int
    width: int
    """Bytes of one number as it is stored now."""
    role: Literal["linear", "embedding", "head", "tied"]
    """What reads it: a linear layer, the lookup of tokens, the output layer, or the last two of one matrix."""

    @property
    def bytes(self) -> int:
        """On disk, uncompressed."""
        return self.rows * self.columns * self.width

    def stored_bytes(self, option: Option) -> int:
        """On disk under `option`, as `export` writes this matrix: see there for the embedding in 8 bits."""
        size = stored_bytes(option, self.rows, self.columns, self.width)
        if option.kind != "int" or option.bits != 8 or self.role not in ("embedding", "tied"):
            return size
        groups = self.columns // (fitting_group(option.group_size, self.columns) or self.columns)
        scales = self.rows * groups * self.width
        return self.rows * self.columns + (2 * scales if self.role == "tied" else scales)


@dataclass(frozen=True, eq=False)
class Moments:
    """The second moments of a matrix's inputs x [K], and what the methods derive from them, each once.

    The expected squared change of its outputs when W becomes W + D is the sum of the diagonal of D xx Dᵀ.
    """

    xx: Tensor
    """[K, K] float32: the mean of x xᵀ."""
    count: int
    """Over how many x."""

    @classmethod
    def identity(cls, columns: int, device: torch.device | None = None) -> Moments:
        """Of inputs about which nothing is known."""
        return cls(torch.eye(columns, device=device), 0)

    @functools.cached_property
    def damped(self) -> Tensor:
        """[K, K] float64: xx with a share of its mean diagonal added, so that it can be inverted."""
        wide = self.xx.double()
        mean = wide.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        return wide + _DAMPING * mean * torch.eye(len(wide), dtype=wide.dtype, device=wide.device)

    @functools.cached_property
    def order(self) -> Tensor:
        """[K]: columns by falling mean square, GPTQ's activation order: those that matter most are rounded before errors pile up."""
        return self.xx.diagonal().argsort(descending=True, stable=True)

    @functools.cached_property
    def inverse_root(self) -> Tensor:
        """[K, K] float32, upper triangular R with RᵀR = the inverse of `damped`."""
        return _inverse_root(self.damped)

    @functools.cached_property
    def ordered_inverse_root(self) -> Tensor:
        """The same with the columns in `order`."""
        return _inverse_root(self.damped[self.order][:, self.order])

    def let_go(self) -> None:
        """Forget what was derived; it is derived again when it is asked for."""
        for name in ("damped", "order", "inverse_root", "ordered_inverse_root"):
            self.__dict__.pop(name, None)

    def errors(self, change: Tensor) -> Tensor:
        """[N] float32: the expected squared change of each output when the weights change by `change` [N, K].

        >>> Moments(torch.diag(torch.tensor([4.0, 1.0])), 1).errors(torch.tensor([[1.0, 1.0]])).tolist()
        [5.0]
        """
        return ((change @ self.xx) * change).sum(1)


def _inverse_root(positive: Tensor) -> Tensor:
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(positive))
    return torch.linalg.cholesky(inverse, upper=True).float()


def weight_of(model: nn.Module, name: str) -> nn.Parameter:
    """The weight of the module called `name`."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def matrices(model: Any) -> list[CompressibleMatrix]:
    """The weights of a transformers causal language model that an option can be chosen for, in the model's order.

    Linear layers, the embedding, and the output layer where it has a weight of its own. Experts that are stacked in one tensor and
    layers of other kinds (GPT-2's Conv1D) are no linear layers and stay as they are. Raises ValueError when there is no linear layer.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    found = []
    for name, module in model.named_modules():
        if module is embedding and isinstance(module, nn.Embedding):
            found.append(_described(name, module, "tied" if tied else "embedding"))
        elif isinstance(module, nn.Linear) and not (module is head and tied):
            found.append(_described(name, module, "head" if module is head else "linear"))
    if not any(matrix.role == "linear" for matrix in found):
        raise ValueError(f"{type(model).__name__}: no linear layers; this architecture cannot be compressed yet")
    return found


def _described(name: str, module: nn.Linear | nn.Embedding, role: Literal["linear", "embedding", "head", "tied"]) -> CompressibleMatrix:
    rows, columns = module.weight.shape
    return CompressibleMatrix(name=name, rows=rows, columns=columns, width=module.weight.element_size(), role=role)


def moments(
    model: Any, sequences: Sequence[Sequence[int]], names: Iterable[str] | None = None, progress: Callable[[int], object] | None = None
) -> dict[str, Moments]:
    """The moments of the inputs of the matrices called `names` (all by default) on `sequences` of tokens.

    An embedding that is only looked up has no inputs and is left out, as is a module that no token reached. `progress` is told how
    many sequences are done, pass by pass.
    """
    roles = {matrix.name: matrix.role for matrix in matrices(model)}
    wanted = [name for name in (roles if names is None else names) if roles[name] != "embedding"]
    last = {name for name in wanted if roles[name] in ("head", "tied")}
    sums = _Sums()
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(functools.partial(_add, sums, name)) for name in wanted if name not in last
    ]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            for batch in _batches(sequences):
                tokens = torch.tensor(batch, device=device)
                hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
                for name in last:
                    sums.add(name, hidden)
                if progress is not None:
                    progress(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return sums.moments()


class _Sums:
    """Sums of x xᵀ by matrix, one for all that read the same tensor."""

    def __init__(self) -> None:
        self._sum: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}
        self._shared: dict[str, str] = {}
        self._latest: tuple[Tensor, str] | None = None

    def add(self, name: str, x: Tensor) -> None:
        if self._latest is not None and self._latest[0] is x and self._shared.get(name) in (None, self._latest[1]):
            self._shared[name] = self._latest[1]
            return
        self._latest = (x, name)
        flat = x.reshape(-1, x.shape[-1]).float()
        if name in self._sum:
            self._sum[name].addmm_(flat.T, flat)
        else:
            self._sum[name] = flat.T @ flat
        self._count[name] = self._count.get(name, 0) + len(flat)

    def moments(self) -> dict[str, Moments]:
        own = {name: Moments(total / self._count[name], self._count[name]) for name, total in self._sum.items() if self._count[name]}
        return own | {name: own[source] for name, source in self._shared.items()}


def _add(sums: _Sums, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    sums.add(name, inputs[0])


def _batches(sequences: Sequence[Sequence[int]]) -> Iterator[list[list[int]]]:
    """Sequences of one length at a time, so that none is padded."""
    for length, group in groupby(sorted(map(list, sequences), key=len), key=len):
        alike = list(group)
        size = max(1, _BATCH_TOKENS // max(1, length))
        for start in range(0, len(alike) if length else 0, size):
            yield alike[start : start + size]
