"""Shared passages: all that are there word by word, and nothing that only hashes alike."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curate import evaluations
from pipelines.curate.evaluations import Evaluations, Item, Shared, read_items
from pipelines.curate.normalize import canonical

WORDS = st.lists(st.sampled_from(["a", "b", "1"]), max_size=14).map(" ".join)
ITEMS = st.lists(st.lists(WORDS.filter(bool), min_size=1, max_size=3), max_size=4)


def runs_by_hand(text, item, ngram, shortest):
    """Begins of the runs that an item's rule finds, looked for at every place."""
    words = text.split()
    fields = [field.split() for field in item.passages]
    wanted = [gram for field in fields for i in range(len(field) - ngram + 1) if {"a", "b"} & set(gram := field[i : i + ngram])]
    wanted = wanted or [field for field in fields if len(field) >= shortest and {"a", "b"} & set(field)]
    return {i for one in wanted for i in range(len(words)) if words[i : i + len(one)] == one}


@pytest.mark.parametrize("collide", [False, True])
@given(texts=st.lists(WORDS, max_size=4), fields=ITEMS, ngram=st.integers(2, 5), shorter=st.integers(0, 2))
def test_shared_passages_are_those_found_by_hand(collide, texts, fields, ngram, shorter):
    items = [Item("set", str(i), tuple(passages)) for i, passages in enumerate(fields)]
    shortest = max(1, ngram - shorter)
    with pytest.MonkeyPatch.context() as patch:
        if collide:  # the words decide, however bad the hash
            real = evaluations.shingles
            patch.setattr(evaluations, "shingles", lambda texts, n: [grams % np.uint64(5) for grams in real(texts, n)])
        index = Evaluations(items, ngram=ngram, shortest=shortest)
        found = index.shared(texts)
    for text, shared in zip(texts, found, strict=True):
        for number, item in enumerate(items):
            begins = runs_by_hand(text, item, ngram, shortest)
            mine = [run for run in shared if run.item == number]
            assert bool(begins) == bool(mine)
            assert {run.begin for run in mine} <= begins
            assert all(any(run.begin <= begin < run.end for run in mine) for begin in begins)
            assert all(one.end < other.begin for one, other in pairwise(mine))
    sizes = [[len(passage.split()) for passage in item.passages if {"a", "b"} & set(passage)] for item in items]
    assert index.too_short == [i for i, each in enumerate(sizes) if max(each, default=0) < shortest]


def test_case_spacing_and_punctuation_hide_nothing(tmp_path):
    (tmp_path / "riddles.jsonl").write_text(
        json.dumps({"question": "What has four legs, (two) wings & no feathers at all?", "answer": "x"})
    )
    index = Evaluations(read_items([str(tmp_path / "riddles.jsonl")]), ngram=8)
    text = canonical("So: WHAT   has\nfour legs -- two wings,\n\nno feathers... at ALL? Nothing.")
    assert index.shared([text, canonical("what has four legs and two wings")]) == [[Shared(0, 1, 11)], []]


def test_grams_that_are_common_count_for_nothing():
    licence = " ".join(f"l{i}" for i in range(8))
    index = Evaluations([Item("s", "0", (f"{licence} own words of this item here",))], ngram=5)
    texts = [licence, f"{licence} x", "own words of this item here", "other words"]
    held = index.documents_by_gram(texts)
    assert sorted(held.values()) == [1, 1, 2, 2, 2, 2]
    without = index.without(frozenset(gram for gram, documents in held.items() if documents > 1))
    assert [bool(shared) for shared in index.shared(texts)] == [True, True, True, False]
    assert [bool(shared) for shared in without.shared(texts)] == [False, False, True, False]


def test_what_repeats_itself_is_matched_once_a_place():
    again = " ".join(["ha"] * 60)
    index = Evaluations([Item("jokes", "0", (again, again))], ngram=5)
    assert len(list(index._long.matches([again], whole=False))) == 56
    assert index.shared([f"so {again}"]) == [[Shared(0, 1, 61)]]


