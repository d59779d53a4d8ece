"""The settings of the fire drill.

Promise: frozen data with a reason for every default. Price: none.
"""

from __future__ import annotations

from cluster.settings import settings
from serve.engine.config import EngineConfig

__all__ = ["DrillConfig"]

PROMPTS = (
    "def add(left, right):\n",
    "import os\nimport sys\n\n\ndef main():\n",
    "class Stack:\n    def __init__(self):\n",
    "The quick brown fox",
    "for index, line in enumerate(lines):\n",
    "def read_file(path):\n    with open(path) as handle:\n",
)


@settings
class DrillConfig:
    """A fire drill: machines are taken from under running streams, once with notice and once without."""

    model: str
    """The model's folder: a small one, for three replicas of it share this machine."""
    output: str = "runs/drill"
    """Where the drill's figures go."""
    streams: int = 10
    """Client connections open at once at each of the two events; every fifth asks for two choices."""
    tokens: int = 240
    """Tokens per stream, or fewer where the model's context is short: long enough that the event finds it in the middle."""
    notice_s: float = 4.0
    """Seconds between the notice and the machine's end, at the first event."""
    prompts: tuple[str, ...] = PROMPTS
    """What the streams go on from, in turn."""
    seed: int = 0
    """Seed of the sampled streams."""
    engine: EngineConfig = EngineConfig(dtype="float64", num_threads=1, max_sequences=32)
    """How the replicas run the model: in float64 a stream's tokens do not depend on its company to the last bit."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model: is empty; name the folder of a model")
        if self.streams < 3:
            raise ValueError(f"streams: {self.streams} leave some of the three machines idle; use at least 3")
        if self.tokens < 50:
            raise ValueError(f"tokens: {self.tokens} are over before anything can happen; use at least 50")
        if self.notice_s < 1:
            raise ValueError(f"notice_s: {self.notice_s} is too short to be noticed; use at least 1")
        if not self.prompts or not all(self.prompts):
            raise ValueError("prompts: give at least one, none of them empty")
