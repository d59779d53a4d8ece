"""Who drafts for a request: a drafter of the configured kind, with what its tenant's earlier answers taught.

Promise: nothing learnt from one tenant's answers reaches another's drafts, whose speed would tell of it; memory is bounded, for the
tenants not heard of for longest are forgotten. Price: `draft_shared` n-grams for each of at most MOST_TENANTS tenants.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from serve.engine.draft import AnpdDrafter, Drafter, NgramDrafter, Odds, SharedNgrams
from serve.engine.draft_thrift import Thrift, ThriftyDrafter
from serve.engine.draft_worth import Worth

__all__ = ["MOST_TENANTS", "Drafters", "Learnt"]

MOST_TENANTS = 8
"""Tenants whose answers are remembered at once."""
REST_STEPS = 4
"""While drafts rest, a drafter with nothing to say is left alone for so many steps: asking costs microseconds, too."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a tenant's requests leave to its later ones."""

    shared: SharedNgrams | None
    odds: Odds
    successors: dict[int, int] = field(default_factory=dict)


class Drafters:
    """Drafters by tenant.

    >>> drafters = Drafters("ngram", order=8, max_draft=16, capacity=1000)
    >>> drafters.learn("one", [1, 2, 3, 1, 2, 3])
    >>> for tenant in ("one", "other"):
    ...     drafter = drafters.of(tenant)
    ...     drafter.observe([7, 1])
    ...     print(drafter.propose(verify_cost=0.02)[:1])
    [2]
    []
    """

    def __init__(self, kind: Literal["ngram", "anpd", "off"], order: int, max_draft: int, capacity: int) -> None:
        """`order`: longest n-gram; `capacity`: n-grams of earlier answers kept for a tenant, 0 for none."""
        self._kind, self._order, self._max_draft, self._capacity = kind, order, max_draft, capacity
        self._num_answers = 0
        self.thrift = Thrift()  # what thinking costs now: the engine's to tell
        self.worth = Worth()
        self._known: OrderedDict[str, Learnt] = OrderedDict()  # the tenant not heard of for longest first

    def of(self, tenant: str) -> Drafter | None:
        """A drafter for one more request of the tenant; None where drafts are off."""
        if self._kind == "off":
            return None
        if self._kind == "anpd":
            return AnpdDrafter(self._order, self._max_draft)
        known = self._learnt(tenant)
        return ThriftyDrafter(
            NgramDrafter(self._order, self._max_draft, known.shared, known.odds, known.successors), self.thrift, self._max_draft
        )

    def awake(self, num_sequences: int) -> bool:
        """Whether the next step, of so many sequences, should draft; ANPD does whatever it costs."""
        self.thrift.resting = self._kind == "ngram" and not self.worth.awake(num_sequences)
        return self._kind != "off" and not self.thrift.resting

    @property
    def every(self) -> int:
        """Steps after which a drafter is asked again that had nothing to propose."""
        return REST_STEPS if self.thrift.resting else 1

    def learn(self, tenant: str, tokens: Sequence[int]) -> None:
        """A request of the tenant was answered with these tokens; while drafts do not pay, only every sixteenth answer is learnt."""
        self._num_answers += 1
        if (self.thrift.resting or self.thrift.gain <= 0.0) and self._num_answers % 16:
            return
        if self._kind == "ngram" and (shared := self._learnt(tenant).shared) is not None:
            shared.learn(tokens)

    def _learnt(self, tenant: str) -> Learnt:
        if tenant not in self._known:
            shared = SharedNgrams(self._capacity) if self._capacity else None
            self._known[tenant] = Learnt(shared, Odds() if shared is None else shared.odds)
            if len(self._known) > MOST_TENANTS:
                self._known.popitem(last=False)
        self._known.move_to_end(tenant)
        return self._known[tenant]
