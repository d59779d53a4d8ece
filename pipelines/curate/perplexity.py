"""Perplexity under a small language model of characters, trained on the spot on text that is known to be good.

Promise: the model is a function of its reference alone, and a text's perplexity of the model and the text: costs are whole
multiples of 2^-10 bit, so their sum is exact in whatever company the text is judged. Price: a table of 48^4 costs (10 MB),
trained in a quarter of a second a megabyte; judging takes a table look-up a character, 50 MB a second.
After: Kneser and Ney's interpolated smoothing (Chen and Goodman 1999) over characters, as CCNet (arXiv 1911.00359) filters
by a 5-gram model of Wikipedia's words. Characters, since a reference of a megabyte knows few words but all letters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.curate.spans import Codes, Ints, codes_of, groups

__all__ = ["CharacterModel", "held_out_perplexities", "train"]

Floats = npt.NDArray[np.float64]

_SYMBOLS = 48  # newline, space, digit, any other, and the most frequent characters of the reference
_NEWLINE, _SPACE, _DIGIT, _OTHER = range(4)
_ORDER = 4
_BIT = 1024
_PIECE_CHARS = 4000
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class CharacterModel:
    """P(character | the three before it), as costs."""

    symbols: npt.NDArray[np.uint8]
    """The symbol of each character of the basic plane [65536]; the last stands for those beyond."""
    costs: npt.NDArray[np.uint16]
    """-log2 P in units of 1/1024 bit, by the symbols of three characters and the next [48^4]."""

    def perplexities(self, texts: Sequence[str]) -> Floats:
        """Per character of each text: 2 to the mean cost in bits; infinite for an empty text."""
        return np.concatenate([np.zeros(0), *(self._of_group(group) for group in groups(texts))])

    def _of_group(self, texts: Sequence[str]) -> Floats:
        symbols, starts, ends = _in_symbols(texts, self.symbols)
        costs = self.costs[_windows(symbols)]
        begins = np.stack((starts, ends), axis=1).reshape(-1) - (_ORDER - 1)
        total = np.add.reduceat(costs, begins, dtype=np.int64)[::2]
        length = ends - starts
        found: Floats = np.where(length > 0, np.round(np.exp2(total / (_BIT * np.maximum(length, 1))), 6), np.inf)
        return found


def train(texts: Sequence[str]) -> CharacterModel:
    """A model of the texts.

    >>> model = train(["the tern and the sea " * 50])
    >>> near, far = model.perplexities(["the sea and the tern", "zqxj vwkp"])
    >>> bool(near < 3 < 20 < far)
    True
    """
    symbols = _alphabet(texts)
    counts = np.zeros(_SYMBOLS**_ORDER, np.int64)
    for group in groups(texts):
        inside, starts, ends = _in_symbols(group, symbols)
        windows = _windows(inside)
        wanted = np.zeros(windows.size + _ORDER, np.int8)
        np.add.at(wanted, starts - (_ORDER - 1), 1)
        np.subtract.at(wanted, ends - (_ORDER - 1), 1)
        counts += np.bincount(windows[np.cumsum(wanted[: windows.size]) > 0], minlength=counts.size)
    costs = -np.log2(_smoothed(counts.reshape((_SYMBOLS,) * _ORDER)))
    return CharacterModel(symbols, np.rint(np.minimum(costs * _BIT, 65_535)).astype(np.uint16).reshape(-1))


def held_out_perplexities(texts: Sequence[str]) -> Floats:
    """Perplexities of the texts' own pieces of 4,000 characters, each under a model of the other four fifths, in order."""
    pieces = [text[at : at + _PIECE_CHARS] for text in texts for at in range(0, len(text), _PIECE_CHARS)]
    fold = np.arange(len(pieces)) * _FOLDS // max(len(pieces), 1)  # neighbours together: they are about the same
    found = [np.zeros(0)]
    for number in range(_FOLDS):
        inside = [piece for piece, f in zip(pieces, fold, strict=True) if f == number]
        outside = [piece for piece, f in zip(pieces, fold, strict=True) if f != number]
        if inside and outside:
            found.append(train(outside).perplexities(inside))
    return np.concatenate(found)


def _smoothed(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Interpolated Kneser-Ney: P(last symbol | those before) [symbols, …]; shorter contexts count in how many a symbol stands.

    One discount an order, n1 / (n1 + 2 n2), from how many n-grams were seen once and twice.
    """
    found: npt.NDArray[np.float64]
    if counts.ndim == 1:
        found = (counts + 1.0) / (counts.sum() + counts.size)
        return found
    shorter = _smoothed((counts > 0).sum(axis=0))
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once and twice else 0.5
    total = counts.sum(axis=-1, keepdims=True)
    kinds = (counts > 0).sum(axis=-1, keepdims=True)
    seen = np.maximum(total, 1)
    own = np.maximum(counts - discount, 0.0) / seen
    found = np.where(total > 0, own + discount * kinds / seen * shorter, shorter)
    return found


def _alphabet(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    """The symbol of each character: newline, space and digit have theirs, the most frequent others one each, the rest share one."""
    frequent: Counter[str] = Counter()
    for text in texts:
        frequent.update(text.lower())
    table = np.full(1 << 16, _OTHER, np.uint8)
    own = sorted((c for c in frequent if ord(c) < 0xFFFF and not c.isspace() and not c.isdigit()), key=lambda c: (-frequent[c], c))
    for symbol, char in enumerate(own[: _SYMBOLS - 4], start=4):
        table[ord(char)] = symbol
    for code in range(1 << 16):
        char = chr(code)
        if char.isspace():
            table[code] = _NEWLINE if char == "\n" else _SPACE
        elif char.isdigit():
            table[code] = _DIGIT
    return table


def _in_symbols(texts: Sequence[str], table: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], Ints, Ints]:
    """The texts as one array of symbols, three newlines before each and after the last; where each begins and ends."""
    lowered = [text.lower() for text in texts]
    gap = "\n" * (_ORDER - 1)
    codes: Codes = codes_of(gap + "".join(text + gap for text in lowered))
    lengths = np.array([len(text) for text in lowered], np.int64)
    ends = np.cumsum(lengths + _ORDER - 1)
    return table[codes if codes.dtype == np.uint8 else np.minimum(codes, 0xFFFF)], ends - lengths, ends


def _windows(symbols: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """For each character from the fourth on, the number that it and the three before it make."""
    found = symbols[: symbols.size - _ORDER + 1].astype(np.int32)
    for place in range(1, _ORDER):
        found = found * np.int32(_SYMBOLS) + symbols[place : symbols.size - _ORDER + 1 + place]
    return found
