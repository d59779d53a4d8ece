"""What cannot be served is refused before anything starts."""

from typing import Any

import pytest

from cluster.settings import field_help, parse
from serve.config import ServeConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "model: is empty"),
        ({"port": 0}, "port: 0 is not a port"),
        ({"spot_replicas": 0, "on_demand_replicas": 0}, "no replica at all"),
        ({"max_streams": 0}, "max_streams: 0 is too few"),
        ({"max_wait_s": -1}, "max_wait_s: -1.0 is negative"),
        ({"max_queue": 0}, "max_queue: 0 is too few"),
        ({"max_ttft_s": 0}, "max_ttft_s: 0.0 leaves no time"),
        ({"max_request_s": -1}, "max_request_s: -1.0 leaves no time"),
        ({"move_kv": "sometimes"}, "move_kv"),
        ({"ledger": "s3://bucket/costs"}, "only a file can be appended to"),
        ({"node_prices": {"spot": -1}}, "node_prices: spot is -1"),
        ({"engine": {"dtype": "int3"}}, "engine.dtype"),
        ({"replicas": 3}, "unknown key 'replicas'"),
    ],
)
def test_a_bad_setting_is_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(ServeConfig, {"model": "folder", **fields}, where="a test")
    assert "\n" not in str(caught.value)


def test_every_field_explains_itself() -> None:
    assert all(field_help(ServeConfig).get(name) for name in ServeConfig.__dataclass_fields__)
