"""Batches of rows on one engine: each row answered as if alone, each batch one file written once, nobody left waiting."""

from __future__ import annotations

import doctest
import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelines.batch_engine
from pipelines.batch_engine import ANSWER, Answer, BatchEngine, EngineThread, answers_uri, seed_of, summary
from pipelines.config import GenerateConfig
from pipelines.rows import stage
from pipelines.vocabulary import CHAT_TEMPLATE
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Request, Sampling

ENGINE = EngineConfig(num_threads=1, dtype="float64", max_sequences=4)
PROMPTS = ["The tern flies", "def add(left, right):", None, "The tern flies", "", "for index in", "word " * 600, "back again"]
GREEDY = Sampling(max_tokens=6, temperature=0.0)


@pytest.fixture(scope="module")
def thread(tiny_model_dir):
    thread = EngineThread(tiny_model_dir, ENGINE)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def config(tiny_model_dir, tmp_path_factory):
    source = tmp_path_factory.mktemp("in") / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt, "name": f"n{n}"}) + "\n" for n, prompt in enumerate(PROMPTS)))
    return GenerateConfig(model=str(tiny_model_dir), input=str(source), engine=ENGINE, max_tokens=6, temperature=1.0, seed=3)


def make_engine(config, work: Path, column="prompt") -> BatchEngine:
    (work / "answers").mkdir(parents=True)
    stage(config.input, str(work / "input"))
    return BatchEngine(config, str(work), column, 1)


@pytest.fixture(scope="module")
def engine(config, tmp_path_factory):
    return make_engine(config, tmp_path_factory.mktemp("batches"))


def test_the_worked_examples():
    assert doctest.testmod(pipelines.batch_engine).failed == 0


@given(st.tuples(st.integers(0, 9), st.integers(0, 5000)), st.tuples(st.integers(0, 9), st.integers(0, 5000)))
def test_every_row_has_a_seed_of_its_own(one, other):
    assert (seed_of(*one) == seed_of(*other)) == (one == other)
    assert 0 <= seed_of(*one) < 1 << 63


def test_files_sort_as_their_rows_do():
    firsts = [0, 9, 10, 99_999, 100_000, 10**11]
    assert sorted(answers_uri("w", first) for first in firsts) == [answers_uri("w", first) for first in firsts]


def test_batches_asked_at_once_are_answered_as_each_row_alone(config, engine, tiny_model_dir):
    """Cut as they may be, from several threads, as Ray calls an actor."""
    cuts = [(0, 3), (3, 4), (4, 8)]
    with ThreadPoolExecutor(3) as callers:
        done = list(callers.map(lambda cut: engine({"first": np.array([cut[0]]), "last": np.array([cut[1]])}), cuts))
    rows = [row for first, _ in cuts for row in pq.read_table(answers_uri(engine.work, first)).to_pylist()]
    assert [(row["row"], row["name"], row["prompt"]) for row in rows] == [(n, f"n{n}", prompt) for n, prompt in enumerate(PROMPTS)]
    alone = Engine.load(tiny_model_dir, replace(ENGINE, draft="off"))
    for row in rows:
        if row["row"] in (2, 4, 6):
            assert (row["output"], row["finish_reason"], row["usage"]["completion_tokens"]) == (None, "error", 0)
            continue
        (own,) = alone.generate([row["prompt"]], config.sampling(seed_of(3, row["row"])))
        assert (row["output"], row["finish_reason"], row["error"]) == (own.text, own.finish_reason, None)
        assert row["usage"] == {"prompt_tokens": own.num_prompt_tokens, "completion_tokens": len(own.tokens)}
    assert rows[0]["output"] != rows[3]["output"], "the same prompt, drawn apart"
    assert [rows[n]["error"] for n in (2, 4)] == ["prompt: missing", "prompt: empty"]
    assert [(d["first"].tolist(), d["rows"].tolist(), d["errors"].tolist(), d["mistake"].tolist()) for d in done] == [
        ([0], [3], [1], [""]), ([3], [1], [0], [""]), ([4], [4], [2], [""]),
    ]  # fmt: skip
    assert sum(int(d["tokens"][0]) for d in done) == sum(row["usage"]["completion_tokens"] for row in rows)


