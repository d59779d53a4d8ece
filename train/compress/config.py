"""Settings of `sterna compress`: which model, judged on which prompts, compressed how.

Promise: a wrong setting is one line before any model is loaded. Price: none; this file imports neither ray nor torch.
"""

from __future__ import annotations

from dataclasses import field

from cluster.settings import settings
from serve.engine.config import EngineConfig

__all__ = ["METHODS", "CompressConfig"]

METHODS = ("int8",)


@settings
class CompressConfig:
    """Compress a model's weights and certify what that does to its tokens."""

    model: str
    """Folder of the model to compress: from pretrain or tune, or any Hugging Face folder of a causal language model."""
    output: str = "runs/compress"
    """Folder to write: a Hugging Face folder in the compressed-tensors format, with compression.json beside it."""
    prompts: str = ""
    """jsonl(.gz) file with `prompt` or `messages` per line: the held-out prompts that the certificate is about."""
    tokens: str = ""
    """Tokens folder (from tokenize): prompts are then the beginnings of its held-out documents. Give this or --prompts."""
    method: str = "int8"
    """What the weights become. int8: symmetric, one scale per output channel, round to nearest, every linear layer."""
    lm_head: bool = False
    """Also compress the output layer, where it is not tied to the embedding; kept by default, since it is the most sensitive one."""
    num_prompts: int = 64
    """Prompts to judge on, drawn by --seed where there are more; intervals shrink with its square root."""
    prompt_tokens: int = 64
    """Length in tokens of the prompts cut from held-out documents; prompts from a file are used whole."""
    completion_tokens: int = 64
    """Length in tokens of the original's greedy completions; the first divergent token is censored there."""
    seed: int = 0
    """Draws the prompts and the bootstrap."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The judging engine's settings (threads, memory for KV); its number type is the judging's own business."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: {self.method!r} is not one of {', '.join(METHODS)}")
        if bool(self.prompts) == bool(self.tokens):
            raise ValueError("prompts: give either --prompts FILE.jsonl or --tokens FOLDER, and not both, to judge the compressed model on")
        if self.engine.kernels == "native":
            raise ValueError("engine.kernels: native kernels run bfloat16 only, and the judging needs float32 too; use auto or torch")
        for name in ("num_prompts", "prompt_tokens", "completion_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