def test_numbers_alone_are_nobodys_passage():
    """An item of MBPP holds `[1, 2, ... 10]) == [2, 4, 6, 8, 10]`, as many a table does; with its words it is found."""
    numbers = "1 2 3 4 5 6 7 8 9 10 2 4 6 8 10"
    index = Evaluations([Item("mbpp", "40", (f"assert filter_even {numbers}",)), Item("primes", "0", (numbers,))])
    assert index.shared([f"rows {numbers} and more", f"assert filter_even {numbers}"]) == [[], [Shared(0, 0, 14)]]
    assert index.too_short == [1]


def test_every_format_and_only_the_fields_that_are_asked_for(tmp_path):
    rows = [{"task_id": "T/1", "q": "one two", "more": {"deep": ["three", 4]}}, {"q": None, "more": "five"}]
    (tmp_path / "plain.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with gzip.open(tmp_path / "packed.v2.jsonl.gz", "wt") as stream:
        stream.write("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.table({"q": ["six", ""], "n": [1, 2]}), tmp_path / "table.parquet")
    (tmp_path / "prose.txt").write_text("Seven eight.\nNine.\n\n\n\nTen!\n")
    names = ("plain.jsonl", "packed.v2.jsonl.gz", "table.parquet", "prose.txt")
    items = read_items([str(tmp_path / name) for name in names])
    assert [(item.set, item.name, item.passages) for item in items] == [
        *((name, *rest) for name in ("plain", "packed") for rest in (("0 (T/1)", ("t 1", "one two", "three")), ("1", ("five",)))),
        ("table", "0", ("six",)),
        ("prose", "0", ("seven eight nine",)),
        ("prose", "1", ("ten",)),
    ]
    assert [item.passages for item in read_items([str(tmp_path / "plain.jsonl")], ["q"])] == [("one two",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.jsonl", b"{broken", "set.jsonl: cannot be read"),
        ("set.parquet", b"no", "set.parquet: cannot be read"),
        ("set.txt", b"\xff\xfe\x00", "set.txt: cannot be read"),
        ("set.csv", b"a,b", "not an evaluation set"),
        ("set.jsonl", b'{"n": 1}', "holds no text"),
        (None, b"", "no such file"),
        (".", None, "is a folder; name its files"),
    ],
)
def test_mistakes_are_one_line(tmp_path, name, content, message):
    if name is not None and content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_items([str(tmp_path / (name or "none.jsonl"))])
    assert "\n" not in str(caught.value)


def test_two_sets_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.txt").write_text("some words")
    with pytest.raises(ValueError, match="another evaluation set is called 'test'"):
        read_items([str(tmp_path / "a/test.txt"), str(tmp_path / "b/test.txt")])


def test_real_sets_are_found_where_they_are_quoted_and_nowhere_else(data_dir):
    """A document with a problem of each set in it, and prose that has none of them."""
    paths = [f"{data_dir}/code/HumanEval.jsonl.gz", f"{data_dir}/instruct/gsm8k-test.jsonl", f"{data_dir}/code/mbpp.jsonl"]
    items = read_items(paths)
    assert [sum(item.set == name for item in items) for name in ("HumanEval", "gsm8k-test", "mbpp")] == [164, 1319, 974]
    index = Evaluations(items)
    assert not index.too_short
    problem = json.loads((data_dir / "instruct/gsm8k-test.jsonl").read_text().split("\n")[3])["question"]
    with gzip.open(paths[0], "rt") as stream:
        code = json.loads(stream.readlines()[10])
    quoting = canonical(f"A blog post.\n> {problem}\nAnd now code:\n{code['prompt']}{code['canonical_solution']}")
    (found,) = index.shared([quoting])
    hit = {(items[run.item].set, items[run.item].name) for run in found}
    assert {("gsm8k-test", "3"), ("HumanEval", "10 (HumanEval/10)")} <= hit
    prose = [canonical(text) for text in (data_dir / "text/shakespeare.txt").read_text().split("\n\n")]
    assert not any(index.shared(prose))
