"""The router in a real Serve application: a request goes to the replica it names, and elsewhere if that one is gone."""

from collections.abc import Iterator

import pytest
import ray.serve
from ray.serve.config import RequestRouterConfig

from serve.request_router import ChosenReplica
from serve.router import BOARD


@ray.serve.deployment(
    num_replicas=2, ray_actor_options={"num_cpus": 0.1}, request_router_config=RequestRouterConfig(request_router_class=ChosenReplica)
)
class Answers:
    """Says which replica answers."""

    def __call__(self, replica_id: str = "") -> str:
        return ray.serve.get_replica_context().replica_id.unique_id


@pytest.fixture(scope="module")
def handle(ray_session: None) -> Iterator[ray.serve.handle.DeploymentHandle]:
    yield ray.serve.run(Answers.bind(), name="answers", route_prefix=None)
    ray.serve.shutdown()


def ask(handle: ray.serve.handle.DeploymentHandle, replica_id: str) -> str:
    return handle.remote(replica_id=replica_id).result(timeout_s=20)


def test_the_named_replica_answers(handle: ray.serve.handle.DeploymentHandle) -> None:
    ask(handle, "")  # the first call makes this process's router
    names = {place.replica_id for place in BOARD.places() if place.deployment == "Answers"}
    assert len(names) == 2
    for name in names:
        assert [ask(handle, name) for _ in range(5)] == [name] * 5


def test_a_replica_that_is_gone_is_answered_for(handle: ray.serve.handle.DeploymentHandle) -> None:
    assert ask(handle, "gone-long-ago")
