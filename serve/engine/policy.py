"""In which order waiting requests start: first come, fair shares, shortest predicted.

Promise: a policy says who goes first among requests of one priority that have not started, and nothing else; under each of them
everyone starts: *fcfs* in order of arrival; *fair* by its client's virtual token counter (see fairness.py); *shortest* by the work
predicted (see predict.py), where each token of it counts as much as 2 places in order of arrival, so that a request is overtaken by
at most twice as many later ones as it may have tokens. Price: one key per group that waits, asked for where it is looked at
(see waiting.py), and a few predictions per request that starts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Protocol

from serve.engine.fairness import VirtualTokenCounter
from serve.engine.predict import LengthPredictor
from serve.engine.sequence import Sequence

__all__ = ["FirstCome", "Policy", "ShortestPredicted", "VirtualTime", "policy_named"]

ARRIVALS_PER_TOKEN = 2
"""How far one token of predicted work puts a request behind later ones: more gains on average, less spares the longest."""
INPUT_COST = 1 / 16
"""The work of a prompt token, in emitted tokens: many are computed in one step."""
PREDICTED_AT_ONCE = 16
"""Waiting requests that are predicted anew before one starts: together they take less than a millisecond."""


class Policy(Protocol):
    """Told what happens to sequences; asked for their order."""

    def group(self, sequence: Sequence) -> Hashable:
        """Sequences of one group have one key, and start in order of arrival."""

    def key(self, sequence: Sequence) -> float:
        """The smallest starts first; equals in order of arrival. While a sequence waits, its key grows at most, unless `moved` names it."""

    def moved(self) -> Iterable[Sequence]:
        """Waiting sequences whose keys change now; asked before one starts."""

    def arrive(self, sequence: Sequence) -> None:
        """A sequence begins to wait."""

    def start(self, sequence: Sequence, num_inputs: int) -> None:
        """A sequence runs for the first time, with so many tokens to compute."""

    def serve(self, sequence: Sequence, num_outputs: int) -> None:
        """A sequence got tokens."""

    def end(self, sequence: Sequence) -> None:
        """A sequence is gone: finished, or (without a reason to finish) dropped."""

    def stats(self) -> dict[str, float]:
        """What it knows, as counts."""


class FirstCome:
    """First come, first served."""

    def group(self, sequence: Sequence) -> Hashable:
        """All alike: the order of arrival decides."""
        return None

    def key(self, sequence: Sequence) -> float:
        """All alike."""
        return 0.0

    def moved(self) -> Iterable[Sequence]:
        """None, ever."""
        return ()

    def arrive(self, sequence: Sequence) -> None:
        """Nothing to note."""

    def start(self, sequence: Sequence, num_inputs: int) -> None:
        """Nothing to note."""

    def serve(self, sequence: Sequence, num_outputs: int) -> None:
        """Nothing to note."""

    def end(self, sequence: Sequence) -> None:
        """Nothing to note."""

    def stats(self) -> dict[str, float]:
        """Nothing but the order of arrival."""
        return {}


class VirtualTime:
    """The client that was served least goes first."""

    def __init__(self) -> None:
        self.counter = VirtualTokenCounter()

    def group(self, sequence: Sequence) -> Hashable:
        """Its client."""
        return sequence.client

    def key(self, sequence: Sequence) -> float:
        """What its client was served, which only grows."""
        return self.counter.of(sequence.client)

    def moved(self) -> Iterable[Sequence]:
        """None, ever."""
        return ()

    def arrive(self, sequence: Sequence) -> None:
        """Its client has a claim from now on, not from before."""
        self.counter.arrive(sequence.client)

    def start(self, sequence: Sequence, num_inputs: int) -> None:
        """Its client pays for the prompt, as far as it must be computed."""
        self.counter.leave(sequence.client)
        self.counter.serve(sequence.client, inputs=num_inputs)

    def serve(self, sequence: Sequence, num_outputs: int) -> None:
        """Its client pays for the answer."""
        self.counter.serve(sequence.client, outputs=num_outputs)

    def end(self, sequence: Sequence) -> None:
        """One that never started waits no more."""
        if sequence.started is None:
            self.counter.leave(sequence.client)

    def stats(self) -> dict[str, float]:
        """Clients that have a counter."""
        return {"clients": len(self.counter)}


class ShortestPredicted:
    """The shortest predicted answer goes first, the longer it has waited the more.

    Predictions are made on arrival; with a tenth more to learn from, those who wait are predicted anew, a few before each start.
    """

    def __init__(self) -> None:
        self.predictor = LengthPredictor()
        self._waiting: OrderedDict[int, Sequence] = OrderedDict()  # by arrival; the prediction made longest ago first
        self._edition = 0
        self._num_learnt = 0
        self._num_known = 0  # of them, when the edition last changed
        self._error = 0.0  # sum of |predicted - emitted|

    def group(self, sequence: Sequence) -> Hashable:
        """Each by itself."""
        return sequence.arrival

    def key(self, sequence: Sequence) -> float:
        """Its arrival, put off by its predicted work."""
        return sequence.arrival + ARRIVALS_PER_TOKEN * (sequence.predicted + INPUT_COST * sequence.num_prompt_tokens)

    def moved(self) -> Iterator[Sequence]:
        """Of the waiting, those predicted longest ago, while there are old predictions among them."""
        for _ in range(min(PREDICTED_AT_ONCE, len(self._waiting))):
            sequence = next(iter(self._waiting.values()))
            if sequence.predicted_by == self._edition:
                return
            self._waiting.move_to_end(sequence.arrival)
            self._predict(sequence)
            yield sequence

    def _predict(self, sequence: Sequence) -> None:
        sequence.predicted, sequence.predicted_by = self.expected(sequence), self._edition

    def expected(self, sequence: Sequence) -> float:
        """Tokens it is still to emit."""
        return self.predictor.predict(sequence.request) - len(sequence.request.emitted)

    def arrive(self, sequence: Sequence) -> None:
        """Predict it."""
        self._predict(sequence)
        self._waiting[sequence.arrival] = sequence

    def start(self, sequence: Sequence, num_inputs: int) -> None:
        """It waits no more."""
        del self._waiting[sequence.arrival]

    def serve(self, sequence: Sequence, num_outputs: int) -> None:
        """Nothing to note."""

    def end(self, sequence: Sequence) -> None:
        """Learn from those that ended of themselves or at their limit."""
        self._waiting.pop(sequence.arrival, None)
        if sequence.finish_reason is not None:
            num_emitted = len(sequence.tokens) - sequence.num_prompt_tokens
            self.predictor.learn(sequence.request, num_emitted)
            self._num_learnt += 1
            if self._num_learnt > 1.1 * self._num_known:
                self._edition, self._num_known = self._edition + 1, self._num_learnt
            self._error += abs(num_emitted - len(sequence.request.emitted) - sequence.predicted)

    def stats(self) -> dict[str, float]:
        """Answers learnt from, and by how many tokens the predictions were wrong on average."""
        return {"lengths_learnt": self._num_learnt, "mean_length_error": self._error / max(1, self._num_learnt)}


def policy_named(name: str) -> Policy:
    """The policy that `EngineConfig.policy` names."""
    policies: dict[str, type[Policy]] = {"fcfs": FirstCome, "fair": VirtualTime, "shortest": ShortestPredicted}
    return policies[name]()
