"""Drafters that others published, written anew from their papers, behind the engine's own drafter contract.

Promise: each drafts what its paper says, with its published settings; none looks at what verification costs, for none of the papers does.
Where a method verifies a tree of continuations, its best path stands in, since a step here verifies one. Price: for replays only;
plain dictionaries, tens of microseconds a token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

__all__ = ["PromptLookup", "PublishedAnpd", "PublishedCounts", "SuffixCounts", "SuffixDecoding"]


class PromptLookup:
    """Prompt lookup decoding (Saxena 2023): the K=10 tokens after the first earlier occurrence of the last 3, else 2, else 1 tokens."""

    def __init__(self, longest: int = 3, max_draft: int = 10) -> None:
        self._longest, self._max_draft = longest, max_draft
        self._text: list[int] = []
        self._first: dict[tuple[int, ...], int] = {}  # n-gram -> where its first occurrence ends

    def observe(self, tokens: Iterable[int]) -> None:
        """More text; an n-gram counts once something follows it."""
        for token in tokens:
            end = len(self._text)
            for size in range(1, min(self._longest, end) + 1):
                self._first.setdefault(tuple(self._text[end - size :]), end)
            self._text.append(token)

    def propose(self, verify_cost: float) -> list[int]:
        """The K tokens behind the match."""
        for size in range(min(self._longest, len(self._text)), 0, -1):
            at = self._first.get(tuple(self._text[-size:]))
            if at is not None:
                return self._text[at : at + self._max_draft]
        return []

    def judge(self, num_accepted: int) -> None:
        """Nothing to learn."""

    def recycle(self, tokens: Sequence[int], successors: Sequence[int]) -> None:
        """Nothing to learn."""


class PublishedCounts:
    """n-gram tables as ANPD's public code fills them, from the prompt."""

    def __init__(self, order: int) -> None:
        self._order = order
        self._counts: dict[tuple[int, ...], dict[int, int]] = defaultdict(lambda: defaultdict(int))

    def fill(self, prompt: Sequence[int]) -> None:
        """Count the prompt twice, and as if its beginning followed its end."""
        for _ in range(2):
            for size in range(1, self._order):
                for end in range(len(prompt)):
                    context = tuple(prompt[(end - size + i) % len(prompt)] for i in range(size))
                    self._counts[context][prompt[end]] += 1

    def count(self, context: tuple[int, ...], token: int) -> None:
        """One more occurrence."""
        self._counts[context][token] += 1

    def best(self, tail: Sequence[int]) -> int | None:
        """The most frequent follower (the first of equals) of the longest known context."""
        for size in range(min(self._order - 1, len(tail)), 0, -1):
            followers = self._counts.get(tuple(tail[-size:]))
            if followers:
                return max(followers, key=followers.__getitem__)
        return None


class PublishedAnpd:
    """ANPD (arXiv 2404.08698), N=5, K=7, with what its public code does beside its paper.

    The prompt counts twice, n-grams run from the text's end into its beginning, and where no context is known, token 1 is drafted.
    """

    _MISS = 1

    def __init__(self, order: int = 5, max_draft: int = 7) -> None:
        self._order, self._max_draft = order, max_draft
        self._counts = PublishedCounts(order)
        self._text: list[int] = []

    def observe(self, tokens: Iterable[int]) -> None:
        """The prompt first, then runs."""
        if not self._text:
            self._text = list(tokens)
            self._counts.fill(self._text)
            return
        for token in tokens:
            for size in range(1, min(self._order - 1, len(self._text)) + 1):
                self._counts.count(tuple(self._text[-size:]), token)
            self._text.append(token)

    def propose(self, verify_cost: float) -> list[int]:
        """Up to K tokens."""
        tail, draft = self._text[-self._order :], []
        for _ in range(self._max_draft):
            token = self._counts.best(tail)
            if token is None:
                return [*draft, self._MISS]
            draft.append(token)
            tail.append(token)
        return draft

    def judge(self, num_accepted: int) -> None:
        """Nothing to learn."""

    def recycle(self, tokens: Sequence[int], successors: Sequence[int]) -> None:
        """Nothing to learn."""


class SuffixCounts:
    """A suffix tree cut at `depth`: how often each token followed each context of fewer than `depth` tokens."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._followers: dict[tuple[int, ...], dict[int, int]] = {}

    def extend(self, text: list[int], tokens: Iterable[int]) -> None:
        """`tokens` follow `text`, to which they are added."""
        for token in tokens:
            end = len(text)
            for size in range(1, min(self.depth - 1, end) + 1):
                followers = self._followers.setdefault(tuple(text[end - size :]), {})
                followers[token] = followers.get(token, 0) + 1
            text.append(token)

    def speculate(self, tail: tuple[int, ...], longest: int, least: float) -> tuple[float, list[int]]:
        """Score and tokens of the path of most frequent followers: the sum of each token's frequency, given all before it."""
        score, chance, draft = 0.0, 1.0, []
        while len(draft) < longest and len(tail) < self.depth:
            followers = self._followers.get(tail)
            if not followers:
                break
            token = max(followers, key=followers.__getitem__)
            chance *= followers[token] / sum(followers.values())
            if chance < least:
                break
            score += chance
            draft.append(token)
            tail = (*tail, token)
        return score, draft

    def knows(self, context: tuple[int, ...]) -> bool:
        """Whether anything ever followed it."""
        return context in self._followers


class SuffixDecoding:
    """SuffixDecoding (arXiv 2411.04975): suffix trees of the request's own text and of all earlier answers.

    For every length p of a match between the text's end and a tree, up to factor * p tokens are speculated by frequency; of all
    speculations the one with the highest score is verified. The paper's tree speculation is reduced to its best path.
    """

    def __init__(self, past: SuffixCounts, factor: float, max_draft: int = 16, least: float = 0.1) -> None:
        self._past, self._own = past, SuffixCounts(depth=32)
        self._factor, self._max_draft, self._least = factor, max_draft, least
        self._text: list[int] = []

    def observe(self, tokens: Iterable[int]) -> None:
        """More text, into the request's own tree."""
        self._own.extend(self._text, tokens)

    def propose(self, verify_cost: float) -> list[int]:
        """The speculation with the highest score."""
        best: tuple[float, list[int]] = (0.0, [])
        for tree in (self._own, self._past):
            for size in range(1, min(tree.depth - 1, len(self._text)) + 1):
                context = tuple(self._text[-size:])
                if not tree.knows(context):
                    break
                best = max(best, tree.speculate(context, min(self._max_draft, int(self._factor * size)), self._least), key=lambda s: s[0])
        return best[1]

    def judge(self, num_accepted: int) -> None:
        """Nothing to learn."""

    def recycle(self, tokens: Sequence[int], successors: Sequence[int]) -> None:
        """Nothing to learn."""
