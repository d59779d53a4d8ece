"""What is kept between runs comes back as it was, under the key it was kept by, and a run that dies leaves nothing half."""

from __future__ import annotations

import numpy as np
import pytest

from train.compress.divergence import Reference, Trace
from train.compress.store import Store


def reference_of(lengths):
    rng = np.random.default_rng(0)
    completions = tuple(tuple(rng.integers(0, 50, n).tolist()) for n in lengths)
    traces = tuple(Trace(np.array(c), *(rng.random(len(c)) for _ in range(3))) for c in completions)
    ids = tuple(rng.integers(0, 50, (n, 4)).astype(np.int32) for n in lengths)
    return Reference(tuple((1, *c[:2]) for c in completions), completions, traces, ids, tuple(rng.random((n, 4)) for n in lengths))


def test_a_reference_is_made_once_per_key(tmp_path):
    made = reference_of([3, 1, 5])
    store = Store(tmp_path / "work")
    for found in (store.reference(["a", 1], lambda: made), Store(tmp_path / "work").reference(["a", 1], lambda: pytest.fail("made twice"))):
        assert (found.prompts, found.completions) == (made.prompts, made.completions)
        for ours, theirs in zip(found.traces, made.traces, strict=True):
            for name in ("likeliest", "losses", "margins", "kl"):
                assert np.array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("top_ids", "top_logprobs"):
            assert all(map(np.array_equal, getattr(found, name), getattr(made, name)))
        assert found.top_ids[0].dtype == np.int32
    assert store.reference(["a", 2], lambda: reference_of([2])).completions != made.completions


def test_tables_are_kept_by_key(tmp_path):
    store = Store(tmp_path)
    assert store.read("judged", ["k"]) == {}
    store.write("judged", ["k"], {"plan": [1, 0.5]})
    store.write("judged", ["k"], {"plan": [1, 0.25]})
    assert store.read("judged", ["k"]) == {"plan": [1, 0.25]}
    assert store.read("judged", ["other"]) == store.read("scores", ["k"]) == {}


def test_a_run_that_dies_while_it_writes_leaves_no_file(tmp_path):
    def die():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).reference("k", die)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/work: cannot be written"):
        Store(tmp_path / "file" / "work")
