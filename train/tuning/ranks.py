"""AdaLoRA: low-rank updates that compete for a budget of ranks, at any number of workers and over restarts.

Promise: importance, budget and pruning as in the paper and in peft's own allocator (a test holds the two equal), but from gradients
summed over micro-batches and workers, and with a memory that checkpoints hold. Price: the updates' gradients a second time and one
small all-reduce a step; every worker keeps the updates whole (ZeRO stage 0).
Source: AdaLoRA (arXiv 2303.10512); peft keeps its matrices P Λ Q as lora_B, lora_E and lora_A.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from peft import PeftModel
from torch import Tensor, nn

from train.corpus import IGNORED
from train.loss import CausalLoss

__all__ = ["AdaptiveRanks", "Budget"]

_SMOOTHING = 0.85  # of sensitivity and of its uncertainty, both as in the paper
_ORTHOGONAL = 0.5  # weight of the penalty that keeps P and Q orthogonal, as in peft


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How many ranks all updates together may keep, by the number of steps done."""

    first: int
    last: int
    steps: int
    """Of the whole run."""

    @property
    def begin(self) -> int:
        """Steps before pruning begins: a tenth."""
        return self.steps // 10

    @property
    def end(self) -> int:
        """Steps after which the choice is final: seven tenths."""
        return max(self.begin + 1, self.steps * 7 // 10)

    @classmethod
    def of(cls, model: PeftModel, steps: int) -> Budget:
        """That of an AdaLoRA model of peft's, in a run of so many steps."""
        settings, count = model.active_peft_config, len(dict(_updates(model)))
        return cls(first=settings.init_r * count, last=settings.target_r * count, steps=max(2, steps))

    def at(self, step: int) -> int:
        """The cubic descent from `first` to `last`.

        >>> [Budget(first=24, last=16, steps=20).at(step) for step in (2, 5, 8, 14, 20)]
        [24, 20, 17, 16, 16]
        """
        left = 1 - (min(max(step, self.begin), self.end) - self.begin) / (self.end - self.begin)
        return int((self.first - self.last) * left**3 + self.last)


class AdaptiveRanks(CausalLoss):
    """Next-token prediction that prunes the least important singular values of its model's updates after each step."""

    def __init__(self, model: PeftModel, budget: Budget) -> None:
        super().__init__(model)
        self.budget = budget
        self._parts = dict(_updates(model))
        for index, (_, parameter) in enumerate(self._named()):
            for kind in ("sensitivity", "uncertainty", "gradient"):
                self.register_buffer(f"{kind}_{index}", torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False))
            parameter.register_hook(_adding_to(self, f"gradient_{index}"))
        for index, name in enumerate(self._parts):
            self.register_buffer(f"kept_{index}", torch.ones(len(self._parts[name]["lora_E"])))
        self.register_buffer("steps_done", torch.zeros(1))

    def forward(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        """Σ −log p, with the gradient of the orthogonality penalty: each target carries its share, the value is the likelihood's alone."""
        nll = super().forward(input_ids, labels, position_ids)
        if not self.training:
            return nll
        penalty = _ORTHOGONAL * (labels != IGNORED).sum() * self._skewness()
        return nll + (penalty - penalty.detach())

    def kept(self) -> dict[str, Tensor]:
        """Module name -> which of its singular values are left (1, else 0)."""
        return {name: getattr(self, f"kept_{index}") for index, name in enumerate(self._parts)}

    def memory(self) -> dict[str, Tensor]:
        """See Objective."""
        return {f"adalora.{name}": buffer for name, buffer in self.named_buffers(recurse=False)}

    @torch.no_grad()
    def after_step(self) -> None:
        """Take note of the step's gradients; prune to the budget."""
        self.steps_done += 1
        step = int(self.steps_done)
        if step < self.budget.end:
            self._observe()
        if self.budget.begin < step <= self.budget.end:
            self._choose(self.budget.at(step))
        for name, kept in self.kept().items():
            self._parts[name]["lora_E"].mul_(kept[:, None])

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parts in self._parts.items():
            for part, parameter in parts.items():
                yield f"{name}.{part}", parameter

    def _observe(self) -> None:
        """Sensitivity |w · ∂loss/∂w| and how uncertain it is, both smoothed over steps."""
        distributed = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        for index, (_, parameter) in enumerate(self._named()):
            gradient = getattr(self, f"gradient_{index}")
            if distributed:
                torch.distributed.all_reduce(gradient)
            now = (parameter * gradient).abs().to(gradient.dtype)
            sensitivity, uncertainty = getattr(self, f"sensitivity_{index}"), getattr(self, f"uncertainty_{index}")
            sensitivity.lerp_(now, 1 - _SMOOTHING)
            uncertainty.lerp_((now - sensitivity).abs(), 1 - _SMOOTHING)
            gradient.zero_()

    def _choose(self, budget: int) -> None:
        """Keep the `budget` most important triplets (a singular value with its two vectors) over all updates."""
        scores = self._importance()
        ranked = torch.cat(list(scores.values())).sort(descending=True).values
        bound = ranked[budget] if budget < len(ranked) else -torch.inf
        for name, kept in self.kept().items():
            kept.copy_(scores[name] > bound)

    def _importance(self) -> dict[str, Tensor]:
        """Module -> importance of each of its triplets: of its value, and the means over its two vectors."""
        scores: dict[str, dict[str, Tensor]] = {name: {} for name in self._parts}
        for index, (name, _) in enumerate(self._named()):
            module, _, part = name.rpartition(".")
            scores[module][part] = getattr(self, f"sensitivity_{index}") * getattr(self, f"uncertainty_{index}")
        return {m: s["lora_E"].view(-1) + s["lora_A"].mean(dim=1) + s["lora_B"].mean(dim=0) for m, s in scores.items()}

    def _skewness(self) -> Tensor:
        """Mean distance of QQᵀ and PᵀP from the identity."""
        grams = [a @ a.T for a in (parts["lora_A"] for parts in self._parts.values())]
        grams += [b.T @ b for b in (parts["lora_B"] for parts in self._parts.values())]
        return torch.stack([torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)) for gram in grams]).mean()


def _updates(model: PeftModel) -> Iterator[tuple[str, dict[str, nn.Parameter]]]:
    """(module name in the base model, its three matrices) of every adapted layer."""
    adapter = model.active_adapter
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_E") and adapter in module.lora_E:
            yield name, {part: getattr(module, part)[adapter] for part in ("lora_A", "lora_B", "lora_E")}


def _adding_to(owner: nn.Module, buffer: str) -> Any:
    """A hook that adds each gradient to a buffer, looked up when it is called, for buffers move with their module."""

    def add(gradient: Tensor) -> None:
        getattr(owner, buffer).add_(gradient)

    return add
