"""A live request as data that can travel: enough to go on elsewhere with the very same tokens.

Promise: `Snapshot.request()` added to any engine with the same model continues the stream where it stood; the JSON round
trip loses nothing. Price: the tokens, as numbers. Source: DESIGN.md ("the tokens are the request").
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from serve.engine.request import Request, Sampling

__all__ = ["Snapshot"]

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A request as first admitted (its seed included) and all tokens emitted since its beginning."""

    origin: Request
    emitted: tuple[int, ...]
    num_computed: int = field(default=0, compare=False)
    """Tokens whose KV it has where it stands: for the record of a move, of no use elsewhere, and so not in its JSON."""

    def request(self) -> Request:
        """The request to add elsewhere."""
        return replace(self.origin, emitted=self.emitted)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({"version": VERSION, "origin": asdict(self.origin), "emitted": list(self.emitted)})

    @classmethod
    def from_json(cls, text: str) -> Snapshot:
        """The inverse of `to_json`; ValueError for anything else."""
        try:
            data: dict[str, Any] = json.loads(text)
            if data["version"] != VERSION:
                raise ValueError(f"snapshot: version {data['version']}; this engine reads version {VERSION}")
            origin = dict(data["origin"])
            origin["sampling"] = Sampling(**origin["sampling"])
            request = Request(**origin)
            return cls(origin=request, emitted=replace(request, emitted=data["emitted"]).emitted)  # so checked, too
        except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"snapshot: not a snapshot ({type(error).__name__}: {error}); make it with Snapshot.to_json") from None