def test_a_repeated_task_writes_no_second_row(config, tmp_path):
    """What Ray does after an actor's death: the same batch again, on another engine, maybe after it was written."""
    engine = make_engine(config, tmp_path)
    first = engine({"first": [0], "last": [2]})
    written = Path(answers_uri(str(tmp_path), 0))
    before = written.stat().st_mtime_ns
    again = BatchEngine(config, str(tmp_path), "prompt", 1)({"first": [0], "last": [2]})
    assert written.stat().st_mtime_ns == before
    assert {k: v.tolist() for k, v in first.items()} == {k: v.tolist() for k, v in again.items()}
    assert [file.name for file in (tmp_path / "answers").iterdir()] == ["000000000000.parquet"]
    table = pq.read_table(written)
    assert table.schema.names == ["prompt", "name", *ANSWER.names]
    assert summary(table)["tokens"].sum() == first["tokens"][0]


def test_conversations_of_all_kinds_are_answered_or_refused_row_by_row(config, tmp_path):
    shutil.copytree(config.model, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    good = [{"role": "user", "content": "The tern"}]
    conversations = [good, [], None, [{"role": "user", "content": None}], [{"role": "", "content": "x"}]]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in conversations))
    engine = make_engine(replace(config, model=str(tmp_path / "model"), input=str(tmp_path / "in.jsonl")), tmp_path, "messages")
    done = engine({"first": [0], "last": [5]})
    errors = pq.read_table(answers_uri(str(tmp_path), 0))["error"].to_pylist()
    assert done["errors"].tolist() == [4]
    assert errors[:3] == [None, "messages: empty", "messages: missing"]
    assert "refused by the chat template" in errors[3]
    assert errors[4] == "messages: a list, not a text or messages"


def test_a_model_the_engine_refuses_is_a_mistake_and_not_a_crash(config, tmp_path):
    refused = replace(config, engine=EngineConfig(num_threads=1, max_length=9999))
    done = make_engine(refused, tmp_path)({"first": [0, 2], "last": [2, 4]})
    assert all("max_length: 9999 is beyond" in each for each in done["mistake"].tolist())
    assert {len(values) for values in done.values()} == {2}
    assert not list((tmp_path / "answers").iterdir())


def test_a_request_that_never_fits_fails_alone(thread):
    long, short = thread.ask(Request(id="long", prompt=(5,) * 600)), thread.ask(Request(id="short", prompt=(5,) * 6, sampling=GREEDY))
    refused = long.result(timeout=30)
    assert (refused.output, refused.finish_reason, refused.prompt_tokens) == (None, "error", 600)
    assert "leave no room in the context" in refused.error
    assert short.result(timeout=30).finish_reason in ("stop", "length")


def test_an_id_asked_twice_at_once_is_refused_and_the_first_goes_on(thread):
    request = Request(id="same", prompt=(5,) * 6, sampling=replace(GREEDY, max_tokens=40, ignore_eos=True))
    first, second = thread.ask(request), thread.ask(request)
    assert "in use" in second.result(timeout=30).error
    assert first.result(timeout=30).completion_tokens == 40


def test_an_engine_that_cannot_load_fails_everyone_who_waits(tmp_path):
    thread = EngineThread(tmp_path, ENGINE)
    early: Future[Answer] = thread.ask(Request(id="early", prompt=(1,)))
    thread.start()
    for waiting in (thread.ready, early):
        with pytest.raises(ValueError, match="config"):
            waiting.result(timeout=30)
    with pytest.raises(RuntimeError, match="stopped"):
        thread.ask(None)


def test_an_engine_that_breaks_fails_everyone_who_waits(tiny_model_dir):
    """Those being answered, the one whose request broke it, and those behind it."""
    thread = EngineThread(tiny_model_dir, ENGINE)
    endless = Sampling(max_tokens=500, ignore_eos=True)
    waiting = [thread.ask(each) for each in (Request(id="a", prompt=(5, 6), sampling=endless), None, Request(id="b", prompt=(5,)))]
    thread.start()
    for future in waiting:
        with pytest.raises(AttributeError):
            future.result(timeout=30)
    with pytest.raises(RuntimeError, match="stopped"):
        thread.ask(Request(id="c", prompt=(5,)))
