"""The same folders on S3: a real server over HTTP, written, replaced, copied, out of reach, and cut off at every request."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from pyarrow import fs as arrow_fs

from cluster import artifact as artifact_module
from cluster.artifact import Artifact, finished, open_artifact, publish
from cluster.settings import settings
from cluster.storage import copy_tree, digest_of, resolve

PORT = 18151


@settings
class MadeConfig:
    """Settings of a stage that exists here only."""

    output: str
    """Where to."""
    size: int = 1
    """How much."""


def make(output: str, *, size: int = 1, files: dict[str, str] | None = None) -> Artifact:
    with publish(output, stage="curate", inputs={}, config=MadeConfig(output=output, size=size)) as draft:
        for name, text in (files or {"a.txt": f"size {size}", "sub/b.txt": "b"}).items():
            path = draft.dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return open_artifact(output, made_by="curate")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=PORT, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{PORT}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch, tmp_path, request) -> str:
    """The URI of a fresh bucket on a real S3 server; scratch and cache are the test's own."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(artifact_module.tempfile, "gettempdir", lambda: str(tmp_path))
    name = f"sterna-{digest_of(request.node.nodeid)[:12]}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=name)
    return f"s3://{name}"


def keys(uri: str) -> set[str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    found = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).list_objects_v2(Bucket=bucket, Prefix=prefix)
    return {entry["Key"].removeprefix(f"{prefix}/") for entry in found.get("Contents", []) if not entry["Key"].endswith("/")}


def test_s3_holds_the_same_folder(bucket, tmp_path):
    made = make(f"{bucket}/runs/out")
    assert made.digest == make(str(tmp_path / "out")).digest
    assert finished(f"{bucket}/runs/out", stage="curate", inputs={}, config=MadeConfig(output="")) == made
    assert keys(f"{bucket}/runs/out") == {"a.txt", "sub/b.txt", "manifest.json"}
    assert keys(f"{bucket}/runs/out.partial") == set()
    local = made.local(tmp_path / "cache")
    assert (local / "sub" / "b.txt").read_text() == "b"
    (local / "sub" / "b.txt").write_text("cached")
    assert (made.local(tmp_path / "cache") / "sub" / "b.txt").read_text() == "cached", "downloaded once"


def test_s3_replaces_an_earlier_result_without_leaving_its_files(bucket):
    make(f"{bucket}/out", files={"old": "1", "same": "1"})
    make(f"{bucket}/out", size=2, files={"new": "2", "same": "2"})
    assert keys(f"{bucket}/out") == {"new", "same", "manifest.json"}


def test_s3_mistakes_are_one_line(bucket):
    with pytest.raises(ValueError, match="no such folder; `sterna curate` makes it"):
        open_artifact(f"{bucket}/none", made_by="curate")
    with pytest.raises(ValueError, match="cannot be written") as caught:
        make("s3://sterna-no-such-bucket/out")
    assert "\n" not in str(caught.value)
    filesystem, path = resolve(f"{bucket}/foreign")
    with filesystem.open_output_stream(f"{path}/thesis.tex") as stream:
        stream.write(b"precious")
    with pytest.raises(ValueError, match="no Sterna stage made"):
        make(f"{bucket}/foreign")


def test_s3_out_of_reach_is_one_line(monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:18199",
        "AWS_ACCESS_KEY_ID": "t",
        "AWS_SECRET_ACCESS_KEY": "t",
        "AWS_DEFAULT_REGION": "x",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        open_artifact("s3://sterna/out", made_by="curate")
    assert "\n" not in str(caught.value)


def test_copies_go_both_ways_and_the_manifest_goes_last(bucket, tmp_path, monkeypatch):
    make(str(tmp_path / "here"))
    order: list[str] = []
    real = arrow_fs.copy_files
    monkeypatch.setattr(
        arrow_fs, "copy_files", lambda source, *args, **options: (order.append(Path(source).name), real(source, *args, **options))
    )
    copy_tree(str(tmp_path / "here"), f"{bucket}/there")
    copy_tree(f"{bucket}/there", str(tmp_path / "back"))
    assert order == ["a.txt", "b.txt", "manifest.json"] * 2
    assert open_artifact(str(tmp_path / "back"), made_by="curate").digest == open_artifact(str(tmp_path / "here"), made_by="curate").digest


class Cut(BaseException):
    """What a kill is to the code that it hits."""


class CountedFileSystem:
    """A filesystem that dies at its n-th change."""

    left = threading.local()

    def __init__(self, inner: arrow_fs.FileSystem) -> None:
        self.inner = inner

    def __getattr__(self, name: str):
        if name in ("copy_file", "delete_file", "open_output_stream", "delete_dir", "create_dir"):
            self.left.changes -= 1
            if self.left.changes < 0:
                raise Cut
        return getattr(self.inner, name)


def test_s3_cut_off_at_any_request_a_folder_is_whole_or_refused_and_the_next_run_repairs_it(bucket, monkeypatch):
    output, real_resolve, real_copy = f"{bucket}/out", artifact_module.resolve, arrow_fs.copy_files

    def counted(uri: str):
        filesystem, path = real_resolve(uri)
        return (CountedFileSystem(filesystem) if "://" in uri else filesystem), path

    def copy_files(source, destination, *, source_filesystem, destination_filesystem, **options):
        inner = [getattr(f, "inner", f) for f in (source_filesystem, destination_filesystem)]
        real_copy(source, destination, source_filesystem=inner[0], destination_filesystem=inner[1], **options)

    monkeypatch.setattr(artifact_module.arrow_fs, "copy_files", copy_files)
    outcomes, cut_at = set(), 0
    while True:
        make(output, size=1, files={"old.txt": "o"})
        monkeypatch.setattr(artifact_module, "resolve", counted)
        CountedFileSystem.left.changes = cut_at
        try:
            with publish(output, stage="curate", inputs={}, config=MadeConfig(output=output, size=2)) as draft:
                (draft.dir / "new.txt").write_text("n")
            finished_whole = True
        except Cut:
            finished_whole = False
        monkeypatch.setattr(artifact_module, "resolve", real_resolve)
        try:
            opened = open_artifact(output, made_by="curate")
            outcomes.add(int(opened.manifest.config["size"]))
        except ValueError as error:
            outcomes.add(0 if "no manifest.json in this folder" in str(error) else error)
        assert set(make(output, size=2, files={"new.txt": "n"}).manifest.files) == {"new.txt"}
        assert keys(output) == {"new.txt", "manifest.json"}
        if finished_whole:
            break
        cut_at += 1
    assert cut_at > 6
    assert outcomes == {0, 1, 2}
