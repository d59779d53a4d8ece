from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.tuning.tuned import pairs_of
from train.corpus import IGNORED
from train.tuning.preferences import parse_pair, trimmed

TEXT = st.text(min_size=1).filter(str.strip)


@given(prompt=TEXT, chosen=TEXT, rejected=TEXT)
def test_the_three_forms_of_a_pair_are_one(prompt: str, chosen: str, rejected: str):
    user = {"role": "user", "content": prompt}
    said = {side: {"role": "assistant", "content": text} for side, text in (("chosen", chosen), ("rejected", rejected))}
    forms = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected},
        {"prompt": [user], **{side: [message] for side, message in said.items()}},
        {side: [user, message] for side, message in said.items()},
    ]
    for form in forms:
        if chosen == rejected:
            with pytest.raises(ValueError, match=r"^same_answer$"):
                parse_pair(json.dumps(form))
        else:
            assert parse_pair(json.dumps(form)) == ([user, said["chosen"]], [user, said["rejected"]])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not_json"), ('{"chosen": "a"}', "no_pair"), ('{"prompt": "p", "chosen": 3, "rejected": "b"}', "bad_message"),
        ('{"chosen": "a", "rejected": "b"}', "no_answer"),
        ('{"prompt": "p", "chosen": " ", "rejected": "b"}', "no_answer"),
        ('{"chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}],'
         ' "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]}', "other_prompt"),
    ],
)  # fmt: skip
def test_bad_pairs_have_a_reason(line: str, reason: str):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        parse_pair(line)


def test_rows_are_as_wide_as_their_longest(tiny_model_dir: Path):
    pairs = pairs_of(tiny_model_dir)
    full = pairs.rows.batch(np.array([0, 5]))
    cut = trimmed(full)
    width = cut.labels.shape[1]
    assert (cut.labels != IGNORED)[:, -1].any()
    assert (full.labels[:, width:] == IGNORED).all()
    assert full.labels[:, :width].equal(cut.labels)
    assert pairs.batch(np.array([4])).input_ids.equal(trimmed(pairs.rows.batch(np.array([8, 9]))).input_ids)
