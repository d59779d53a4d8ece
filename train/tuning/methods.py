"""The ways of tuning: how each attaches to a model, how it is folded back, and how it is written alone.

Promise: after `attach` the model computes what it computed before (but for learnt prompts, which begin as text drawn from the
vocabulary), and only what the method trains requires gradients; `merge` gives a plain model that computes the same as the tuned one.
Price: peft's layers beside the model's. Sources: train/tuning/config.py names each method's paper; peft carries out all but full,
bitfit and adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptLearningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import nn
from transformers import PreTrainedModel

from train.loss import Objective, objective_of
from train.model_folder import first_line
from train.tuning.biases import with_biases
from train.tuning.bottleneck import bypassed, with_bottlenecks
from train.tuning.config import TuneConfig
from train.tuning.embeddings import with_updates, without_updates
from train.tuning.folder import peft_quiet, write_biases, write_bottlenecks, write_low_rank, write_ranks
from train.tuning.preference_loss import PreferenceLoss
from train.tuning.prompted import Prompted
from train.tuning.ranks import AdaptiveRanks, Budget

__all__ = ["METHODS", "Method", "attach", "objective"]

_SPARE_RANKS = 1.5  # AdaLoRA begins with so many times the ranks that it ends with
_TARGETED = frozenset({"lora", "dora", "rslora", "ia3", "adalora", "adapter"})
"""The methods that adapt modules by name."""
_FEEDFORWARD = ("down_proj", "fc2", "w2", "dense_4h_to_h", "wo")  # (IA)³ scales the input of these, and the output of all others


@dataclass(frozen=True, slots=True)
class Method:
    """One way of tuning."""

    attach: Callable[[PreTrainedModel, TuneConfig, int], nn.Module]
    """(model, settings, steps of the run) -> the model with what is trained of it."""
    merge: Callable[[Any], PreTrainedModel] | None
    """Fold the update into the weights; None where the architecture has no place for it."""
    write: Callable[[Any, Path], None] | None
    """Write what was trained, alone; None where that is everything."""


def attach(model: PreTrainedModel, config: TuneConfig, steps: int) -> nn.Module:
    """`model`, changed in place, with what `config.method` trains of it; first weights are drawn from `config.seed`.

    Raises ValueError when the method or its targets do not fit the model.
    """
    if config.targets and config.method not in _TARGETED:
        raise ValueError(f"targets: {config.method} adapts no modules; leave them out, or take one of {', '.join(sorted(_TARGETED))}")
    if config.method == "adalora" and config.precision == "float16":
        raise ValueError("precision: adalora judges updates by their gradients, which float16 scales and drops; take bfloat16 or float32")
    torch.manual_seed(config.seed)
    return METHODS[config.method].attach(model, config, steps)


def objective(tuned: nn.Module, config: TuneConfig, steps: int) -> Objective:
    """What is asked of what `attach` gave, in a run of so many steps."""
    if config.objective == "preferences":
        return PreferenceLoss(tuned, config.beta)
    return AdaptiveRanks(tuned, Budget.of(tuned, steps)) if config.method == "adalora" else objective_of(tuned)


def _full(model: PreTrainedModel, config: TuneConfig, steps: int) -> nn.Module:
    return model.requires_grad_(True)


def _peft(make: Callable[[TuneConfig, int], PeftConfig]) -> Callable[[PreTrainedModel, TuneConfig, int], PeftModel]:
    def attached(model: PreTrainedModel, config: TuneConfig, steps: int) -> PeftModel:
        settings = make(config, steps)
        if isinstance(settings, LoraConfig) and not config.targets:
            settings.exclude_modules = bypassed(model) or None
        if isinstance(settings, PromptLearningConfig):  # peft knows some of the names that families have for it
            settings.num_attention_heads = getattr(model.config, "num_attention_heads", None)
        try:
            with peft_quiet():
                return get_peft_model(model, settings)
        except ValueError as error:
            if config.method == "ia3" and not config.targets:
                raise ValueError(f"targets: nobody has said which modules of {model.config.model_type} ia3 scales; name them") from None
            where = f"targets: {' '.join(config.targets)}" if config.targets else f"method: {config.method} for {model.config.model_type}"
            raise ValueError(f"{where}: {first_line(error)}") from None

    return attached


def _low_rank(**kind: bool) -> Callable[[PreTrainedModel, TuneConfig, int], PeftModel]:
    def make(config: TuneConfig, steps: int) -> PeftConfig:
        return LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, **_shared(config), **kind)

    def attached(model: PreTrainedModel, config: TuneConfig, steps: int) -> PeftModel:
        tuned = _peft(make)(model, config, steps)
        if config.adapts_embeddings:
            with_updates(model, config.rank, config.alpha / (math.sqrt(config.rank) if kind.get("use_rslora") else config.rank))
        return tuned

    return attached


def _shared(config: TuneConfig) -> dict[str, Any]:
    return {"target_modules": list(config.targets) or "all-linear", "task_type": "CAUSAL_LM"}


def _scales(config: TuneConfig, steps: int) -> PeftConfig:
    feedforward = [name for name in config.targets if name in _FEEDFORWARD]
    return IA3Config(task_type="CAUSAL_LM", target_modules=list(config.targets) or None, feedforward_modules=feedforward or None)


def _adaptive(config: TuneConfig, steps: int) -> PeftConfig:
    return AdaLoraConfig(
        init_r=round(_SPARE_RANKS * config.rank),
        target_r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        total_step=max(2, steps),
        **_shared(config),
    )


def _prompt(config: TuneConfig, steps: int) -> PeftConfig:
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=config.virtual_tokens, prompt_tuning_init="SAMPLE_VOCAB")


def _encoded_prompt(config: TuneConfig, steps: int) -> PeftConfig:
    return PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=config.virtual_tokens)


def _prompted(make: Callable[[TuneConfig, int], PeftConfig]) -> Callable[[PreTrainedModel, TuneConfig, int], nn.Module]:
    def attached(model: PreTrainedModel, config: TuneConfig, steps: int) -> nn.Module:
        return Prompted(_peft(make)(model, config, steps))

    return attached


def _prefix(model: PreTrainedModel, config: TuneConfig, steps: int) -> nn.Module:
    tokens = torch.randint(model.config.vocab_size, (1, config.virtual_tokens), device=model.device)
    try:
        with torch.no_grad():
            cache = model(input_ids=tokens, use_cache=True).past_key_values
        pairs = [torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers]  # each [2, heads, tokens, width]
        drawn = torch.stack(pairs).permute(3, 0, 1, 2, 4).flatten(1)  # [tokens, layers · 2 · heads · width]
    except (AttributeError, TypeError, RuntimeError):
        raise ValueError(f"method: prefix needs attention of one shape in every layer, which {model.config.model_type} has not") from None
    settings = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=config.virtual_tokens)
    peft = _peft(lambda _config, _steps: settings)(model, config, steps)
    encoder = peft.prompt_encoder[peft.active_adapter]
    encoder.load_prompt_embeddings(drawn.float())
    return Prompted(peft)


def _with_biases(model: PreTrainedModel, config: TuneConfig, steps: int) -> nn.Module:
    return with_biases(model)


def _with_bottlenecks(model: PreTrainedModel, config: TuneConfig, steps: int) -> nn.Module:
    return with_bottlenecks(model, config.rank, config.targets)


def _itself(model: PreTrainedModel) -> PreTrainedModel:
    return model


def _fold(model: PeftModel) -> PreTrainedModel:
    without_updates(model.get_base_model())  # first: peft looks whether the output layer still is the embedding
    return model.merge_and_unload()


def _save(model: PeftModel, folder: Path) -> None:
    model.save_pretrained(folder)


def _save_prompt(model: Prompted, folder: Path) -> None:
    model.peft.save_pretrained(folder)


METHODS: dict[str, Method] = {
    "full": Method(_full, _itself, None),
    "lora": Method(_low_rank(), _fold, write_low_rank),
    "dora": Method(_low_rank(use_dora=True), _fold, _save),
    "rslora": Method(_low_rank(use_rslora=True), _fold, write_low_rank),
    "ia3": Method(_peft(_scales), _fold, _save),
    "adalora": Method(_peft(_adaptive), _fold, write_ranks),
    "prompt": Method(_prompted(_prompt), None, _save_prompt),
    "prefix": Method(_prefix, None, _save_prompt),
    "p_tuning": Method(_prompted(_encoded_prompt), None, _save_prompt),
    "bitfit": Method(_with_biases, _itself, write_biases),
    "adapter": Method(_with_bottlenecks, None, write_bottlenecks),
}
"""By the names of `TuneConfig.method`; `TRAITS` says of each what can be known without a model."""
