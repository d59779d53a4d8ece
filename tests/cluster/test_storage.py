"""Places: what is the same for local paths and s3://, and what is refused in one line. S3 itself: test_artifact_s3.py."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage import absolute, content_digest, copy_tree, digest_of, downloaded, inventory, list_files, resolve

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


def test_a_relative_path_means_the_same_to_a_worker_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("runs/base") == str(tmp_path / "runs/base")
    assert absolute("~/x") == os.path.expanduser("~/x")
    assert absolute("s3://bucket/base") == "s3://bucket/base"


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://host/x", "s3a://bucket/x"])
def test_other_places_are_refused_at_once(uri):
    with pytest.raises(ValueError, match="use a local path or s3://"):
        resolve(uri)


@given(st.dictionaries(st.text(), JSON, min_size=2))
def test_the_order_of_keys_does_not_change_a_digest(value):
    assert digest_of(value) == digest_of(dict(reversed(value.items())))


def test_a_content_digest_sees_names_and_bytes_and_nothing_else(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x.txt").write_text("tern")
    same = content_digest(str(tmp_path / "a"))
    assert content_digest(str(tmp_path / "b")) == same
    os.utime(tmp_path / "b" / "sub" / "x.txt", (0, 0))
    (tmp_path / "b" / "manifest.json").write_text("describes the folder, is not its content")
    assert content_digest(str(tmp_path / "b")) == same
    (tmp_path / "b" / "sub" / "x.txt").write_text("turn")
    assert content_digest(str(tmp_path / "b")) != same
    (tmp_path / "a" / "sub" / "x.txt").rename(tmp_path / "a" / "sub" / "y.txt")
    assert content_digest(str(tmp_path / "a")) != same


def test_a_copied_tree_is_the_same_tree(tmp_path):
    source = tmp_path / "source"
    (source / "deep" / "deeper").mkdir(parents=True)
    (source / "deep" / "deeper" / "x.bin").write_bytes(os.urandom(1000))
    (source / "empty.txt").write_text("")
    copy_tree(str(source), str(tmp_path / "copy"))
    assert inventory(str(tmp_path / "copy")) == inventory(str(source))
    assert set(inventory(str(source))) == {"deep/deeper/x.bin", "empty.txt"}


def test_no_folder_lists_no_files(tmp_path):
    assert list_files(*resolve(str(tmp_path / "absent"))) == []


def test_many_may_download_the_same_folder_at_once(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(50):
        (source / f"{number}.bin").write_bytes(os.urandom(2000))
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda _: downloaded(str(source), "digest", tmp_path / "cache"), range(8)))
    assert set(places) == {tmp_path / "cache" / "digest"}
    assert inventory(str(places[0])) == inventory(str(source))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["digest"], "no scratch is left"
