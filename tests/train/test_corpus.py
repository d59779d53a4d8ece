from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.corpus import IGNORED, Cursor, Sequences, pack
from train.loop import run
from train.loss import CausalLoss
from train.recipe import Recipe
from train.state import State


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), per_worker=st.integers(1, 4), num_sequences=st.integers(1, 40),
    worlds=st.lists(st.sampled_from([1, 2, 3, 6]), min_size=1, max_size=12),
)  # fmt: skip
def test_any_workers_and_interruptions_consume_the_plain_order(seed, per_worker, num_sequences, worlds):
    """Each entry of `worlds` is a step taken by that many workers, each resumed from plain numbers."""
    batch = per_worker * 6
    consumed = []
    for step, world in enumerate(worlds):
        cursor = Cursor(seed, batch, num_sequences, step)
        consumed += [int(i) for rank in range(world) for i in cursor.share(rank, world)]
    plain, cursor = [], Cursor(seed, batch, num_sequences)
    for _ in worlds:
        plain += cursor.indices().tolist()
        cursor = cursor.next()
    assert consumed == plain
    for epoch in range(len(plain) // num_sequences):
        assert sorted(plain[epoch * num_sequences : (epoch + 1) * num_sequences]) == list(range(num_sequences))


def test_the_order_differs_by_seed_and_epoch():
    first, other = Cursor(0, 50, 50), Cursor(1, 50, 50)
    assert first.indices().tolist() != other.indices().tolist()
    assert first.indices().tolist() != first.next().indices().tolist()


def test_labels_and_positions_stay_inside_segments(tokens_dir: Path):
    source = Sequences.open(tokens_dir)
    assert len(source) == 64
    everything = np.arange(64)
    batch = source.batch(everything)
    segments = np.concatenate([np.load(p) for p in sorted((tokens_dir / "shards").glob("*.segments.npy"))]).astype(int)
    for row in range(64):
        for i in range(segments.shape[1]):
            inside = i + 1 < segments.shape[1] and segments[row, i] != 0 and segments[row, i] == segments[row, i + 1]
            assert batch.labels[row, i] == (batch.input_ids[row, i + 1] if inside else IGNORED)
            if segments[row, i]:
                assert batch.position_ids[row, i] == i - int(np.argmax(segments[row] == segments[row, i]))
            else:
                assert batch.position_ids[row, i] == 0
    assert batch.num_labels == source.num_labels(everything) == sum(source.num_labels(np.array([i])) for i in range(64))


def test_packed_loss_is_the_sum_of_its_segments_alone(tiny_model_dir: Path):
    """Segments packed together, padding included, neither see each other nor change each other's loss."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    loss = CausalLoss(model)
    rng = np.random.default_rng(1)
    documents = [rng.integers(4, 400, size=size).tolist() for size in (1, 2, 5, 9, 14, 30, 31)]
    masks = [[True] * len(document) for document in documents]
    together = pack(documents, masks, length=32, padding=3)
    assert len(together) == 3
    batch = together.batch(np.arange(3))
    with torch.no_grad():
        packed = loss(batch.input_ids, batch.labels, batch.position_ids)
        each = [model(input_ids=torch.tensor([document])).logits[0, :-1] for document in documents[1:]]
    alone = 0.0
    for document, logits in zip(documents[1:], each, strict=True):
        alone += float(torch.nn.functional.cross_entropy(logits, torch.tensor(document[1:]), reduction="sum"))
    assert batch.num_labels == sum(len(d) - 1 for d in documents)
    assert float(packed) == pytest.approx(alone, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 16), min_size=1, max_size=40))
def test_packing_keeps_every_document_whole(sizes):
    documents = [[index * 100 + j for j in range(size)] for index, size in enumerate(sizes)]
    packed = pack(documents, [[True] * size for size in sizes], length=16, padding=9)
    tokens, segments, _ = packed._rows(np.arange(len(packed)))
    found = [tokens[r][segments[r] == s].tolist() for r in range(len(packed)) for s in range(1, segments[r].max() + 1)]
    assert sorted(found) == sorted(documents)
    assert packed.num_tokens() == sum(sizes)
    assert len(packed) <= max(1, 2 * sum(sizes) // 16 + 1)


def test_supervised_tokens_alone_are_targets_and_survive_saving(tmp_path: Path):
    packed = pack([[1, 2, 3, 4], [5, 6]], [[False, False, True, True], [False, True]], length=8, padding=0)
    packed.save(tmp_path)
    batch = Sequences.open(tmp_path).batch(np.array([0]))
    assert batch.labels.tolist() == [[IGNORED, 3, 4, IGNORED, 6, IGNORED, IGNORED, IGNORED]]


def test_a_folder_without_shards_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no shards.*sterna tokenize"):
        Sequences.open(tmp_path)
    (tmp_path / "shards").mkdir()
    np.save(tmp_path / "shards/00000.tokens.npy", np.zeros((2, 4), np.uint16))
    np.save(tmp_path / "shards/00000.segments.npy", np.zeros((2, 3), np.uint16))
    with pytest.raises(ValueError, match="do not fit"):
        Sequences.open(tmp_path)


def numbered(num_sequences: int, index: np.ndarray | None) -> Sequences:
    """Sequences that hold nothing but their own number."""
    tokens = np.repeat(np.arange(num_sequences, dtype=np.uint32)[:, None], 4, axis=1)
    return Sequences([tokens[:3], tokens[3:]], [np.ones((3, 4), np.uint16), np.ones((num_sequences - 3, 4), np.uint16)], index=index)


class Listener:
    """A worker that learns nothing and notes which sequences it is given."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = self.replica, self.num_replicas = rank, world_size
        self.given: list[list[int]] = []

    def step(self, batches, num_labels, learning_rate, judge):
        self.given.append([number for batch in batches for number in batch.input_ids[:, 0].tolist()])
        judge(1.0)
        return 1.0, 1.0

    def remember(self):
        pass


@settings(max_examples=30, deadline=None)
@given(
    st.permutations(range(17)),
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 4)), min_size=1, max_size=4),
    st.sampled_from([1, 2]),
)  # fmt: skip
def test_training_consumes_the_index_in_order_on_any_workers(order, stretches, micro_batch):
    """Each stretch is some steps on so many workers, each resumed from the state of the one before."""
    index, batch = np.array(order), 8
    source, state, consumed = numbered(17, index), State(), []
    for world, steps in stretches:
        recipe = Recipe(
            steps=state.step + steps, global_batch=batch, micro_batch=micro_batch, sequence_length=4, learning_rate=1.0, num_workers=world
        )
        workers = [Listener(rank, world) for rank in range(world)]
        states = [run(worker, source, recipe, state=State.from_json(state.to_json())) for worker in workers]
        for parts in zip(*(worker.given for worker in workers), strict=True):
            consumed += [number for part in parts for number in part]
        state = states[0]
    assert consumed[:17] == order[: len(consumed)]
    plain = numbered(17, None)
    steps = len(consumed) // batch
    drawn = [int(i) for step in range(steps) for i in Cursor(0, batch, len(plain), step).indices()]
    assert consumed[17:] == drawn[17:]  # the second epoch is as without an index


def test_an_index_is_kept_beside_the_shards(tmp_path: Path):
    order = np.random.default_rng(0).permutation(9)
    numbered(9, order).save(tmp_path)
    assert Sequences.open(tmp_path).index.tolist() == order.tolist()
    np.save(tmp_path / "index.npy", order[:-1])
    with pytest.raises(ValueError, match=r"index.npy: is no order of the 9 sequences"):
        Sequences.open(tmp_path)
    (tmp_path / "index.npy").unlink()
    assert Sequences.open(tmp_path).index is None
