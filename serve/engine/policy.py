"""In which order waiting requests start: first come, fair shares, shortest predicted.

Promise: a policy says who goes first among requests of one priority that have not started, and nothing else; under each of them
everyone starts: *fcfs* in order of arrival; *fair* by its client's virtual token counter (see fairness.py); *shortest* by the work
predicted (see predict.py), where each token of it counts as much as 2 places in order of arrival, so that a request is overtaken by
at most twice as many later ones as it may have tokens. Price: a key per waiting request whenever keys change.
"""

from __future__ import annotations

from typing import Protocol

from serve.engine.fairness import VirtualTokenCounter
from serve.engine.predict import LengthPredictor
from serve.engine.sequence import Sequence

__all__ = ["FirstCome", "Policy", "ShortestPredicted", "VirtualTime", "policy_named"]

ARRIVALS_PER_TOKEN = 2
"""How far one token of predicted work puts a request behind later ones: more gains on average, less spares the longest."""
INPUT_COST = 1 / 16
"""The work of a prompt token, in emitted tokens: many are computed in one step."""


class Policy(Protocol):
    """Told what happens to sequences; asked for their order."""

    version: int
    """Grows when keys of waiting sequences change."""

    def key(self, sequence: Sequence) -> float:
        """The smallest starts first; equals in order of arrival."""

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

    version = 0

    def key(self, sequence: Sequence) -> float:
        """All alike: the order of arrival decides."""
        return 0.0

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
        self.version = 0
        self.counter = VirtualTokenCounter()

    def key(self, sequence: Sequence) -> float:
        """What its client was served."""
        return self.counter.of(sequence.client)

    def arrive(self, sequence: Sequence) -> None:
        """Its client has a claim from now on, not from before."""
        self.counter.arrive(sequence.client)

    def start(self, sequence: Sequence, num_inputs: int) -> None:
        """Its client pays for the prompt, as far as it must be computed."""
        self.counter.leave(sequence.client)
        self.counter.serve(sequence.client, inputs=num_inputs)
        self.version += 1

    def serve(self, sequence: Sequence, num_outputs: int) -> None:
        """Its client pays for the answer."""
        self.counter.serve(sequence.client, outputs=num_outputs)
        self.version += 1

    def end(self, sequence: Sequence) -> None:
        """One that never started waits no more."""
        if sequence.started is None:
            self.counter.leave(sequence.client)

    def stats(self) -> dict[str, float]:
        """Clients that have a counter."""
        return {"clients": len(self.counter)}


class ShortestPredicted:
    """The shortest predicted answer goes first, the longer it has waited the more."""

    def __init__(self) -> None:
        self.version = 0
        self.predictor = LengthPredictor()
        self._num_learnt = 0
        self._num_known = 0  # of them, when `version` last grew
        self._error = 0.0  # sum of |predicted - emitted|

    def key(self, sequence: Sequence) -> float:
        """Its arrival, put off by its predicted work."""
        if sequence.predicted_by != self.version:
            sequence.predicted = self.predictor.predict(sequence.request) - len(sequence.request.emitted)
            sequence.predicted_by = self.version
        return sequence.arrival + ARRIVALS_PER_TOKEN * (sequence.predicted + INPUT_COST * sequence.num_prompt_tokens)

    def arrive(self, sequence: Sequence) -> None:
        """Nothing to note."""

    def start(self, sequence: Sequence, num_inputs: int) -> None:
        """Nothing to note."""

    def serve(self, sequence: Sequence, num_outputs: int) -> None:
        """Nothing to note."""

    def end(self, sequence: Sequence) -> None:
        """Learn from those that ended of themselves or at their limit; with a tenth more to learn from, all are predicted anew."""
        if sequence.finish_reason is not None:
            num_emitted = len(sequence.tokens) - sequence.num_prompt_tokens
            self.predictor.learn(sequence.request, num_emitted)
            self._num_learnt += 1
            if self._num_learnt > 1.1 * self._num_known:
                self.version, self._num_known = self.version + 1, self._num_learnt
            self._error += abs(num_emitted - len(sequence.request.emitted) - sequence.predicted)

    def stats(self) -> dict[str, float]:
        """Answers learnt from, and by how many tokens the predictions were wrong on average."""
        return {"lengths_learnt": self._num_learnt, "mean_length_error": self._error / max(1, self._num_learnt)}


def policy_named(name: str) -> Policy:
    """The policy that `EngineConfig.policy` names."""
    policies: dict[str, type[Policy]] = {"fcfs": FirstCome, "fair": VirtualTime, "shortest": ShortestPredicted}
    return policies[name]()
