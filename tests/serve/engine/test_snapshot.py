"""Snapshots: a JSON round trip loses nothing, and nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.request import Request, Sampling
from serve.engine.snapshot import Snapshot

samplings = st.builds(
    Sampling,
    max_tokens=st.integers(1, 100),
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
)
tokens = st.lists(st.integers(0, 1000), min_size=1, max_size=8).map(tuple)
requests = st.builds(
    Request, id=st.text(max_size=8), prompt=tokens, sampling=samplings, choice=st.integers(0, 4), tenant=st.text(max_size=4)
)


@settings(deadline=None)
@given(requests, tokens)
def test_json_round_trip(request: Request, emitted: tuple[int, ...]) -> None:
    snapshot = Snapshot(origin=request, emitted=emitted)
    again = Snapshot.from_json(snapshot.to_json())
    assert again == snapshot
    assert again.request().emitted == emitted
    assert again.request().sampling == request.sampling


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"version": 1}', '{"version": 1, "origin": {"sampling": {"x": 1}}, "emitted": []}', "[" * 100_000]
)
def test_what_is_no_snapshot_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a snapshot"):
        Snapshot.from_json(text)


@pytest.mark.parametrize(("fields", "name"), [('"prompt": [1.5]', "prompt"), ('"prompt": [1], "sampling": {"n": "x"}', "n")])
def test_wrong_values_are_named(fields: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        Snapshot.from_json('{"version": 1, "origin": {"id": "a", "sampling": {}, ' + fields + '}, "emitted": []}')
    with pytest.raises(ValueError, match=r"^emitted: "):
        Snapshot.from_json('{"version": 1, "origin": {"id": "a", "sampling": {}, "prompt": [1]}, "emitted": ["x"]}')


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2; this engine reads version 1"):
        Snapshot.from_json('{"version": 2}')
