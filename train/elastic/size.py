"""How many workers a run has, on which machines: when it starts, when machines have left, when more have come.

Promise: pure functions from what is there to a decision with its reason. A global batch is never changed: only numbers of workers that
divide it are taken; machines that are about to go are left out; a run grows when what that saves is more than the restart costs, by the
run's own figures. Price: machines beyond the largest divisor stay idle (a global batch divisible by 6 can use 1, 2 and 3 workers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from train.recipe import Recipe

__all__ = ["Attempt", "Crew", "Machine", "crew_of", "fruitless", "sized", "worth_growing"]


@dataclass(frozen=True, slots=True)
class Machine:
    """A living machine of the cluster."""

    node_id: str
    cpus: float
    gpus: float = 0.0
    leaving: bool = False
    """Whether it has been given notice."""


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers of one attempt."""

    num_workers: int
    cpus: float
    """CPUs of each."""
    use_gpu: bool
    """Whether each has a GPU."""
    node_ids: frozenset[str]
    """The machines that they may be put on."""
    left_out: tuple[str, ...]
    """Living machines that are about to go."""


def crew_of(
    machines: Sequence[Machine], *, wanted: int, least: int, global_batch: int, group: int = 1, on_gpus: bool = False
) -> Crew | None:
    """The most workers up to `wanted` that the machines which stay can hold and that share the batch evenly; None for fewer than `least`.

    A worker has at least one CPU, and as many as there are for each; where there are GPUs, it has one. `group` workers at a time hold one
    copy of the model (tensor and pipeline parallelism). With `on_gpus` machines without one do not count: a run that has had GPUs waits
    for them, and does not go on a hundred times slower on the processors that are left.

    >>> three = [Machine("a", 1), Machine("b", 1), Machine("c", 1, leaving=True)]
    >>> crew = crew_of(three, wanted=3, least=1, global_batch=6)
    >>> crew.num_workers, sorted(crew.node_ids), crew.left_out
    (2, ['a', 'b'], ('c',))
    """
    staying = [machine for machine in machines if not machine.leaving and machine.cpus >= 1]
    with_gpu = [machine for machine in staying if machine.gpus >= 1]
    used = with_gpu or ([] if on_gpus else staying)
    room = sum(int(min(m.gpus, m.cpus) if with_gpu else m.cpus) for m in used)
    sizes = [n for n in range(max(least, group), min(wanted, room) + 1) if n % group == 0 and global_batch % (n // group) == 0]
    if not sizes:
        return None
    cpus = min(m.cpus // m.gpus for m in used) if with_gpu else _cpus_each([m.cpus for m in used], sizes[-1])
    leaving = tuple(sorted(machine.node_id for machine in machines if machine.leaving))
    return Crew(sizes[-1], max(1.0, float(cpus)), bool(with_gpu), frozenset(machine.node_id for machine in used), leaving)


def sized(recipe: Recipe, num_workers: int, group: int = 1) -> Recipe:
    """The same recipe for another number of workers: the same global batch, in micro-batches that divide each one's share of it.

    >>> recipe = Recipe(steps=9, global_batch=6, micro_batch=2, sequence_length=8, learning_rate=1e-3, num_workers=1)
    >>> [sized(recipe, n).micro_batch for n in (1, 2, 3)]
    [2, 1, 2]
    """
    share = recipe.global_batch // (num_workers // group)
    micro_batch = max(n for n in range(1, min(recipe.micro_batch, share) + 1) if share % n == 0)
    return replace(recipe, num_workers=num_workers, micro_batch=micro_batch)


def worth_growing(left: int, now: int, then: int, step_s: Mapping[int, float], restart_s: float) -> tuple[bool, str]:
    """Whether `then` workers instead of `now` for the `left` steps save more than the restart costs, and why.

    `step_s`: seconds of a step by number of workers, as far as it has been measured; the rest is assumed to scale perfectly.

    >>> worth_growing(1000, 1, 2, {1: 0.5}, restart_s=20.0)
    (True, '1,000 steps left: 2 workers instead of 1 save 250 s, a restart takes 20 s')
    >>> worth_growing(1000, 1, 2, {1: 0.5, 2: 0.6}, restart_s=20.0)[0]
    False
    """
    saved_s = left * (step_s[now] - step_s.get(then, step_s[now] * now / then))
    return (
        saved_s > restart_s,
        f"{left:,} steps left: {then} workers instead of {now} save {saved_s:.0f} s, a restart takes {restart_s:.0f} s",
    )


@dataclass(frozen=True, slots=True)
class Attempt:
    """One group of workers, from its start to its end."""

    num_workers: int
    start: int
    """The step of the checkpoint that it went on from."""
    end: int
    """The newest committed step when it was over."""
    why: Literal["finished", "left", "grew", "lost", "failed"]
    """How it ended: done; for a machine that is going; for more machines; by a machine that was gone; by itself."""
    reason: str
    lost: int = 0
    """Steps that were done and not committed, and had to be done again."""
    name: str = ""
    """The group's name, as in its checkpoints."""


def fruitless(attempts: Sequence[Attempt]) -> int:
    """How many of the last attempts failed by themselves, one after the other, without a new checkpoint: a crash loop, if there are many.

    >>> broken = Attempt(2, start=5, end=5, why="failed", reason="")
    >>> fruitless([broken, replace(broken, end=10), broken, replace(broken, why="lost"), broken])
    2
    """
    count = 0
    for attempt in reversed(attempts):
        if attempt.end > attempt.start or attempt.why not in ("failed", "lost"):
            break
        count += attempt.why == "failed"
    return count


def _cpus_each(cpus: Sequence[float], num_workers: int) -> int:
    """The most whole CPUs that each of so many workers can have."""
    return max(n for n in range(1, int(max(cpus)) + 1) if sum(int(c // n) for c in cpus) >= num_workers)
