"""The inference engine: `from serve.engine import Engine, Sampling`. Names are imported when first asked for, so pure files stay pure."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.engine.config import EngineConfig
    from serve.engine.engine import Engine
    from serve.engine.request import Completion, Emission, Request, Sampling
    from serve.engine.snapshot import Snapshot

__all__ = ["Completion", "Emission", "Engine", "EngineConfig", "Request", "Sampling", "Snapshot"]

_HOME = {"Engine": "engine", "EngineConfig": "config", "Snapshot": "snapshot"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'request')}"), name)
