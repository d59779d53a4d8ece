"""Settings of the jobs that join the stages: the trial of a service, the report, the journey."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from cluster.settings import settings
from serve.engine.config import EngineConfig

__all__ = ["JourneyConfig", "ReportConfig", "TrialConfig"]


@settings
class TrialConfig:
    """Serve a model and measure it over HTTP, with and without drafts."""

    model: str
    """Model folder to serve."""
    prompts: str
    """jsonl file with a `prompt` on each line."""
    output: str
    """Folder for the measurements."""
    concurrency: tuple[int, ...] = (1, 8)
    """Numbers of clients that stream at the same time, one measurement each."""
    num_requests: int = 16
    """Requests in each measurement."""
    max_tokens: int = 128
    """Tokens asked of each request."""
    engine: EngineConfig = EngineConfig()
    """The engine's settings; `draft` is measured both as given and off."""

    def __post_init__(self) -> None:
        if self.num_requests < 1 or self.max_tokens < 1 or not self.concurrency or min(self.concurrency) < 1:
            raise ValueError("num_requests, max_tokens and every concurrency must be at least 1")


@settings
class ReportConfig:
    """Draw stage folders as one page."""

    folders: tuple[str, ...] = ()
    """Stage folders (each with its manifest.json), in the order of the page."""
    output: str = "report.html"
    """The page: one file that needs nothing else."""
    title: str = "Sterna"
    """Heading of the page."""

    def __post_init__(self) -> None:
        if not self.folders:
            raise ValueError("no folders given; name the stage folders to draw, such as runs/journey/*")


@settings
class JourneyConfig:
    """Every stage, one after the other."""

    output: str = "runs/journey"
    """Folder that receives one folder per stage, and report.html."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The stages' own settings, by stage; a TOML file's tables. The journey itself wires inputs and outputs."""
    num_prompts: int = 200
    """Prompts for the service trial and for batch inference, cut from held-out documents."""
    until: str = ""
    """Stop after this stage (default: go all the way)."""
