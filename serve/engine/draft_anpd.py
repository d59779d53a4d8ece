"""Plain adaptive n-gram drafting, the reference that `NgramDrafter` is measured against.

Promise: ANPD as its paper says (arXiv 2404.08698): multi-level n-grams over the request's own prompt and output, N=5, K=7. Unlike its
published code, the prompt is counted once, no n-gram crosses from the text's tail to its head, and a miss drafts nothing.
Price: four counts a token; it drafts K tokens whatever they cost, as long as a context is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["AnpdDrafter"]


class AnpdDrafter:
    """Contexts of order-1 … 1 tokens, the longest match first.

    Each remembers what followed it, how often, and which follower is now the most frequent (the latest of equals). A draft is
    grown token by token, each guess joining the context of the next.

    >>> drafter = AnpdDrafter(order=3, max_draft=4)
    >>> drafter.observe([1, 2, 3, 9, 1, 2])
    >>> drafter.propose(verify_cost=0.0)
    [3, 9, 1, 2]
    """

    def __init__(self, order: int = 5, max_draft: int = 7) -> None:
        assert order >= 2, order
        assert max_draft >= 1, max_draft
        self._longest = order - 1
        self._max_draft = max_draft
        self._tail: tuple[int, ...] = ()  # the last order-1 tokens of the text
        self._counts: dict[tuple[int, ...], int] = {}  # (context…, follower) -> how often
        self._best: dict[tuple[int, ...], int] = {}  # context -> follower

    def observe(self, tokens: Iterable[int]) -> None:
        """Count the n-grams that end in each new token."""
        counts, best, tail, longest = self._counts, self._best, self._tail, self._longest
        for token in tokens:
            for start in range(len(tail)):
                context = tail[start:]
                gram = (*context, token)
                count = counts[gram] = counts.get(gram, 0) + 1
                champion = best.get(context)
                if champion is None or count >= counts[(*context, champion)]:
                    best[context] = token
            tail = (*tail, token)[-longest:]
        self._tail = tail

    def propose(self, verify_cost: float) -> list[int]:
        """Up to max_draft tokens, none on a miss; `verify_cost` is not looked at, unless a draft cannot pay at all (1 or more)."""
        draft: list[int] = []
        tail, best = self._tail, self._best
        while len(draft) < self._max_draft and verify_cost < 1.0:
            context = next((tail[start:] for start in range(len(tail)) if tail[start:] in best), None)
            if context is None:
                break
            draft.append(best[context])
            tail = (*tail, best[context])[-self._longest :]
        return draft

    def judge(self, num_accepted: int) -> None:
        """Nothing to learn: the text tells it all."""

    def recycle(self, tokens: Sequence[int], successors: Sequence[int]) -> None:
        """Nothing to learn, as above."""
