"""Embeddings and scores of given texts: the same model and kernels, without drawing anything.

Promise: a text's numbers are those of its own pass whatever is read beside it (up to the number type's rounding), and no live request
is disturbed: texts are read into KV blocks of their own. Price: the passes, at most `max_tokens` tokens each, short texts side by
side (longest first, so that neighbours are alike), long ones in parts; the logits of one pass are held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Series
from dataclasses import dataclass
from functools import partial
from operator import index
from typing import Any, Literal, Protocol, TypedDict

import torch
from torch import Tensor

from serve.engine.attention import Span, order
from serve.engine.request import TokenLogprob

__all__ = [
    "Piece",
    "Pooled",
    "Pooling",
    "Reader",
    "Score",
    "as_pairs",
    "as_tokens",
    "check_lengths",
    "embedding",
    "finished",
    "logits",
    "score",
]

Progress = Callable[[int], None]
Pooling = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one text at positions `start` …, KV in `blocks` of the scratch cache; the last `num_rows` rows are wanted."""

    start: int
    tokens: Series[int]
    blocks: Series[int]
    num_rows: int

    @property
    def span(self) -> Span:
        """Its place in the cache."""
        return Span(self.start, len(self.tokens), self.blocks)


class Encoder(Protocol):
    """A tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""


class Reader(Protocol):
    """What a runner does for reading."""

    model: Any
    cache: Any
    reads_in_parts: bool
    """Whether a text can be read a piece at a time; otherwise pieces are whole texts."""

    def read(self, cache: Any, pieces: Series[Piece], *, states: bool, adapter: str, out: Tensor | None = None) -> Tensor:
        """The wanted rows, piece after piece: logits [R, vocab], or final hidden states [R, hidden]. `cache`: from `scratch`.

        A reader in parts puts them into `out`, if it is given: rows that are copied elsewhere leave holes in the heap, hundreds of
        megabytes for a long text.
        """

    def scratch(self, num_tokens: int) -> Any:
        """Room for texts of so many tokens, each rounded up to whole blocks."""


@dataclass(frozen=True, slots=True)
class Score:
    """How likely the model finds a text."""

    tokens: tuple[TokenLogprob, ...]
    """Natural-log probability of each scored token given all before it, with alternatives where asked for."""
    is_greedy: bool
    """Whether each token is the likeliest at its place, so that greedy decoding gives this text."""

    @property
    def logprob(self) -> float:
        """Of the whole text: the sum."""
        return math.fsum(token.logprob for token in self.tokens)

    @property
    def perplexity(self) -> float:
        """exp(- mean log-probability)."""
        return math.exp(-self.logprob / len(self.tokens))


class Pooled(TypedDict, total=False):
    """How texts become embeddings."""

    pooling: Pooling
    """The mean of the final hidden states (if nothing is said), or the last token's."""
    normalize: bool
    """Whether to length 1 (if nothing is said, yes)."""
    adapter: str


def score(
    reader: Reader,
    prompts: Series[Series[int]],
    continuations: Series[Series[int]],
    *,
    max_tokens: int,
    adapter: str = "",
    num_top: int = 0,
    progress: Progress | None = None,
) -> list[Score]:
    """Each continuation's tokens given its prompt (of one token or more)."""
    if num_top < 0:
        raise ValueError(f"num_top: {num_top} is negative; use 0 for no alternatives")
    texts = [[*prompt, *rest][:-1] for prompt, rest in zip(prompts, continuations, strict=True)]
    found: list[list[TokenLogprob]] = [[] for _ in texts]
    greedy = [True] * len(texts)
    for i, rows in _told(_read(reader, texts, [len(rest) for rest in continuations], max_tokens, False, adapter), progress):
        given = torch.tensor(continuations[i][len(found[i]) : len(found[i]) + len(rows)], device=rows.device)
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32)).log_softmax(-1)
        own = wide.gather(-1, given[:, None]).flatten()
        greedy[i] &= bool((own >= wide.amax(-1)).all())
        found[i] += map(TokenLogprob, given.tolist(), own.tolist(), _tops(wide, num_top))
    return [Score(tuple(tokens), likeliest) for tokens, likeliest in zip(found, greedy, strict=True)]


