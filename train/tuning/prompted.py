"""Prompt, prefix and P-tuning: a learnt beginning that every text is read after.

Promise: to a loss, the model looks like any other decoder; the learnt beginning (embeddings, or each layer's keys and values) is put
ahead of every sequence and taken off its result. Price: its length in every forward pass, and one text per sequence (the loss sees to
that: train/segments.py), since packed segments would not see the sequence's beginning alike.
Sources: arXiv 2104.08691, 2101.00190, 2103.10385; peft keeps the parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutput

__all__ = ["Prompted"]


class Prompted(nn.Module):
    """A peft model of the prompt-learning kind, with the face that `train.loss` knows of a causal model.

    Rows are texts padded on the right, where causal attention does not see the padding; positions count from the learnt beginning.
    """

    def __init__(self, peft: PeftModel) -> None:
        super().__init__()
        self.peft = peft

    @property
    def config(self) -> PretrainedConfig:
        return self.peft.get_base_model().config

    @property
    def num_virtual_tokens(self) -> int:
        """What the learnt beginning takes of the context."""
        return self.peft.active_peft_config.num_virtual_tokens

    @property
    def device(self) -> torch.device:
        return self.peft.device

    def get_output_embeddings(self) -> nn.Module:
        """The base model's output layer."""
        return self.peft.get_base_model().get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """What makes hidden states."""
        return _Below(self.peft)

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        """Logits [B, L, V] of input_ids [B, L]."""
        read = _read_after(self.peft, self.peft.get_base_model(), input_ids)
        return CausalLMOutput(logits=read.logits[:, -input_ids.shape[1] :])


class _Below(nn.Module):
    """The decoder of a peft model of the prompt-learning kind, with the beginning ahead."""

    def __init__(self, peft: PeftModel) -> None:
        super().__init__()
        self.peft = peft

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutputWithPast:
        """Hidden states [B, L, H] of input_ids [B, L]; position ids, which pack segments, do not apply."""
        read = _read_after(self.peft, self.peft.get_base_model().get_decoder(), input_ids)
        return BaseModelOutputWithPast(last_hidden_state=read.last_hidden_state[:, -input_ids.shape[1] :])


def _read_after(peft: PeftModel, reader: nn.Module, input_ids: Tensor) -> Any:
    """What `reader` makes of the texts after the learnt beginning, and, where that is embeddings, of the beginning itself."""
    beginning = peft.get_prompt(batch_size=len(input_ids))
    if peft.active_peft_config.peft_type == "PREFIX_TUNING":
        return reader(input_ids=input_ids, past_key_values=beginning, use_cache=False)
    text = peft.get_base_model().get_input_embeddings()(input_ids)
    return reader(inputs_embeds=torch.cat((beginning.to(text.dtype), text), dim=1), use_cache=False)
