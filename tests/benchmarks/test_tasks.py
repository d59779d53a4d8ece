"""Drafting's tasks and the summariser's data: deterministic, of the right lengths, nothing held out is trained on."""

import ast
import doctest
import gzip
import json
from pathlib import Path

from benchmarks import summariser, tasks
from benchmarks.drafting import table


def test_doctests():
    assert doctest.testmod(tasks).failed == doctest.testmod(summariser).failed == 0


def test_an_edit_and_its_rest_are_the_function_renamed(data_dir: Path):
    with gzip.open(data_dir / "code/HumanEval.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines][:40]
    for row in rows:
        found = tasks.edit_prompt(row["prompt"] + row["canonical_solution"], row["entry_point"])
        assert found is not None
        whole = "".join(found)
        names = [n.name for n in ast.parse(whole).body]
        assert names == [row["entry_point"], *(f"{row['entry_point']}_v{i}" for i in (2, 3, 4))]


def test_problems_fit(data_dir: Path, models_dir: Path):
    for task in ("complete", "edit"):
        found = tasks.problems(task, models_dir / "tiny-code", data_dir, 10)
        assert len(found) == 10
        assert all(len(p.prompt) <= tasks.LONGEST_PROMPT and p.num_output >= 32 for p in found)


def test_held_out_articles_are_not_trained_on(data_dir: Path):
    train, held_out = summariser.split_pairs(data_dir)
    assert len(train) > 1000
    assert len(held_out) > 100
    assert not {passage for passage, _ in train} & {passage for passage, _ in held_out}
    assert summariser.split_pairs(data_dir) == (train, held_out)
    for passage, lead in train[:50]:
        assert passage.startswith(lead)


def test_the_table_judges():
    row = {"seconds_off": 2.0, "seconds_on": 1.0, "tokens_off": 10, "tokens_on": 10, "steps_on": 5, "steps_off": 10}
    row |= {"same": 1, "answers": 1, "repeated": 0.5, "pair": 0}
    slow = row | {"seconds_on": 3.0}
    lines = [
        {"task": t, "temperature": 0.0, "batch": 1, "rows": [r] * 4} for t, r in (("edit", row), ("summarise", slow), ("complete", slow))
    ]
    assert [line.split()[-1] for line in table(lines).splitlines()[1:4]] == ["met", "MISSED", "MISSED"]