def _tops(logprobs: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    if not count:
        return [()] * len(logprobs)
    values, indices = logprobs.topk(min(count, logprobs.shape[-1]), -1)
    return [tuple(zip(i, v, strict=True)) for i, v in zip(indices.tolist(), values.tolist(), strict=True)]


def embedding(
    reader: Reader, texts: Series[Series[int]], max_tokens: int, *, pooling: Pooling = "mean", normalize: bool = True, adapter: str = ""
) -> Generator[int, None, Tensor]:
    """[n, hidden] in float32 (float64 if the model is): each text's final hidden states, their mean or the last one.

    Yields the tokens of each pass when it is done.
    """
    if pooling not in ("mean", "last"):
        raise ValueError(f"pooling: {pooling!r} is unknown; use mean or last")
    if not texts:
        return torch.empty(0, reader.model.shape.hidden_size)
    sums: list[Tensor | None] = [None] * len(texts)
    num_rows = [len(text) if pooling == "mean" else 1 for text in texts]
    for num_tokens, parts in _read(reader, texts, num_rows, max_tokens, True, adapter):
        for i, rows in parts:
            wide = rows.to(torch.promote_types(rows.dtype, torch.float32)).sum(0)
            before = sums[i]
            sums[i] = wide if before is None else before + wide
        yield num_tokens
    pooled = torch.stack([total / count for total, count in zip(sums, num_rows, strict=True) if total is not None])
    return torch.nn.functional.normalize(pooled, dim=-1) if normalize else pooled


def finished(passes: Generator[int, None, Tensor], progress: Progress | None = None) -> Tensor:
    """What comes of all passes; `progress` is called with the tokens of each."""
    while True:
        try:
            num_tokens = next(passes)
        except StopIteration as end:
            result: Tensor = end.value
            return result
        if progress is not None:
            progress(num_tokens)


def logits(reader: Reader, tokens: Series[int], max_tokens: int) -> Tensor:
    """[T, vocab] after every token of a text, read in parts: but for the result it takes no more memory than a step does."""
    model, size, cache = reader.model, reader.cache.block_size, reader.scratch(len(tokens))
    if not reader.reads_in_parts:
        return reader.read(cache, [_piece(tokens, 0, len(tokens), len(tokens), 0, size)], states=False, adapter="")
    wide = torch.promote_types(model.dtype, torch.float32)
    found = torch.empty(len(tokens), model.shape.vocab_size, dtype=wide, device=model.device)
    for ((_, start, end),) in passes([0], [len(tokens)], max_tokens):
        reader.read(cache, [_piece(tokens, start, end, len(tokens), 0, size)], states=False, adapter="", out=found[start:end])
    return found


def as_tokens(texts: Series[str | Series[int]], encode: Callable[[str], list[int]], vocab_size: int, least: int = 1) -> list[list[int]]:
    """Texts or token ids as token ids. ValueError for one with fewer than `least` tokens, or with one that the model has not."""
    if isinstance(texts, str):
        raise ValueError("texts: one text is given; write a list of texts")
    given = [encode(text) if isinstance(text, str) else list(map(index, text)) for text in texts]
    for number, tokens in enumerate(given):
        if len(tokens) < least:
            raise ValueError(f"texts: number {number} has {len(tokens)} tokens; give at least {least}")
        bad = next((token for token in tokens if not 0 <= token < vocab_size), None)
        if bad is not None:
            raise ValueError(f"texts: number {number} has token {bad}, outside the vocabulary of {vocab_size}; use this model's tokenizer")
    return given


def as_pairs(
    texts: Series[str | Series[int]], continuations: Series[str | Series[int]] | None, tokenizer: Encoder, vocab_size: int
) -> tuple[list[list[int]], list[list[int]]]:
    """What is given and what is scored: a text and its continuation, encoded apart, or a text's first token and the others."""
    if continuations is None:
        given = as_tokens(texts, tokenizer.encode, vocab_size, least=2)
        return [tokens[:1] for tokens in given], [tokens[1:] for tokens in given]
    if len(continuations) != len(texts):
        raise ValueError(f"continuations: {len(continuations)} for {len(texts)} texts; give one for each")
    rests = as_tokens(continuations, partial(tokenizer.encode, add_special_tokens=False), vocab_size)
    return as_tokens(texts, tokenizer.encode, vocab_size), rests


def check_lengths(lengths: Series[int], most: int) -> None:
    """ValueError for a text beyond the context."""
    number = next((i for i, length in enumerate(lengths) if length > most), None)
    if number is not None:
        raise ValueError(f"texts: number {number} has {lengths[number]} tokens, beyond the context of {most}; split it")


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(
    reader: Reader,
    texts: Series[Series[int]],
    num_rows: Series[int],
    max_tokens: int,
    states: bool,
    adapter: str,
) -> Iterator[tuple[int, list[tuple[int, Tensor]]]]:
    """For each pass its tokens, and (text, next rows of its last `num_rows`); a text's rows come in order, perhaps in several passes."""
    size = reader.cache.block_size
    lengths = [len(text) for text in texts]
    for pack in packs(lengths, max_tokens):
        firsts, at = {}, 0
        for i in pack:
            firsts[i] = at
            at += -(-lengths[i] // size)
        cache = reader.scratch(at * size)
        for parts in passes(pack, lengths, max_tokens if reader.reads_in_parts else max(lengths)):
            pieces = {i: _piece(texts[i], start, end, num_rows[i], firsts[i], size) for i, start, end in parts}
            ordered = sorted(pieces, key=lambda i: order(pieces[i].span))
            rows = reader.read(cache, [pieces[i] for i in ordered], states=states, adapter=adapter)
            split = zip(ordered, rows.split([pieces[i].num_rows for i in ordered]), strict=True)
            yield sum(len(piece.tokens) for piece in pieces.values()), [(i, part) for i, part in split if len(part)]


def _told(passes: Iterator[tuple[int, list[tuple[int, Tensor]]]], progress: Progress | None) -> Iterator[tuple[int, Tensor]]:
    """The rows of all passes; `progress` is called with the tokens of each when its rows have been taken."""
    for num_tokens, parts in passes:
        yield from parts
        if progress is not None:
            progress(num_tokens)


def _piece(text: Series[int], start: int, end: int, num_rows: int, first_block: int, block_size: int) -> Piece:
    wanted = max(0, end - max(start, len(text) - num_rows))
    return Piece(start, text[start:end], range(first_block, first_block + -(-len(text) // block_size)), wanted)


def packs(lengths: Series[int], max_tokens: int) -> list[list[int]]:
    """Texts that are read together, longest first: as many as fit into a pass, or one that does not.

    >>> packs([3, 9, 2, 4, 1], 8)
    [[1], [3, 0], [2, 4]]
    """
    together: list[list[int]] = []
    room = -1
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] > room:
            together.append([])
            room = max_tokens
        together[-1].append(i)
        room -= lengths[i]
    return together


def passes(pack: Series[int], lengths: Series[int], max_tokens: int) -> Iterator[list[tuple[int, int, int]]]:
    """(text, start, end) of each pass over a pack: all of it, or a long text part by part."""
    if len(pack) > 1:
        yield [(i, 0, lengths[i]) for i in pack]
        return
    (i,) = pack
    for start in range(0, lengths[i], max_tokens):
        yield [(i, start, min(lengths[i], start + max_tokens))]
