"""Batch inference: every row exactly once, in order, whatever is repeated, broken or killed."""

from __future__ import annotations

import doctest
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.generate
from cluster.ledger import Bill, Life, MachineCost
from cluster.market import Pool
from pipelines.batch_engine import BatchEngine
from pipelines.config import GenerateConfig
from pipelines.generate import _cost_words, generate
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Request, Sampling

ONE = EngineConfig(num_threads=1)
PROMPTS = ["def add(left, right):", "The tern flies", "for index in range(10):", "The tern flies"]


def config_of(model, source, output, **given):
    return GenerateConfig(
        model=str(model), input=str(source), output=str(output), engine=ONE, **{"max_tokens": 8, "concurrency": 1, **given}
    )


def write_prompts(path: Path, prompts) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, "name": f"n{index}"}) + "\n" for index, prompt in enumerate(prompts)))
    return path


def answers_of(artifact) -> list[dict]:
    return [row for part in sorted(artifact.local().glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def test_the_worked_examples():
    assert doctest.testmod(pipelines.generate).failed == 0


@pytest.fixture(scope="module")
def answered(ray_session, tiny_model_dir, tmp_path_factory):
    """A run over repeated, missing, empty, over-long prompts and a broken line."""
    folder = tmp_path_factory.mktemp("generate")
    source = write_prompts(folder / "in.jsonl", [*PROMPTS, None, "", "word " * 600, PROMPTS[0]])
    with source.open("a") as out:
        out.write("{broken\n" + json.dumps({"name": "no prompt at all"}) + "\n")
    config = config_of(tiny_model_dir, source, folder / "rows", batch_size=3, node_prices={"on-demand": 36.0})
    return config, generate(config)


def test_every_row_is_answered_once_and_in_order(answered, tiny_model_dir):
    rows = answers_of(answered[1])
    assert [row["row"] for row in rows] == list(range(9))
    assert [row["name"] for row in rows] == [*(f"n{index}" for index in range(8)), "no prompt at all"]
    own = Engine.load(tiny_model_dir, ONE).generate(PROMPTS, Sampling(max_tokens=8, temperature=0.0))
    for row, completion in zip(rows, own, strict=False):
        assert row["output"] == completion.text
        assert row["finish_reason"] == completion.finish_reason
        assert row["usage"] == {"prompt_tokens": completion.num_prompt_tokens, "completion_tokens": len(completion.tokens)}
        assert row["error"] is None
    assert rows[7]["output"] == rows[0]["output"]


def test_rows_that_cannot_be_answered_say_why_and_stop_nothing(answered):
    rows = answers_of(answered[1])
    failed = {row["row"]: row["error"] for row in rows if row["finish_reason"] == "error"}
    assert failed.keys() == {4, 5, 6, 8}
    assert failed[4] == failed[8] == "prompt: missing"
    assert failed[5] == "prompt: empty"
    assert "leave no room in the context" in failed[6]
    assert all(rows[index]["output"] is None for index in failed)


def test_the_manifest_counts_every_row_and_line(answered):
    counts = answered[1].manifest.counts
    assert counts["rows"] == 9 == counts["errors"] + counts.get("stop", 0) + counts.get("length", 0)
    assert counts["unreadable"] == 1
    dropped = (answered[1].local() / "dropped" / "unreadable.jsonl").read_text().splitlines()
    assert [json.loads(line)["position"] for line in dropped] == [9]
    assert "9 rows" in answered[1].manifest.headline
    assert not (answered[1].local() / "work").exists()
    assert answered[1].manifest.figures.keys() == {"lengths", "rate"}


def test_what_it_cost_is_told_where_machines_have_prices(answered):
    manifest = answered[1].manifest
    dollars, seconds = manifest.metrics["dollars"], manifest.metrics["seconds_this_run"]
    assert 0 < dollars < 0.01 * seconds, "a cent a second, from when the cluster was there"
    assert manifest.metrics["dollars_per_million_tokens"] == pytest.approx(1e6 * dollars / manifest.metrics["tokens_this_run"])
    assert manifest.headline.endswith("per million tokens)")


def test_what_the_rest_will_cost_is_told_meanwhile():
    machine = MachineCost(Life("a", Pool("any"), "on-demand", 0.0), 1.0, 2.0, 2.0)
    assert _cost_words(Bill((machine,), tokens=5), 0.25) == "  $2.00 of about $8.00"
    assert _cost_words(Bill((replace(machine, dollars=None),), tokens=5), 0.25) == ""


def test_a_second_run_does_nothing_even_with_other_concurrency(answered, capsys):
    config, artifact = answered
    again = generate(config_of(config.model, config.input, config.output, batch_size=3, concurrency=2))
    assert again.digest == artifact.digest
    assert "already done" in capsys.readouterr().err


def test_an_adapter_answers_all_rows(ray_session, tiny_model_dir, tiny_adapter_dir, tmp_path):
    source = write_prompts(tmp_path / "in.jsonl", PROMPTS)
    rows = answers_of(generate(config_of(tiny_model_dir, source, tmp_path / "rows", adapter=str(tiny_adapter_dir))))
    engine = Engine.load(tiny_model_dir, replace(ONE, adapters=(f"it={tiny_adapter_dir}",)))
    want = {}
    for number, prompt in enumerate(PROMPTS):
        sampling = Sampling(max_tokens=8, temperature=0.0)
        engine.add(Request(id=str(number), prompt=tuple(engine.tokenizer.encode(prompt)), sampling=sampling, adapter="it"))
        while engine.has_work:
            want[number] = want.get(number, "") + "".join(emission.text for emission in engine.step())
    assert [row["output"] for row in rows] == list(want.values())
    plain = engine.generate(PROMPTS, Sampling(max_tokens=8, temperature=0.0))
    assert [row["output"] for row in rows] != [completion.text for completion in plain]


def test_what_is_no_adapter_leaves_nothing(tiny_model_dir, tmp_path):
    source = write_prompts(tmp_path / "in.jsonl", PROMPTS)
    with pytest.raises(ValueError, match="no adapter"):
        generate(config_of(tiny_model_dir, source, tmp_path / "rows", adapter=str(tmp_path / "nowhere")))
    assert not (tmp_path / "rows").exists()
    with pytest.raises(ValueError, match=r"engine\.adapters: a row cannot name one"):
        GenerateConfig(model="m", input="i", engine=EngineConfig(adapters=("a=b",)))


def test_a_rerun_and_other_batches_draw_the_same_tokens(ray_session, tiny_model_dir, tmp_path):
    table = pa.table({"text": ["The tern flies"] * 6})
    pq.write_table(table, tmp_path / "in.parquet")
    given = {"prompt_column": "text", "temperature": 1.0, "seed": 5}
    runs = []
    for batch_size in (2, 4):
        config = config_of(tiny_model_dir, tmp_path / "in.parquet", tmp_path / f"out{batch_size}", batch_size=batch_size, **given)
        runs.append([row["output"] for row in answers_of(generate(config))])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 3, "each row draws for itself"


def test_messages_go_through_the_chat_template(ray_session, tiny_model_dir, tmp_path):
    messages = [{"role": "user", "content": "The tern"}]
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"messages": []}) + "\n")
    rows = answers_of(generate(config_of(tiny_model_dir, tmp_path / "in.jsonl", tmp_path / "out")))
    engine = Engine.load(tiny_model_dir, ONE)
    own = engine.generate([engine.tokenizer.encode_chat(messages)], Sampling(max_tokens=8, temperature=0.0))
    assert rows[0]["output"] == own[0].text
    assert rows[0]["messages"] == messages
    assert rows[1]["error"] == "messages: empty"


