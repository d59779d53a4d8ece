from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cluster.artifact import open_artifact, publish
from train.config import EvaluateConfig
from train.sources import open_shares, sequences_of


@pytest.fixture
def copy_of(tokens_dir: Path, tmp_path: Path):
    """Another tokens folder, changed somehow."""

    def made(name: str, change) -> str:
        folder = tmp_path / name
        config = EvaluateConfig(models=("none",), data=("none",), output=str(folder))
        with publish(str(folder), stage="tokenize", inputs={}, config=config) as draft:
            for part in ("shards", "tokenizer"):
                shutil.copytree(tokens_dir / part, draft.dir / part)
            draft.metrics = dict(open_artifact(str(tokens_dir), made_by="tokenize").manifest.metrics)
            change(draft)
        return str(folder)

    return made


def test_folders_are_taken_in_their_shares(tokens_dir: Path, copy_of):
    tokens = open_artifact(str(tokens_dir), made_by="tokenize")
    shares = open_shares(tokens, [f"{copy_of('code', lambda draft: None)}=0.25"])
    assert [share for _, share in shares] == [0.75, 0.25]
    source = sequences_of(shares)
    assert len(source) == 128
    taken = source.mixture.at(np.arange(64), seed=0)
    assert abs((taken >= 64).sum() - 16) <= 1
    assert sequences_of(open_shares(tokens, [])).mixture is None


def other_tokenizer(draft) -> None:
    file = draft.dir / "tokenizer" / "tokenizer.json"
    table = json.loads(file.read_text())
    file.write_text(json.dumps({**table, "version": "other"}))


def other_length(draft) -> None:
    draft.metrics["sequence_length"] = 16


@pytest.mark.parametrize(
    ("change", "said"), [(other_tokenizer, "was made with another tokenizer"), (other_length, "sequences of 16 tokens, those of")]
)
def test_folders_that_do_not_fit_are_refused(tokens_dir: Path, copy_of, change, said: str):
    with pytest.raises(ValueError, match=said):
        open_shares(open_artifact(str(tokens_dir), made_by="tokenize"), [f"{copy_of('other', change)}=0.5"])


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        (["runs/code"], "give FOLDER=SHARE"),
        (["runs/code=2"], "give FOLDER=SHARE"),
        (["=0.5"], "give FOLDER=SHARE"),
        (["a=0.6", "b=0.6"], "1.2"),
    ],
)
def test_shares_that_are_none_are_refused(tokens_dir: Path, mix: list[str], said: str):
    with pytest.raises(ValueError, match=said):
        open_shares(open_artifact(str(tokens_dir), made_by="tokenize"), mix)
