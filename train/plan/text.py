"""What a tokens folder offers to a plan, by its own account and by how far its text can be compressed.

Promise: what its manifest lacks is named in one line. Price: a megabyte of text is decoded and compressed.
"""

from __future__ import annotations

from pathlib import Path

from cluster.artifact import Artifact
from train.plan.outlook import Data

__all__ = ["data_of"]


def data_of(tokens: Artifact) -> Data:
    """The tokens folder's own account of itself; ValueError naming what its manifest lacks."""
    metrics = tokens.manifest.metrics
    try:
        return Data(
            num_sequences=int(metrics["num_sequences"]),
            sequence_length=int(metrics["sequence_length"]),
            vocab_size=int(metrics["vocab_size"]),
            bytes_per_token=float(metrics["bytes_per_token"]),
            zstd_bits_per_byte=_compressed_bits(tokens.local()),
            padding_share=float(metrics.get("padding_share", 0.0)),
        )
    except KeyError as error:
        raise ValueError(f"{tokens.uri}: its manifest has no {error.args[0]!r}; run `sterna tokenize` again") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{tokens.uri}: its manifest was changed by hand ({error}); run `sterna tokenize` again") from None


def _compressed_bits(folder: Path) -> float:
    """Bits per byte of about a megabyte of the training text, spread over it, as zstd (level 19) shrinks it."""
    import numpy as np
    import zstandard
    from tokenizers import Tokenizer

    from train.corpus import Sequences

    sequences = Sequences.open(folder)
    count = min(len(sequences), max(1, 300_000 // sequences.sequence_length))
    ids = sequences.batch(np.linspace(0, len(sequences) - 1, count).astype(np.int64)).input_ids
    text = "\n".join(Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")).decode_batch(ids.tolist())).encode()[:1_000_000]
    return 8 * len(zstandard.ZstdCompressor(level=19).compress(text)) / max(1, len(text))
