"""Files found, sampled and cut into chunks: the same ones, in the same order."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate import sources
from pipelines.curate.sources import SourceFile, chunked, find_files, installed_text, outside, sampled


def test_globs_and_folders_skip_what_is_hidden(tmp_path):
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.txt", ".git/d.txt", "__pycache__/e.py", "sub/f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def names(*inputs):
        return [f.uri.removeprefix(f"{tmp_path}/") for f in find_files(inputs)]

    assert names(str(tmp_path)) == ["a.txt", "sub/b.txt", "sub/deep/c.txt", "sub/f.py"]
    assert names(f"{tmp_path}/*.txt") == ["a.txt"]
    assert names(f"{tmp_path}/sub/**/*.txt") == ["sub/b.txt", "sub/deep/c.txt"]
    assert names(f"{tmp_path}/s?b/[ab].txt", f"{tmp_path}/sub") == ["sub/b.txt", "sub/deep/c.txt", "sub/f.py"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("[!_]*.py", ["[!].py", "^c.py", "abc.py", "b\\d.py"]),
        ("[_^]*.py", ["^c.py", "_abc.py"]),
        ("[^]*.py", ["^c.py"]),
        ("b[\\]d.py", ["b\\d.py"]),
        ("x[!a]*.py", []),
        ("[a-b]*.py", ["abc.py", "b\\d.py"]),
        ("[!]*.py", ["[!].py"]),
    ],
)
def test_sets_of_characters_mean_what_they_mean_to_glob(pattern, expected):
    names = ["[!].py", "^c.py", "_abc.py", "abc.py", "b\\d.py", "x/e.py"]
    assert list(filter(sources._matcher(pattern), names)) == expected


def test_a_pattern_that_is_none_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"\[z-a\]\.txt: not a pattern"):
        find_files([f"{tmp_path}/[z-a].txt"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "no such file or folder"),
        ("empty", "holds no text to read"),
        ("blank", "every file is empty"),
        ("image.png", "not a format"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.txt").touch()
    (tmp_path / "image.png").touch()
    with pytest.raises(ValueError, match=message) as caught:
        find_files([str(tmp_path / name)])
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_named_like_a_pattern_is_that_file(tmp_path):
    for name in ("a[1].txt", "a1.txt"):
        (tmp_path / name).write_text("text")
    assert [f.name for f in find_files([f"{tmp_path}/a[1].txt"])] == ["a[1].txt"]
    assert [f.name for f in find_files([f"{tmp_path}/a[12].txt"])] == ["a1.txt"]


def test_a_named_file_whose_name_is_no_text_is_one_line(tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/a\xff.txt")
    with open(name, "w") as file:
        file.write("text")
    with pytest.raises(ValueError, match=r"a\\udcff\.txt: not a name in UTF-8; give the folder"):
        find_files([name])
    assert len(find_files([str(tmp_path)])) == 1


def test_what_a_run_wrote_below_its_input_is_not_read_by_the_next(tmp_path):
    for name in ("a.txt", "out/kept/0.parquet", "out.partial/staged/0.parquet", "out.replaced/kept/0.parquet", "output.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    files = find_files([str(tmp_path)])
    (tmp_path / "link").symlink_to("out")
    for output in ("out/", "out/../out", "link"):
        assert [f.name for f in outside(files, f"{tmp_path}/{output}")] == ["a.txt", "output.txt"]
    through = find_files([str(tmp_path / "link" / ".."), str(tmp_path / "link")])
    assert [f.name for f in outside(through, f"{tmp_path}/out")] == ["a.txt", "output.txt"]
    with pytest.raises(ValueError, match=r"^output: .* holds all of the input"):
        outside(files, str(tmp_path))


def test_a_pipe_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"a\.txt: neither a file nor a folder"):
        find_files([str(tmp_path / "a.txt")])


def test_a_bucket_without_a_name_is_one_line():
    with pytest.raises(ValueError, match=r"^s3://: names no bucket"):
        find_files(["s3://"])


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "c.txt").write_text("text")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list anything, so a real folder would not do
    with pytest.raises(ValueError, match=r"/a: cannot be listed \(.*Permission denied: .*/a/b'\); check the path and the permissions"):
        find_files([str(tmp_path / "a")])


def test_the_default_input_is_on_every_machine():
    found = find_files(())
    assert any(f.uri.endswith("/json/decoder.py") for f in found)
    assert any("numpy" in f.uri for f in found)
    assert {f.format for f in found} <= {"py", "md", "rst", "txt"}
    assert all(f.uri.startswith(installed_text()) for f in found)


FILES = st.lists(st.integers(0, 1000), min_size=1, max_size=40).map(
    lambda sizes: [SourceFile(f"/data/{i:03d}.txt", "txt", size, 0, f"{i:03d}.txt") for i, size in enumerate(sizes)]
)


@settings(deadline=None)
@given(FILES, st.integers(1, 20_000), st.integers(0, 3))
def test_a_sample_fits_and_does_not_depend_on_the_order(files, max_bytes, seed):
    if not any(0 < f.num_bytes <= max_bytes - max_bytes // 100 for f in files):
        return
    chosen = sampled(files, max_bytes, seed)
    assert sum(f.num_bytes for f in chosen) <= max_bytes
    assert chosen == sampled(files[::-1], max_bytes, seed)


def test_a_cap_below_the_smallest_file_says_so():
    with pytest.raises(ValueError, match="max_bytes: 3 is less than any file holds"):
        sampled([SourceFile("/a.txt", "txt", 10, 0, "a.txt")], 3, 0)


@settings(deadline=None)
@given(FILES, st.integers(0, 50))
def test_chunks_hold_every_file_once_in_order(files, num_partitions):
    if not sum(f.num_bytes for f in files):
        return
    chunks = chunked(files, num_partitions)
    assert [os.fsdecode(uri) for c in chunks for uri in c["uri"].to_pylist()] == [f.uri for f in files]
    assert len(chunks) <= max(1, num_partitions or 1)
