"""A transformers model as what divergences are measured with: one text at a time, everything recomputed."""

from __future__ import annotations

import torch


class Plain:
    """A scorer (`divergence.Scorer`) and its own greedy decoding, which no batch, cache or kernel of ours has touched."""

    def __init__(self, model):
        self.model = model.eval()

    def logits(self, tokens):
        with torch.no_grad():
            return self.model(torch.tensor([tokens])).logits[0]

    def greedy(self, prompt, num_tokens):
        tokens = list(prompt)
        for _ in range(num_tokens):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]
