"""In which order waiting requests start: first come, fair shares, shortest predicted.

Promise: a policy says who goes first among requests of one priority that have not started, and nothing else; under each of them
everyone starts: *fcfs* in order of arrival; *fair* by its client's virtual token counter (see fairness.py); *shortest* by predicted
answer length plus one token for each request that came before it, so that no more later requests overtake one than it is predicted
to emit tokens (at most its max_tokens). Price: one key per waiting request and admission (fair), one per request (the others).
"""

from __future__ import annotations

from typing import Protocol

from serve.engine.fairness import VirtualTokenCounter
from serve.engine.predict import LengthPredictor
from serve.engine.sequence import Sequence

__all__ = ["FirstCome", "Policy", "ShortestPredicted", "VirtualTime", "policy_named"]


class Policy(Protocol):
    """Told what happens to sequences; asked for their order."""

    moving: bool
    """Whether keys of waiting sequences change while they wait."""

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

    moving = False

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

    moving = True

    def __init__(self) -> None:
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
    """The shortest predicted answer goes first; each later arrival counts as one token longer."""

    moving = False

    def __init__(self) -> None:
        self.predictor = LengthPredictor()
        self._num_learnt = 0
        self._error = 0.0  # sum of |predicted - emitted|

    def key(self, sequence: Sequence) -> float:
        """Arrival + predicted length, in tokens."""
        return sequence.arrival + sequence.predicted

    def arrive(self, sequence: Sequence) -> None:
        """Predict what is left to emit."""
        request = sequence.request
        sequence.predicted = self.predictor.predict(request) - len(request.emitted)

    def start(self, sequence: Sequence, num_inputs: int) -> None:
        """Nothing to note."""

    def serve(self, sequence: Sequence, num_outputs: int) -> None:
        """Nothing to note."""

    def end(self, sequence: Sequence) -> None:
        """Learn from those that ended of themselves or at their limit."""
        if sequence.finish_reason is not None:
            num_emitted = len(sequence.tokens) - sequence.num_prompt_tokens
            self.predictor.learn(sequence.request, num_emitted)
            self._num_learnt += 1
            self._error += abs(num_emitted - len(sequence.request.emitted) - sequence.predicted)

    def stats(self) -> dict[str, float]:
        """Answers learnt from, and by how many tokens the predictions were wrong on average."""
        return {"lengths_learnt": self._num_learnt, "mean_length_error": self._error / max(1, self._num_learnt)}


def policy_named(name: str) -> Policy:
    """The policy that `EngineConfig.policy` names."""
    policies: dict[str, type[Policy]] = {"fcfs": FirstCome, "fair": VirtualTime, "shortest": ShortestPredicted}
    return policies[name]()
