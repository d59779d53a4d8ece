"""What the pipelines that have no package of their own can be told; every field's docstring is its help text."""

from __future__ import annotations

from cluster.settings import settings

__all__ = ["TokenizeConfig"]

_MOST_SEGMENTS = 65_535


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
    """Documents are packed with others within about this many sequences of them in order: more pads less, fewer keeps order closer."""
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
