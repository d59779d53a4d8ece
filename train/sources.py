"""What a run trains on: a tokens folder, or several in given shares.

Promise: folders that do not fit together (another tokenizer, another length) are refused in one line before any machine is asked for; the
shares hold at every point of the run, each folder in its own order (train/mixture.py). Price: the tokenizers' files are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.artifact import Artifact, open_artifact

if TYPE_CHECKING:
    from train.corpus import Sequences

__all__ = ["Shares", "open_shares", "sequences_of"]

Shares = tuple[tuple[Artifact, float], ...]
"""Tokens folders and their shares of the sequences that are taken."""


def open_shares(tokens: Artifact, mix: Sequence[str]) -> Shares:
    """The folder `tokens` and those that `mix` names as FOLDER=SHARE; `tokens` has the share that they leave.

    Raises ValueError for a share that is none, and for a folder that is not there or does not fit.
    """
    named = [_read(spec) for spec in mix]
    left = 1.0 - sum(share for _, share in named)
    if left <= 0:
        raise ValueError(f"mix: shares add up to {1 - left:g}; they must leave some of 1 for {tokens.uri}")
    found = [(tokens, left)]
    for uri, share in named:
        other = open_artifact(uri, made_by="tokenize")
        if _tokenizer(other) != _tokenizer(tokens):
            raise ValueError(
                f"{uri}: was made with another tokenizer than {tokens.uri}; run `sterna tokenize --tokenizer {tokens.uri}/tokenizer`"
            )
        lengths = [artifact.manifest.metrics["sequence_length"] for artifact in (tokens, other)]
        if lengths[0] != lengths[1]:
            raise ValueError(f"{uri}: sequences of {lengths[1]} tokens, those of {tokens.uri} have {lengths[0]}; tokenize to one length")
        found.append((other, share))
    return tuple(found)


def sequences_of(shares: Shares) -> Sequences:
    """The sequences of all folders, to be taken in these shares."""
    from train.corpus import Sequences

    opened = [Sequences.open(artifact.local()) for artifact, _ in shares]
    return opened[0] if len(opened) == 1 else Sequences.mixed(opened, [share for _, share in shares])


def _read(spec: str) -> tuple[str, float]:
    uri, separator, share = spec.rpartition("=")
    try:
        found = float(share)
    except ValueError:
        found = 0.0
    if not separator or not uri or not 0 < found < 1:
        raise ValueError(f"mix: {spec}: give FOLDER=SHARE with a share between 0 and 1, such as runs/code=0.3")
    return uri, found


def _tokenizer(artifact: Artifact) -> bytes:
    return (artifact.local() / "tokenizer" / "tokenizer.json").read_bytes()