def test_messages_in_parts_of_text_are_the_messages(ray_session, tiny_model_dir, tmp_path):
    """Contents of both kinds in one column, or only parts; what is not text is the row's error, and a text is a text."""
    whole = [{"role": "user", "content": "The tern flies"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "The tern"}, {"type": "text", "text": " flies"}]}]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "tern.png"}}]}]
    text = json.dumps(whole)
    outputs, errors = [], []
    for name, column in (("mixed", [whole, parts, image, "[1]", 3, {"a": 1}]), ("parts", [parts, image]), ("texts", [text])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in column))
        rows = answers_of(generate(config_of(tiny_model_dir, tmp_path / f"{name}.jsonl", tmp_path / name)))
        outputs.append([row["output"] for row in rows])
        errors.append([row["error"] for row in rows])
    engine = Engine.load(tiny_model_dir, ONE)
    prompts = [engine.tokenizer.encode_chat(whole), *(engine.tokenizer.encode(each) for each in (text, "[1]", "3", '{"a": 1}'))]
    chat, plain, *others = (each.text for each in engine.generate(prompts, Sampling(max_tokens=8, temperature=0.0)))
    assert outputs == [[chat, chat, None, *others], [chat, None], [plain]]
    not_text = "messages: a content part of type 'image_url' is not text"
    assert errors == [[None, None, not_text, None, None, None], [None, not_text], [None]]


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([{"text": "a"}], {}, "no column 'prompt'; set prompt_column to one of text"),
        ([{"prompt": 3}], {}, "holds int64, not texts or messages"),
        ([{"prompt": "a", "output": "b"}], {}, "has a column 'output' of its own"),
        ([], {}, "not one row"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tiny_model_dir, tmp_path, rows, given, message):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message) as error:
        generate(config_of(tiny_model_dir, tmp_path / "in.jsonl", tmp_path / "out", **given))
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_model_that_the_engine_refuses_is_one_line(ray_session, tiny_model_dir, tmp_path):
    source = write_prompts(tmp_path / "in.jsonl", PROMPTS)
    config = GenerateConfig(
        model=str(tiny_model_dir), input=str(source), output=str(tmp_path / "out"), concurrency=1, engine=EngineConfig(max_length=9999)
    )  # fmt: skip
    with pytest.raises(ValueError, match="max_length: 9999 is beyond"):
        generate(config)
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_settings_are_checked_before_anything_is_read():
    for wrong in ({"temperature": -1}, {"max_tokens": 0}, {"batch_size": 0}, {"concurrency": -1}, {"stop": ("",)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            config_of("m", "i", "o", **wrong)


DRIVER = """
import json, sys
from cluster.runtime import attached
from cluster.settings import parse
from pipelines.generate import generate
from pipelines.config import GenerateConfig
with attached(num_cpus=2):
    generate(parse(GenerateConfig, json.loads(sys.argv[1]), where="test"))
"""
NUM_ROWS = 120


def long_config(tiny_model_dir, folder):
    source = write_prompts(folder / "in.jsonl", [PROMPTS[index % 3] for index in range(NUM_ROWS)])
    return {
        "model": str(tiny_model_dir), "input": str(source), "output": str(folder / "rows"), "max_tokens": 150, "temperature": 1.0,
        "batch_size": 4, "concurrency": 1, "engine": {"num_threads": 1, "max_sequences": 4, "draft": "off"},
    }  # fmt: skip


def await_batches(answers: Path, num: int, alive) -> set[str]:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and alive():
        there = {file.name for file in answers.glob("*.parquet")} if answers.is_dir() else set()
        if len(there) >= num:
            return there
        time.sleep(0.02)
    raise AssertionError(f"never saw {num} batches")


def mark(file: Path) -> None:
    """Make a finished batch recognisable: a rerun that redoes it would lose the mark."""
    table = pq.read_table(file)
    outputs = pa.array(["done before the kill"] * len(table), pa.string())
    pq.write_table(table.set_column(table.column_names.index("output"), "output", outputs), file)


def test_a_killed_driver_costs_only_what_was_being_computed(ray_session, tiny_model_dir, tmp_path, capsys):
    data = long_config(tiny_model_dir, tmp_path)
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": root}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, json.dumps(data)], env=env, cwd=root, stderr=subprocess.DEVNULL)
    answers = tmp_path / "rows.partial" / "work" / "answers"
    try:
        await_batches(answers, 3, lambda: driver.poll() is None)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    done = sorted(answers.glob("*.parquet"))
    assert 3 <= len(done) < NUM_ROWS // 4
    assert not (tmp_path / "rows").exists()
    for file in done:
        mark(file)
    from cluster.settings import parse

    rows = answers_of(generate(parse(GenerateConfig, data, where="test")))
    assert f"{len(done)} of {NUM_ROWS // 4} batches were done before" in capsys.readouterr().err
    assert [row["row"] for row in rows] == list(range(NUM_ROWS))
    assert sum(row["output"] == "done before the kill" for row in rows) == 4 * len(done)
    assert all(row["finish_reason"] in ("stop", "length") for row in rows)


def test_a_killed_engine_is_replaced(ray_session, tiny_model_dir, tmp_path):
    from cluster.settings import parse

    data = long_config(tiny_model_dir, tmp_path)
    answers = tmp_path / "rows.partial" / "work" / "answers"
    killed = []

    def kill_the_engine() -> None:
        await_batches(answers, 3, lambda: True)
        killed.extend(worker for worker in our_workers() if "BatchEngine" in " ".join(worker.cmdline()))
        for worker in killed:
            worker.kill()

    killer = threading.Thread(target=kill_the_engine)
    killer.start()
    rows = answers_of(generate(parse(GenerateConfig, data, where="test")))
    killer.join()
    assert len(killed) == 1
    assert [row["row"] for row in rows] == list(range(NUM_ROWS))
    assert all(row["finish_reason"] in ("stop", "length") for row in rows)


def our_workers() -> list[psutil.Process]:
    """The worker processes of this session's own Ray, and no other's."""
    import ray

    node = ray._private.worker._global_node
    return psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)


@pytest.fixture
def bucket(s3_environment):
    """An S3 bucket on this machine."""
    import boto3

    boto3.client("s3").create_bucket(Bucket="sterna")
    return "s3://sterna"


def test_rows_in_a_bucket_are_answered_and_an_interrupted_run_goes_on(bucket, ray_session, tiny_model_dir, tmp_path, monkeypatch, capsys):
    """The same stage with input and output on S3; engines run in this process, which knows the bucket, and the first run breaks off."""
    import boto3

    s3 = boto3.client("s3")
    s3.put_object(Bucket="sterna", Key="in/a.jsonl", Body="".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS[:2]))
    s3.put_object(Bucket="sterna", Key="in/b.jsonl", Body="".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS[2:]) + "broken")
    done = []

    def here(config, work, column, missing):
        engine = BatchEngine(config, work, column, 1)
        for first, last in missing:
            if len(done) == 1 and first:
                done.append("broken off")
                raise ConnectionError("the machine vanished")
            done.append(first)
            yield {name: value[0] for name, value in engine({"first": [first], "last": [last]}).items()}

    monkeypatch.setattr(pipelines.generate, "_dataset", here)
    config = config_of(tiny_model_dir, f"{bucket}/in/*.jsonl", f"{bucket}/rows", batch_size=2)
    with pytest.raises(ConnectionError):
        generate(config)
    artifact = generate(config)
    assert done == [0, "broken off", 2]
    assert "1 of 2 batches were done before" in capsys.readouterr().err
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket="sterna")["Contents"]]
    assert [key for key in keys if "work" in key] == []
    assert artifact.manifest.counts["rows"] == 4
    assert artifact.manifest.counts["unreadable"] == 1
    own = Engine.load(tiny_model_dir, ONE).generate(PROMPTS, Sampling(max_tokens=8, temperature=0.0))
    local = artifact.local(tmp_path)
    assert [row["output"] for part in sorted(local.glob("*.parquet")) for row in pq.read_table(part).to_pylist()] == [c.text for c in own]
