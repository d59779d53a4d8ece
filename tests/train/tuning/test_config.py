from __future__ import annotations

from typing import Any

import pytest

from cluster.settings import field_help, parse
from train.tuning.config import TRAITS, TuneConfig


def config(**fields: Any) -> TuneConfig:
    return parse(TuneConfig, {"model": "m", "output": "o", "data": ["d"], **fields}, where="command line")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": []}, "data: is empty"),
        ({"held_out": 1.5}, "held_out"),
        ({"rank": 0}, "rank: is 0"),
        ({"beta": 0}, "beta: is 0"),
        ({"learning_rate": -1}, "learning_rate: is -1"),
        ({"method": "lorra"}, "method"),
        ({"method": "prompt", "merge": True}, "merge: prompt adds to the model"),
        ({"method": "full", "merge": False}, "merge: full changes every weight"),
        ({"method": "adalora", "zero_stage": 2}, "zero_stage: adalora"),
        ({"method": "adalora", "objective": "preferences"}, "objective: adalora"),
        ({"method": "ia3", "embeddings": True}, "embeddings: ia3 does not change them"),
        ({"method": "lora", "zero_stage": 3}, "zero_stage: 3 keeps no embedding whole"),
    ],
)
def test_settings_refuse_nonsense_in_one_line(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        config(**fields)
    assert "\n" not in str(caught.value)


def test_what_is_left_out_follows_from_the_method():
    assert (config().merged, config(merge=False).merged, config(method="prefix").merged) == (True, False, False)
    assert (config().sharded, config(method="full").sharded, config(zero_stage=3, embeddings=False).sharded) == (0, 2, 3)
    assert config(method="dora").peak_learning_rate(256) == TRAITS["dora"].learning_rate
    assert config(method="dora").peak_learning_rate(2048) < TRAITS["dora"].learning_rate / 4
    assert config(method="bitfit").peak_learning_rate(2048) == TRAITS["bitfit"].learning_rate
    assert config(method="dora", objective="preferences").peak_learning_rate(256) == pytest.approx(TRAITS["dora"].learning_rate / 10)
    assert config(objective="preferences", learning_rate=0.5).peak_learning_rate(4096) == 0.5


def test_embeddings_are_adapted_where_the_update_is_merged_and_no_targets_are_named():
    assert config(method="rslora").adapts_embeddings
    for fields in ({"merge": False}, {"targets": ["q_proj"]}, {"method": "dora"}, {"method": "full"}, {"embeddings": False}):
        assert not config(**fields).adapts_embeddings
        assert fields.get("method") or config(**fields | {"embeddings": True}).adapts_embeddings


def test_every_setting_is_documented():
    assert set(field_help(TuneConfig)) == set(TuneConfig.__dataclass_fields__)
