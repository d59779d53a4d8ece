"""A request's own text, indexed so that the longest earlier repeats of its end are found at once.

Promise: `match` gives the most recent places (at most `WALK` are visited) whose context agrees with the end of the text for as long as
any does. Price: about half a microsecond and five small entries a token, whatever the longest context, so long prompts stay cheap.
Source: the hash chains of LZ77 compressors (zlib's deflate): every place points to the one before with the same last two tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["REACH", "OwnText"]

REACH = 32
"""Contexts are compared over at most this many tokens."""
WALK = 64
"""Earlier places visited in search of the longest context."""


class OwnText:
    """Prompt and output of one request.

    >>> text = OwnText(longest=8)
    >>> text.extend([1, 2, 3, 9, 1, 2])
    >>> text.match(text.tail())
    (2, [33])
    >>> text.follower([33]), text.usual(2)
    ((3, 1, 1), [3, 1, 1])
    """

    __slots__ = ("_latest", "_longest", "_pairs", "_previous", "_usual", "tokens")

    def __init__(self, longest: int) -> None:
        self._longest = min(longest, REACH - 1)  # so far, and no further, contexts are compared
        self.tokens = list(range(-REACH, 0))  # never equal to a token, so that no comparison needs to ask where the text begins
        self._previous = [-1] * REACH  # per place: the latest earlier one with the same last two tokens
        self._latest: dict[int, int] = {}  # the last two tokens -> latest place
        self._pairs: dict[int, int] = {}  # the last two tokens -> how often
        self._usual: dict[int, list[int]] = {}  # token -> its most frequent follower (the latest of equals), how often, of how many

    def extend(self, tokens: Iterable[int]) -> None:
        """More text."""
        text, previous, latest, pairs, usual = self.tokens, self._previous, self._latest, self._pairs, self._usual
        place, last = len(text), text[-1]
        for token in tokens:
            key = last << 32 | token
            previous.append(latest.get(key, -1))
            latest[key] = place
            count = pairs[key] = pairs.get(key, 0) + 1
            entry = usual.get(last)
            if entry is None:
                usual[last] = [token, 1, 1]
            else:
                entry[2] += 1
                if count >= entry[1]:
                    entry[0], entry[1] = token, count
            text.append(token)
            place, last = place + 1, token

    def tail(self) -> list[int]:
        """The last REACH tokens (placeholders before the text's beginning)."""
        return self.tokens[-REACH:]

    def match(self, tail: Sequence[int]) -> tuple[int, list[int]]:
        """Length of the longest known context that ends `tail`, and the places in `tokens` where it ends, latest first; (0, []) for none.

        Contexts of `longest` tokens or more count as equal; the length is then that of the latest.
        """
        text, previous, longest = self.tokens, self._previous, self._longest
        place, end = self._latest.get(tail[-2] << 32 | tail[-1], -1), len(text) - 1
        length, places = 0, []
        for _ in range(WALK):
            if place < 0:
                break
            if place < end:
                size = 2
                while size < longest and text[place - size] == tail[-1 - size]:
                    size += 1
                if size > length:
                    length, places = size, [place]
                elif size == length:
                    places.append(place)
            place = previous[place]
        if places and length >= longest:
            while length < REACH - 1 and text[places[0] - length] == tail[-1 - length]:
                length += 1
        return length, places

    def follower(self, places: Sequence[int]) -> tuple[int, int, int]:
        """The most frequent token after these places (the latest of equals), how often, of how many."""
        counts: dict[int, int] = {}
        for place in places:
            token = self.tokens[place + 1]
            counts[token] = counts.get(token, 0) + 1
        best = token if len(counts) == 1 else max(counts, key=counts.__getitem__)
        return best, counts[best], len(places)

    def usual(self, token: int) -> list[int] | None:
        """The token's most frequent follower, how often, of how many; None if nothing ever followed it."""
        return self._usual.get(token)
