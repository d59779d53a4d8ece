"""What the pipelines that have no package of their own can be told; every field's docstring is its help text.

Promise: frozen data; a wrong setting is one line before anything is read. Price: none; this file imports neither ray nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from cluster.price_book import own_prices
from cluster.settings import settings
from serve.engine.config import EngineConfig
from serve.engine.request import Sampling

__all__ = ["DrillConfig", "GenerateConfig", "JourneyConfig", "ReportConfig", "TokenizeConfig", "TrialConfig"]

_MOST_SEGMENTS = 65_535
_DRILL_PROMPTS = (
    "def add(left, right):\n",
    "import os\nimport sys\n\n\ndef main():\n",
    "class Stack:\n    def __init__(self):\n",
    "The quick brown fox",
    "for index, line in enumerate(lines):\n",
    "def read_file(path):\n    with open(path) as handle:\n",
)


@settings
class TokenizeConfig:
    """From a corpus to token shards: train a tokenizer or take one, tokenise, pack into sequences of one length."""

    corpus: str
    """Folder that `sterna curate` made."""
    output: str
    """Folder to write tokenizer, shards and held-out documents to: a local path or s3://bucket/folder."""
    tokenizer: str | None = None
    """Use the tokenizer in this Hugging Face folder (tokenizer.json, tokenizer_config.json) instead of training one."""
    vocab_size: int = 8192
    """Entries of the tokenizer that is trained, the 256 bytes and the special tokens included."""
    sample_bytes: int = 16_000_000
    """Train the tokenizer on about this many characters of the corpus, chosen by hash: more changes little and takes longer."""
    length: int = 512
    """Tokens in a sequence; a longer document becomes several segments."""
    held_out: float = 0.02
    """Share of the documents kept out of training, as text, for evaluation; chosen by the hash of their ids, so always the same."""
    bucket_sequences: int = 1024
    """Documents are packed with others within about this many sequences of them in order: more pads less, fewer keeps order closer.
    A corpus that `sterna curate` put in order is packed in 64 buckets a shard, or more, whatever this allows."""
    shard_sequences: int = 65_536
    """About how many sequences a shard file holds; a task holds one shard's tokens in memory."""
    seed: int = 0
    """Of the order of the documents and of the tokenizer's sample."""

    def __post_init__(self) -> None:
        if self.vocab_size < 512:
            raise ValueError(f"vocab_size: is {self.vocab_size}; give at least 512 (256 bytes, the special tokens and some merges)")
        if not 8 <= self.length <= _MOST_SEGMENTS:
            raise ValueError(f"length: is {self.length}; give 8 to {_MOST_SEGMENTS}, what a 16-bit segment id can number")
        if not 0.0 <= self.held_out < 1.0:
            raise ValueError(f"held_out: is {self.held_out}; give a share from 0 to below 1")
        for name, value in (
            ("sample_bytes", self.sample_bytes),
            ("bucket_sequences", self.bucket_sequences),
            ("shard_sequences", self.shard_sequences),
        ):
            if value < 1:
                raise ValueError(f"{name}: is {value}; give at least 1")


@settings
class GenerateConfig:
    """Answer every row of a data set with a model: offline batch inference, each row exactly once."""

    model: str
    """Model folder: from pretrain, tune or compress, or any Hugging Face folder."""
    input: str
    """parquet or jsonl (.gz, .zst) with a prompt per row: a file, a folder or a glob, local or s3://."""
    adapter: str = ""
    """LoRA adapter to answer with, a folder that `tune --no-merge` or peft wrote for this model; by default the model as it is."""
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
    node_prices: Mapping[str, float] = field(default_factory=dict)
    """Dollars an hour of a machine, for `spot`, `on-demand` or an instance type, instead of AWS's prices: what the run costs is shown."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The engine's own settings."""

    def __post_init__(self) -> None:
        own_prices(self.node_prices)  # ValueError for what is no price
        if self.batch_size < 1:
            raise ValueError(f"batch_size: must be at least 1, not {self.batch_size}")
        for name in ("concurrency", "cpus_per_engine"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 (from the cluster) or more, not {getattr(self, name)}")
        if self.engine.adapters:
            raise ValueError("engine.adapters: a row cannot name one; give the adapter that answers all rows as --adapter")
        self.sampling()

    def sampling(self, seed: int | None = None) -> Sampling:
        """How a row's tokens are drawn; ValueError for a setting that is out of range."""
        return Sampling(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=seed, stop=self.stop
        )  # fmt: skip


@settings
class DrillConfig:
    """A fire drill: machines are taken from under running streams, once with notice and once without."""

    model: str
    """The model's folder: a small one, for three replicas of it share this machine."""
    output: str = "runs/drill"
    """Where the drill's figures go."""
    streams: int = 10
    """Client connections open at once at each of the two events; every fifth asks for two choices."""
    tokens: int = 240
    """Tokens per stream, or fewer where the model's context is short: long enough that the event finds it in the middle."""
    notice_s: float = 4.0
    """Seconds between the notice and the machine's end, at the first event."""
    prompts: tuple[str, ...] = _DRILL_PROMPTS
    """What the streams go on from, in turn."""
    seed: int = 0
    """Seed of the sampled streams."""
    engine: EngineConfig = EngineConfig(dtype="float64", num_threads=1, max_sequences=32)
    """How the replicas run the model: in float64 a stream's tokens do not depend on its company to the last bit."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model: is empty; name the folder of a model")
        if self.streams < 3:
            raise ValueError(f"streams: {self.streams} leave some of the three machines idle; use at least 3")
        if self.tokens < 50:
            raise ValueError(f"tokens: {self.tokens} are over before anything can happen; use at least 50")
        if self.notice_s < 1:
            raise ValueError(f"notice_s: {self.notice_s} is too short to be noticed; use at least 1")
        if not self.prompts or not all(self.prompts):
            raise ValueError("prompts: give at least one, none of them empty")


@settings
class TrialConfig:
    """Serve a model and measure it over HTTP, with and without drafts."""

    model: str
    """Model folder to serve."""
    prompts: str
    """jsonl file with a `prompt` on each line."""
    output: str
    """Folder for the measurements."""
    concurrency: tuple[int, ...] = (1, 8)
    """Numbers of clients that stream at the same time, one measurement each."""
    num_requests: int = 16
    """Requests in each measurement."""
    max_tokens: int = 128
    """Tokens asked of each request."""
    engine: EngineConfig = EngineConfig()
    """The engine's settings; `draft` is measured both as given and off."""

    def __post_init__(self) -> None:
        if self.num_requests < 1 or self.max_tokens < 1 or not self.concurrency or min(self.concurrency) < 1:
            raise ValueError("num_requests, max_tokens and every concurrency must be at least 1")


@settings
class ReportConfig:
    """Draw stage folders as one page."""

    folders: tuple[str, ...] = ()
    """Stage folders (each with its manifest.json), in the order of the page."""
    output: str = "report.html"
    """The page: one file that needs nothing else."""
    title: str = "Sterna"
    """Heading of the page."""

    def __post_init__(self) -> None:
        if not self.folders:
            raise ValueError("no folders given; name the stage folders to draw, such as runs/journey/*")


@settings
class JourneyConfig:
    """Every stage, one after the other."""

    output: str = "runs/journey"
    """Folder that receives one folder per stage, and report.html."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The stages' own settings, by stage; a TOML file's tables. The journey itself wires inputs and outputs."""
    num_prompts: int = 200
    """Prompts for the service trial and for batch inference, cut from held-out documents."""
    until: str = ""
    """Stop after this stage (default: go all the way)."""
