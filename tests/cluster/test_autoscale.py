"""The target follows the load: up at once, down after a while."""

import pytest

from cluster.autoscale import AutoscaleSettings, Load, Target, target_replicas

RATE = AutoscaleSettings(replica_tokens_per_s=1000, utilization=0.8, scale_down_after_s=300, drain_queue_s=10)


def test_up_at_once():
    assert target_replicas(Load(4000), Target(1), RATE, 0.0).num_replicas == 5


def test_down_only_after_a_while_and_to_the_highest_need_meanwhile():
    target = Target(10)
    for now_s, tokens in ((0, 1600), (100, 3200), (200, 800), (299, 800)):
        target = target_replicas(Load(tokens), target, RATE, now_s)
        assert target.num_replicas == 10
    assert target_replicas(Load(800), target, RATE, 300).num_replicas == 4


def test_a_queue_asks_for_more():
    assert target_replicas(Load(4000, queued=50, queued_tokens=16000), Target(5), RATE, 0.0).num_replicas == 7


def test_a_queue_for_want_of_machines_does_not():
    assert target_replicas(Load(4000, queued=50, queued_tokens=16000, ready=4), Target(5), RATE, 0.0).num_replicas == 5


def test_nobody_asks_nothing_runs():
    assert target_replicas(Load(0), Target(0), RATE, 0.0).num_replicas == 0


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="min_replicas"):
        AutoscaleSettings(min_replicas=3, max_replicas=2)
