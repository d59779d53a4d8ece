"""Where a served model comes from: a folder here, or one on S3 (over HTTP against moto's server)."""

import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from cluster.storage import content_digest, copy_tree
from serve.folder import adapter_folder, model_folder

ENGINE = """
import sys
from serve.app import build
from serve.engine.engine import Engine
from serve.folder import model_folder

build({"model": sys.argv[1]})
print(model_folder(sys.argv[1]))
Engine.load(model_folder(sys.argv[1]))
"""


@pytest.fixture
def bucket(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A bucket, and downloads into a folder of the test's."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "cache"))
    boto3.client("s3").create_bucket(Bucket="models")
    return "s3://models"


def test_a_model_on_s3_is_served_from_a_copy(bucket: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    copy_tree(str(tiny_model_dir), f"{bucket}/tern")
    folder = model_folder(f"{bucket}/tern")
    assert content_digest(str(folder)) == content_digest(str(tiny_model_dir))
    assert model_folder(f"{bucket}/tern") == folder
    with pytest.raises(ValueError, match="s3://models/gull: no such folder"):
        model_folder(f"{bucket}/gull")
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, f"{bucket}/tern"], env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str(tmp_path / "sterna-cache" / folder.name)


def test_an_unknown_place_is_one_line() -> None:
    with pytest.raises(ValueError, match="not a storage location") as error:
        model_folder("gs://models/tern")
    assert "\n" not in str(error.value)


def test_an_adapter_on_s3_is_copied_and_what_is_none_is_one_line(bucket: str, tiny_adapter_dir: Path, tiny_model_dir: Path) -> None:
    copy_tree(str(tiny_adapter_dir), f"{bucket}/polite")
    assert content_digest(str(adapter_folder(f"{bucket}/polite"))) == content_digest(str(tiny_adapter_dir))
    assert adapter_folder(str(tiny_adapter_dir)) == tiny_adapter_dir
    with pytest.raises(ValueError, match=r"no adapter, adapter_config\.json is missing"):
        adapter_folder(str(tiny_model_dir))
