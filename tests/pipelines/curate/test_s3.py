"""Curation and tokenisation from and to S3, over HTTP against moto's server."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from cluster.artifact import open_artifact
from cluster.storage import copy_tree
from pipelines.curate.sources import find_files

WORDS = [
    "the", "of", "and", "tern", "sea", "ice", "wind", "flies", "north", "south", "year", "egg", "fish", "nest", "wing", "light",
    "storm", "coast", "island", "winter", "summer", "bird",
]  # fmt: skip
NUM_TEXTS = 12
DRIVER = """
from cluster.runtime import attached
from pipelines.config import TokenizeConfig
from pipelines.curate.config import CurateConfig
from pipelines.curate.flow import curate
from pipelines.tokens import tokenize
small = {"driver_bytes": 1, "task_bytes": 2000, "paragraphs": True}
with attached(num_cpus=2):  # one cluster for all four: its start costs more than what is tested
    curate(CurateConfig(input=("s3://texts/raw", "s3://texts/more/*.txt"), output="s3://texts/corpus"))
    curate(CurateConfig(input=("s3://texts/raw", "s3://texts/more/*.txt"), output="s3://texts/shuffled", **small))
    curate(CurateConfig(input=("s3://texts/more/*.txt",), output="s3://texts/batch", against=("s3://texts/corpus",), **small))
    tokenize(TokenizeConfig(corpus="s3://texts/corpus", output="s3://texts/tokens", vocab_size=512, length=64, held_out=0.2))
"""


@pytest.fixture
def environment(s3_environment):
    """A bucket with text, and what a process needs to reach it."""
    client = boto3.client("s3")
    client.create_bucket(Bucket="texts")
    sentences = [[" ".join(random.Random(f"{t} {i}").choices(WORDS, k=9)).capitalize() + ". " for i in range(12)] for t in range(NUM_TEXTS)]
    texts = ["".join(own) for own in sentences]
    lines = [json.dumps({"text": text}) for text in texts] + ["{broken"]
    client.put_object(Bucket="texts", Key="raw/a.jsonl", Body="\n".join(lines).encode())
    client.put_object(Bucket="texts", Key="more/copy.txt", Body=texts[0].encode())
    client.put_object(Bucket="texts", Key="more/deep/not.txt", Body=b"not matched")
    return s3_environment


@pytest.mark.slow
def test_raw_text_to_tokens_in_a_bucket(environment, tmp_path):
    with pytest.raises(ValueError, match="s3://texts/absent: no such file or folder"):
        find_files(["s3://texts/absent"])
    root = str(Path(__file__).resolve().parents[3])
    process_environment = {**os.environ, **environment, "RAY_ADDRESS": "local", "PYTHONPATH": root}
    ran = subprocess.run([sys.executable, "-c", DRIVER], env=process_environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr[-2000:]
    counts = open_artifact("s3://texts/corpus", made_by="curate").manifest.counts
    assert counts["documents_in"] == NUM_TEXTS + 2
    assert counts["dropped.unreadable.json"] == counts["dropped.duplicate.exact"] == 1
    shuffled = open_artifact("s3://texts/shuffled", made_by="curate").manifest
    assert shuffled.counts == counts
    assert shuffled.metrics["rounds"] > 0
    assert open_artifact("s3://texts/batch", made_by="curate").manifest.counts == {
        "documents_in": 1, "kept": 0, "dropped.duplicate.exact": 1,
    }  # fmt: skip
    copy_tree("s3://texts/tokens", str(tmp_path / "tokens"))
    tokens = open_artifact(str(tmp_path / "tokens"), made_by="tokenize")
    assert tokens.manifest.counts["documents_in"] == counts["kept"]
    names = {f["Key"] for f in boto3.client("s3").list_objects_v2(Bucket="texts")["Contents"]}
    assert not any("staged" in name or "partial" in name for name in names)
