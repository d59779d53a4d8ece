"""First come, fair shares or shortest predicted first: what each does to waiting, on a real service's prompt and answer lengths.

Promise: the engine's own scheduler, policies and length predictor, driven by a trace; only the model is simulated (a step takes so
long, and so much longer per token and per token of context). The same requests at the same moments for each policy. `oracle` is
shortest-first with the true lengths: the most a better predictor could give. Price: half a minute, no model. Prints one table;
`--json FILE` keeps the figures. `--waiting` adds what planning a step costs with so many requests waiting all the time.

    python -m benchmarks.policies --trace azure-conversation.csv --load 1.1 --waiting 100 5000 20000 --json runs/policies.json
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import time
from bisect import bisect, insort
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from serve.engine.blocks import BlockPool
from serve.engine.policy import Policy, ShortestPredicted, policy_named
from serve.engine.request import Request, Run, Sampling
from serve.engine.schedule import Scheduler
from serve.engine.sequence import Sequence

STEP_S, TOKEN_S, CONTEXT_S = 0.020, 0.0001, 2e-7
"""Seconds for a step, for each token computed in it, and for each token of its sequences' contexts: a 7B model on one large GPU."""
MAX_SEQUENCES, MAX_TOKENS, BLOCK = 32, 512, 16
LIMIT = 2048
"""max_tokens of every request: callers do not know the length either."""
HEAVY = "heavy"


@dataclass(frozen=True, slots=True)
class Job:
    """A request of the trace."""

    arrived_s: float
    num_inputs: int
    num_outputs: int
    client: str


@dataclass(slots=True)
class Outcome:
    """When a job's tokens came."""

    job: Job
    first_s: float = 0.0
    last_s: float = 0.0


class Unread:
    """Text that nobody reads."""

    stopped = False

    def push(self, token: int) -> str:
        """Nothing to show."""
        return ""

    def finish(self) -> str:
        """Nothing held back."""
        return ""


class Oracle(ShortestPredicted):
    """Shortest first by the true lengths, with the same ageing."""

    def expected(self, sequence: Sequence) -> float:
        """Look at the answer."""
        return float(sequence.limit - sequence.num_prompt_tokens)


def read_trace(file: Path, count: int, load: float, seed: int) -> list[Job]:
    """The first `count` requests, at the trace's moments stretched so that they ask for `load` times what the simulated machine can do.

    The trace does not name clients: every second request is given to one heavy client, the rest to twenty light ones.
    """
    with file.open() as lines:
        rows = [row for row, _ in zip(csv.DictReader(lines), range(count), strict=False)]
    sizes = [(int(row["ContextTokens"]), min(int(row["GeneratedTokens"]), LIMIT)) for row in rows]
    work_s = sum(i * TOKEN_S + o * (STEP_S / MAX_SEQUENCES + TOKEN_S + CONTEXT_S * (i + o / 2)) for i, o in sizes)
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    stretch = work_s / load / (times[-1] - times[0])
    rng = random.Random(seed)
    clients = [HEAVY if rng.random() < 0.5 else f"light-{rng.randrange(20)}" for _ in rows]
    return [Job((t - times[0]) * stretch, i, o, client) for t, (i, o), client in zip(times, sizes, clients, strict=True)]


