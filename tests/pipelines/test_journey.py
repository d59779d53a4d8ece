"""The journey's wiring: settings are checked before work starts, prompts are cut from held-out text, the table is complete."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import JourneyConfig
from pipelines.journey import STEPS, Arrival, _configure, journey, write_prompts

BUDGET = {"plan": {"budget": "minutes=1"}}


def test_every_input_is_an_earlier_output(tmp_path):
    made = {"prompts.jsonl"}
    for step in STEPS:
        for folder in step.reads.values():
            assert set((folder,) if isinstance(folder, str) else folder) <= made, step.stage
        made.add(step.output)
        config = _configure(step, JourneyConfig(stages=BUDGET), tmp_path)
        assert config.output == str(tmp_path / step.output)


def test_a_wrong_key_in_a_late_stage_stops_the_journey_before_the_first(tmp_path):
    with pytest.raises(ValueError, match=r"\[compress\]: unknown key 'optons'; did you mean 'options'"):
        journey(JourneyConfig(output=str(tmp_path / "j"), stages={**BUDGET, "compress": {"optons": "int8"}}))
    assert list(tmp_path.iterdir()) == []


def held_out(folder, texts):
    folder.mkdir(exist_ok=True)
    ids = [f"{n:04d}" for n in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": texts}), folder / "held_out.parquet")
    return folder


def test_prompts_are_openings_of_held_out_documents_some_repeated(tmp_path):
    texts = [f"def function_{n}(argument):\n" + f"    value = argument + {n}\n" * 30 for n in range(40)]
    write_prompts(held_out(tmp_path / "tokens", texts), tmp_path / "p.jsonl", 50)
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(prompts) == 50
    assert all(any(text.startswith(prompt) for text in texts) for prompt in prompts)
    assert all(prompt.endswith("\n") and len(prompt) <= 320 for prompt in prompts)
    assert len(set(prompts)) < 50, "batch inference is tried with repeated prompts"


def test_no_held_out_text_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="no held-out document is long enough"):
        write_prompts(held_out(tmp_path / "tokens", ["short"]), tmp_path / "p.jsonl", 5)


def test_the_table_lines_up():
    shown = str(
        Arrival(
            (("curate", "text", "j/corpus", "1.0 s", "3 kept"), ("tokenize", "corpus", "j/tokens", "12.0 s", "9 M tokens")),
            13.0,
            2**30,
            "p",
        )
    )
    lines = shown.splitlines()
    assert lines[0].index("headline") == lines[2].index("3 kept") == lines[3].index("9 M tokens")
    assert "peak memory 1.00 GiB" in shown
