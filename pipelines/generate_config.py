"""Settings of `sterna generate`: which model answers which rows, and how its tokens are drawn.

Promise: a wrong setting is one line before anything is read. Price: none; this file imports neither ray nor torch.
"""

from __future__ import annotations

from dataclasses import field

from cluster.settings import settings
from serve.engine.config import EngineConfig
from serve.engine.request import Sampling

__all__ = ["GenerateConfig"]


@settings
class GenerateConfig:
    """Answer every row of a data set with a model: offline batch inference, each row exactly once."""

    model: str
    """Model folder: from pretrain, tune or compress, or any Hugging Face folder."""
    input: str
    """parquet or jsonl (.gz, .zst) with a prompt per row: a file, a folder or a glob, local or s3://."""
    output: str = "runs/rows"
    """Folder to write: parquet in the input's order, its columns and row, output, finish_reason, usage, error."""
    prompt_column: str = ""
    """Column that holds the prompt: a text, or a list of messages (role, content); by default `prompt`, else `messages`."""
    max_tokens: int = 128
    """The most tokens per answer."""
    temperature: float = 0.0
    """0 takes the likeliest token; 1 samples from the model as it is. In bfloat16 near ties may fall either way, since rows share steps;
    engine.dtype=float32 makes that rare."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens that holds this much probability."""
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0 means all."""
    seed: int = 0
    """Every row draws with its own seed, made of this one and its position: a rerun draws with the same."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""
    batch_size: int = 16
    """Rows that are handed out and written together; an engine works on several such batches at once, so small ones cost little."""
    concurrency: int = 0
    """Engines at most; 0 is as many as the cluster has room for."""
    cpus_per_engine: int = 0
    """CPUs of an engine, and its threads; 0 is half of the smallest machine's, at most 8: two engines waste less than twice the threads."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The engine's own settings."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: must be at least 1, not {self.batch_size}")
        for name in ("concurrency", "cpus_per_engine"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 (from the cluster) or more, not {getattr(self, name)}")
        self.sampling()

    def sampling(self, seed: int | None = None) -> Sampling:
        """How a row's tokens are drawn; ValueError for a setting that is out of range."""
        return Sampling(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=seed, stop=self.stop
        )  # fmt: skip
