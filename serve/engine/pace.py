"""How many prompt tokens a step may compute while answers stream, so that it takes about as long as it should.

Promise: at least a block a step, so that prompts always advance; the limit follows the machine. Price: two running means. Without a
goal there is no limit but the engine's tokens per step.
"""

from __future__ import annotations

__all__ = ["PromptPace"]

RATE = 0.1
"""The weight of the newest step in the running means."""


class PromptPace:
    """Learns the time of a step without prompts, and what a prompt token adds to it.

    >>> pace = PromptPace(max_step_s=0.1, least=16)
    >>> for _ in range(50): pace.observe(0, 0.02); pace.observe(100, 0.12)
    >>> pace.limit
    80
    """

    def __init__(self, max_step_s: float | None, least: int) -> None:
        self._max_step_s, self._least = max_step_s, least
        self._plain_s: float | None = None
        self._token_s: float | None = None

    def observe(self, num_prompt_tokens: int, seconds: float) -> None:
        """A step took so long, with so many prompt tokens in it."""
        if num_prompt_tokens == 0:
            self._plain_s = _moved(self._plain_s, seconds)
        else:
            self._token_s = _moved(self._token_s, max(seconds - (self._plain_s or 0.0), 0.0) / num_prompt_tokens)

    @property
    def tokens_per_s(self) -> float:
        """Prompt tokens that a second computes beside the rest of a step; 1000 before any was seen.

        >>> pace = PromptPace(max_step_s=None, least=16)
        >>> pace.observe(100, 0.05); round(pace.tokens_per_s)
        2000
        """
        return 1.0 / max(self._token_s, 1e-9) if self._token_s is not None else 1000.0

    @property
    def limit(self) -> int | None:
        """The most prompt tokens for a step in which answers stream; None for no limit."""
        if self._max_step_s is None:
            return None
        room_s = self._max_step_s - (self._plain_s or 0.0)
        if not self._token_s or room_s <= 0.0:
            return self._least
        return max(self._least, round(room_s / self._token_s))


def _moved(mean: float | None, value: float) -> float:
    return value if mean is None else mean + RATE * (value - mean)
