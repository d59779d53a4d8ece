"""Our rules beside datatrove's: the table counts right, every rule is compared, and on real documents they agree."""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks import filter_parity
from benchmarks.filter_parity import GROUPS, PEER, RULES, WHY, compare, documents, labels, show

LONG = "The tern flies over the sea to the far south and back. " * 3


def test_the_table_counts_what_agrees_and_names_what_does_not(monkeypatch, capsys):
    verdicts = [{**dict.fromkeys([*RULES, *GROUPS], False), "gopher.short_document": drop} for drop in (True, False)]
    monkeypatch.setattr(filter_parity, "theirs", lambda texts, *options: verdicts)
    rows = compare(["a:0", "b:0"], [LONG, LONG], {"a:0": 1, "b:0": 0})
    row = next(row for row in rows if row["rule"] == "gopher.short_document")
    assert (row["ours"], row["datatrove"], row["both"], row["agreement"]) == (2, 1, 1, 0.5)
    assert row["disagreements"] == [{"document": "b:0", "ours": True, "measures": {"num_words": 36.0}}]
    assert (row["good"], row["bad"]) == ([1.0, 1.0], [1.0, 0.0])
    show(rows, 2)
    printed = capsys.readouterr().out
    assert "dropped by us: num_words 36.0" in printed
    assert re.search(r"gopher.short_document +100.0% +100.0% +100.0% +0.0%", printed)


def test_every_rule_that_is_not_plain_counting_has_a_reason_to_differ():
    assert WHY.keys() <= RULES.keys()
    assert set(RULES) - WHY.keys() == {
        "gopher.long_document", "c4.lorem_ipsum", "c4.curly_bracket", "fineweb.short_lines",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not PEER.exists(), reason="no .venv-datatrove: run `make peers-curate`")
def test_on_real_documents_the_verdicts_agree(data_dir):
    names, texts = zip(*((name, text) for name, text in documents(data_dir) if text), strict=True)
    rows = {row["rule"]: row for row in compare(list(names), list(texts), labels(data_dir))}
    assert len(texts) > 1800
    assert [name for name in RULES if rows[name]["disagreements"] and name not in WHY] == []
    apart = {"gopher.words_without_letters"}  # where punctuation marks are words to them, and prose fails by its commas
    assert min(rows[name]["agreement"] for name in RULES.keys() - apart) > 0.965
    assert np.mean([rows[name]["agreement"] for name in RULES.keys() - apart]) > 0.99
    assert min(rows[name]["agreement_same_words"] for name in apart) > 0.99
