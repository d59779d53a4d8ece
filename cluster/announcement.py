"""Machines that have been given notice and are not drained yet: their replacement is asked for while they still serve.

Promise: `announce` tells the cluster when a machine will be gone; `announced` lists those whose end is to come. A drain would empty the
machine at once, and a cold start is longer than any notice. So whoever has replacements started listens (`listen`, once a second) and
says how long before its end a machine is to be drained (`placement.drain_at`); where nobody listens (`lead` is None) an announcement
would move nobody, and the watcher on the machine (cluster/notices.py) drains it at once.
Price: a note on the cluster's bulletin (cluster/bulletin.py) for each machine with notice, and one a second for who listens.
"""

from __future__ import annotations

import time

from cluster.bulletin import Bulletin

__all__ = ["announce", "announced", "lead", "listen", "withdraw"]

NOTICES, LISTENERS = "notice", "listener"
FRESH_S = 5.0
"""A listener that has not been heard for so long is gone, or as good as gone."""
PAST_S = 60.0
"""A machine that was to be gone so long ago is, or will never be."""


def announce(bulletin: Bulletin, node_id: str, deadline_s: float, reason: str) -> None:
    """The Ray node `node_id` (hex) will be gone at `deadline_s` (unix seconds); a later word replaces an earlier one."""
    bulletin.post(NOTICES, node_id, {"deadline_s": deadline_s, "reason": reason})


def withdraw(bulletin: Bulletin, node_id: str) -> None:
    """It will not."""
    bulletin.remove(NOTICES, node_id)


def announced(bulletin: Bulletin) -> dict[str, float]:
    """Node id (hex) -> when it will be gone (unix seconds); what is long past is taken down."""
    now_s, found = time.time(), {node: float(note["deadline_s"]) for node, note in bulletin.read(NOTICES).items()}
    for node in [node for node, deadline_s in found.items() if now_s > deadline_s + PAST_S]:
        bulletin.remove(NOTICES, node)
        del found[node]
    return found


def listen(bulletin: Bulletin, name: str, drain_lead_s: float) -> None:
    """`name` acts on announcements, and wants machines drained `drain_lead_s` before their end. To be said again every second."""
    bulletin.post(LISTENERS, name, {"drain_lead_s": drain_lead_s})


def lead(bulletin: Bulletin) -> float | None:
    """How long before its end a machine is to be drained: the longest that anyone who listens wants; None if nobody does."""
    wanted = [float(note["drain_lead_s"]) for note in bulletin.read(LISTENERS, max_age_s=FRESH_S).values()]
    return max(wanted, default=None)
