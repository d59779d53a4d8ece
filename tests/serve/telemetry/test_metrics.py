import asyncio
import pickle

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.engine.request import Request, Sampling
from serve.limits.admission import Admission, Limits
from serve.telemetry.metrics import GatewayMetrics, answers, page

STATS = {
    "running": 3,
    "free_blocks": 7,
    "tokens_generated": 100,
    "queue_wait_s": 1.5,
    "replica_id": "r1",
    "node_id": "n1",
    "draining": True,
    "market": "spot",
}


def gateway() -> GatewayMetrics:
    metrics = GatewayMetrics()
    admission = Admission((), Limits(max_queue=9), slots=lambda: 4, clock=lambda: 1.0, observer=metrics)
    metrics.watch(admission)
    visit = admission.enter(None)
    visit.admit([Request(id=f"r-{c}", prompt=(1, 2, 3), sampling=Sampling(max_tokens=9), choice=c) for c in range(2)])
    visit.heard(0, 2)
    visit.heard(0, 4)
    metrics.refused("ttft")
    metrics.moved("crash", 0.3)
    metrics.answered("/v1/completions", 200)
    metrics.answered("/v1/completions", None)
    return metrics


def test_the_page_shows_every_gateway_and_every_replica() -> None:
    text = page(
        [("g1", gateway().families()), ("g2", pickle.loads(pickle.dumps(gateway().families())))], [STATS, {**STATS, "replica_id": "r2"}]
    )
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }
    for name in ("g1", "g2"):
        here = ("gateway", name)
        assert samples["sterna_prompt_tokens_total", here] == 3
        assert samples["sterna_tokens_total", here] == 6
        assert samples["sterna_streams", here] == 2
        assert samples["sterna_queue_streams", here] == 1
        assert samples["sterna_ttft_seconds_count", here] == samples["sterna_inter_token_seconds_count", here] == 1
        assert samples["sterna_refused_total", here, ("reason", "ttft")] == 1
        assert samples["sterna_migrations_total", here, ("how", "crash")] == 1
        assert samples["sterna_resume_gap_seconds_sum", here, ("how", "crash")] == pytest.approx(0.3)
        assert samples["sterna_requests_total", here, ("path", "/v1/completions"), ("status", "200")] == 1
        assert samples["sterna_clients_gone_total", here] == 1
    for replica in ("r1", "r2"):
        where = (("market", "spot"), ("node", "n1"), ("replica", replica))
        assert samples["sterna_engine_running", *where] == 3
        assert samples["sterna_engine_free_blocks", *where] == 7
        assert samples["sterna_engine_tokens_generated_total", *where] == 100
        assert samples["sterna_engine_queue_wait_s_total", *where] == 1.5
    assert samples["sterna_node_info", ("draining", "true"), ("market", "spot"), ("node", "n1")] == 1
    assert text.count(b"# TYPE sterna_tokens_total counter") == 1


def test_processes_that_fail_to_answer_are_left_out() -> None:
    async def some() -> list[object]:
        return [1, RuntimeError("dead"), 2]

    async def none() -> list[object]:
        raise TimeoutError

    assert asyncio.run(answers([some(), none()])) == [1, 2]


def test_costs_are_added_up_by_market() -> None:
    part = {"market": "spot", "instance_type": "a", "dollars": 1.0, "on_demand_dollars": 3.0}
    by = [part, part | {"instance_type": "b"}, part | {"market": "on-demand", "dollars": 2.0}, part | {"dollars": None}]
    families = text_string_to_metric_families(page([], [], {"by": by}).decode())
    samples = {(sample.name, sample.labels["market"]): sample.value for family in families for sample in family.samples}
    assert samples["sterna_cost_dollars_total", "spot"] == samples["sterna_cost_dollars_total", "on-demand"] == 2
    assert samples["sterna_on_demand_cost_dollars_total", "spot"] == 6