def replay(jobs: list[Job], policy: Policy) -> list[Outcome]:
    """Serve all jobs; the clock is the simulated machine's."""
    pool = BlockPool(MAX_SEQUENCES * 16384 // BLOCK)
    sizes = {"block_size": BLOCK, "max_sequences": MAX_SEQUENCES, "max_tokens_per_step": MAX_TOKENS}
    scheduler = Scheduler(pool, **sizes, prefix_cache=False, policy=policy)  # type: ignore[arg-type]
    outcomes = [Outcome(job) for job in jobs]
    now, arrived, left = 0.0, 0, len(jobs)
    while left:
        while arrived < len(jobs) and jobs[arrived].arrived_s <= now:
            scheduler.add(_sequence(arrived, jobs[arrived]))
            arrived += 1
        batch = scheduler.plan(now_s=now)
        if not batch.chunks:
            now = jobs[arrived].arrived_s
            continue
        context = sum(chunk.end for chunk in batch.chunks)
        now += STEP_S + TOKEN_S * batch.num_tokens + CONTEXT_S * context
        for emission in scheduler.commit(batch, [Run([1]) for _ in batch.sampling]):
            outcome = outcomes[int(emission.request_id)]
            outcome.first_s = outcome.first_s or now
            if emission.finish_reason:
                outcome.last_s = now
                left -= 1
    return outcomes


def _sequence(number: int, job: Job) -> Sequence:
    sampling = Sampling(max_tokens=LIMIT, seed=0)
    request = Request(id=str(number), prompt=(1,) * job.num_inputs, sampling=sampling, client=job.client)
    return Sequence(
        request=request,
        arrival=number,
        limit=job.num_inputs + job.num_outputs,
        stop_ids=frozenset(),
        text=Unread(),  # type: ignore[arg-type]
        drafter=None,
        root=b"",
        arrived_s=job.arrived_s,
    )


@dataclass(frozen=True, slots=True)
class Figures:
    """One policy's row; times in seconds."""

    policy: str
    mean_latency_s: float
    p50_latency_s: float
    p99_latency_s: float
    max_latency_s: float
    mean_first_token_s: float
    light_latency_s: float
    """Mean over the requests of light clients."""
    max_overtaken: int
    """The most later requests that got their first token before an earlier one."""


def figures(policy: str, outcomes: list[Outcome]) -> Figures:
    """A policy's row."""
    latencies = [o.last_s - o.job.arrived_s for o in outcomes]
    return Figures(
        policy=policy,
        mean_latency_s=statistics.fmean(latencies),
        p50_latency_s=statistics.median(latencies),
        p99_latency_s=sorted(latencies)[int(len(latencies) * 0.99)],
        max_latency_s=max(latencies),
        mean_first_token_s=statistics.fmean(o.first_s - o.job.arrived_s for o in outcomes),
        light_latency_s=statistics.fmean(o.last_s - o.job.arrived_s for o in outcomes if o.job.client != HEAVY),
        max_overtaken=_max_overtaken([o.first_s for o in outcomes]),
    )


def _max_overtaken(starts: list[float]) -> int:
    """Over all i, the most j > i with starts[j] < starts[i]."""
    most, later = 0, []
    for start in reversed(starts):
        most = max(most, bisect(later, start))
        insort(later, start)
    return most


def compare(jobs: list[Job]) -> list[Figures]:
    """A row per policy, and the oracle's."""
    policies = {name: policy_named(name) for name in ("fcfs", "fair", "shortest")} | {"oracle": Oracle()}
    return [figures(name, replay(jobs, policy)) for name, policy in policies.items()]


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What deciding costs with a long line; microseconds."""

    policy: str
    waiting: int
    plan_us: float
    """Mean of a step's `plan`, in which one or two requests start."""
    longest_plan_us: float
    add_us: float
    drop_us: float


def plan_cost(name: str, num_waiting: int, *, clients: int = 20, priorities: int = 1, steps: int = 200) -> PlanCost:
    """Keep so many requests waiting for `steps` steps, then cancel some."""
    rng = random.Random(0)
    sizes = {"block_size": BLOCK, "max_sequences": MAX_SEQUENCES, "max_tokens_per_step": MAX_TOKENS}
    scheduler = Scheduler(BlockPool(MAX_SEQUENCES * 64), **sizes, prefix_cache=False, policy=policy_named(name))  # type: ignore[arg-type]
    plans: list[float] = []
    adds: list[float] = []
    drops: list[float] = []
    num_arrived = 0
    for step in range(steps + 1):
        while len(scheduler.waiting) < num_waiting:
            sequence = _sequence(num_arrived, Job(0.0, 48, rng.randrange(4, 36), str(num_arrived % clients)))
            sequence.request = replace(sequence.request, priority=rng.randrange(priorities))
            num_arrived += 1
            began = time.perf_counter()
            scheduler.add(sequence)
            adds.append(time.perf_counter() - began)
        began = time.perf_counter()
        batch = scheduler.plan()
        plans.append(time.perf_counter() - began)
        scheduler.commit(batch, [Run([1]) for _ in batch.sampling])
        if not step:
            plans.clear()
    for sequence in rng.sample(list(scheduler.waiting), num_waiting // 2):
        began = time.perf_counter()
        scheduler.drop(sequence)
        drops.append(time.perf_counter() - began)
    mean = [1e6 * statistics.fmean(each) for each in (plans, adds, drops)]
    return PlanCost(name, num_waiting, mean[0], 1e6 * max(plans), mean[1], mean[2])


def plan_costs(lengths: list[int]) -> list[PlanCost]:
    """A row for each policy and length; `fcfs` with eight priorities, too, and `fair` with a client for each request."""
    rows = []
    for length in lengths:
        rows += [plan_cost(name, length) for name in ("fcfs", "fair", "shortest")]
        rows.append(replace(plan_cost("fcfs", length, priorities=8), policy="priority"))
        rows.append(replace(plan_cost("fair", length, clients=1 << 30), policy="fair, each"))
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, help="CSV with TIMESTAMP, ContextTokens, GeneratedTokens")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--load", type=float, default=1.1, help="work asked for over what the machine can do while requests come in")
    parser.add_argument("--seed", type=int, default=0, help="which requests are the heavy client's")
    parser.add_argument("--waiting", type=int, nargs="*", default=[], help="requests that wait while the cost of planning is measured")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = compare(read_trace(options.trace, options.requests, options.load, options.seed))
    print(f"{'policy':10}{'mean':>8}{'p50':>8}{'p99':>8}{'max':>8}{'first':>8}{'light':>8}{'overtaken':>11}   seconds")
    for row in rows:
        times = (row.mean_latency_s, row.p50_latency_s, row.p99_latency_s, row.max_latency_s, row.mean_first_token_s, row.light_latency_s)
        print(f"{row.policy:10}" + "".join(f"{time:8.1f}" for time in times) + f"{row.max_overtaken:11}")
    costs = plan_costs(options.waiting)
    if costs:
        print(f"\n{'policy':12}{'waiting':>8}{'plan':>8}{'longest':>9}{'add':>7}{'drop':>7}   microseconds")
    for cost in costs:
        print(f"{cost.policy:12}{cost.waiting:8}{cost.plan_us:8.0f}{cost.longest_plan_us:9.0f}{cost.add_us:7.1f}{cost.drop_us:7.1f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        kept = {"load": options.load, "rows": [asdict(row) for row in rows], "costs": [asdict(cost) for cost in costs]}
        options.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
