"""A stage's folder is whole or absent: refused when touched, found again when interrupted, kept when something else is there,
killed at every step. (On S3: test_artifact_s3.py.)"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cluster import artifact as artifact_module
from cluster.artifact import Artifact, finished, open_artifact, publish
from cluster.figure import bars
from cluster.settings import settings
from cluster.storage import copy_tree, digest_of, resolve

ROOT = Path(__file__).resolve().parents[2]


@settings
class MadeConfig:
    """Settings of a stage that exists here only."""

    output: str
    """Where to."""
    size: int = 1
    """How much."""


def make(output: str, *, size: int = 1, files: dict[str, str] | None = None, stage: str = "curate", inputs: dict | None = None) -> Artifact:
    config = MadeConfig(output=output, size=size)
    with publish(output, stage=stage, inputs=inputs or {}, config=config) as draft:
        for name, text in (files or {"a.txt": f"size {size}", "sub/b.txt": "b"}).items():
            path = draft.dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        draft.counts = {"rows": size}
        draft.headline = "made"
    return open_artifact(output, made_by=stage)


def done(output: str, *, size: int = 1, inputs: dict | None = None) -> Artifact | None:
    return finished(output, stage="curate", inputs=inputs or {}, config=MadeConfig(output=output, size=size))


def beside(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_published_folder_says_what_it_is(tmp_path):
    output = str(tmp_path / "out")
    with publish(output, stage="curate", inputs={"x": "1"}, config=MadeConfig(output=output)) as draft:
        (draft.dir / "a").write_text("a")
        draft.counts, draft.metrics, draft.headline = {"rows": 2}, {"speed": 1.5}, "two rows"
        draft.figures = {"f": bars("t", "y", {"g": {"k": 1}})}
    opened = open_artifact(output, made_by=("tokenize", "curate"))
    manifest = opened.manifest
    assert (manifest.stage, manifest.inputs, manifest.counts, manifest.headline) == ("curate", {"x": "1"}, {"rows": 2}, "two rows")
    assert manifest.config == {"output": output, "size": 1}
    assert manifest.figures["f"]["kind"] == "bars"
    assert manifest.files["a"]["bytes"] == 1
    assert opened.digest == digest_of(manifest.files)
    assert opened.local() == Path(output)
    assert beside(tmp_path) == {"out"}, "no lock, no partial folder is left"


def test_equal_contents_have_equal_digests_and_other_contents_have_not(tmp_path):
    one, two, other = (make(str(tmp_path / name), files={"a": text}) for name, text in (("1", "x"), ("2", "x"), ("3", "y")))
    assert one.digest == two.digest != other.digest


def test_a_finished_run_is_recognised_by_stage_inputs_and_settings_but_not_by_place(tmp_path):
    output = str(tmp_path / "out")
    assert done(output) is None
    made = make(output)
    assert done(output) == made
    assert done(output, size=2) is None
    assert done(output, inputs={"x": "1"}) is None
    os.rename(output, tmp_path / "moved")
    assert done(str(tmp_path / "moved")).digest == made.digest


def test_a_link_stays_and_the_folder_comes_to_lie_where_it_leads(tmp_path):
    (tmp_path / "link").symlink_to("disk/corpus")
    for size in (1, 2):
        made = make(str(tmp_path / "link"), size=size)
        assert made.manifest.counts == {"rows": size}
        assert beside(tmp_path) == {"link", "disk"}
        assert beside(tmp_path / "disk") == {"corpus"}
    assert (tmp_path / "link").is_symlink()


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe: is a device, a pipe or a socket; choose another --output folder"):
        make(str(tmp_path / "pipe"))
    assert beside(tmp_path) == {"pipe"}
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("harm", ["append", "truncate", "delete", "replace"])
def test_a_touched_file_is_refused_and_the_stage_can_be_run_again(tmp_path, harm, capsys):
    output = str(tmp_path / "out")
    make(output)
    path = Path(output) / "a.txt"
    {"append": lambda: path.write_text("size 1!"), "truncate": lambda: path.write_text("size"), "delete": path.unlink,
     "replace": lambda: path.write_text("size 2")}[harm]()  # fmt: skip
    with pytest.raises(ValueError, match=r"a\.txt is .*`sterna curate` makes it, run it again") as caught:
        open_artifact(output, made_by="curate")
    assert "\n" not in str(caught.value)
    assert done(output) is None
    assert "making it again" in capsys.readouterr().err
    make(output)
    assert done(output) is not None


def test_a_changed_list_of_files_is_refused(tmp_path):
    output = tmp_path / "out"
    make(str(output))
    manifest = json.loads((output / "manifest.json").read_text())
    del manifest["files"]["a.txt"]
    (output / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="changed by hand"):
        open_artifact(str(output), made_by="curate")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 99}', "not json"])
def test_a_manifest_that_is_none_is_refused_and_not_overwritten(tmp_path, text):
    output = tmp_path / "out"
    output.mkdir()
    (output / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="not a manifest this Sterna reads") as caught:
        open_artifact(str(output), made_by="curate")
    assert "\n" not in str(caught.value)
    assert done(str(output)) is None
    with pytest.raises(ValueError, match="holds files that no Sterna stage made"):
        make(str(output))
    assert (output / "manifest.json").read_text() == text


def test_what_is_missing_is_named_with_the_stage_that_makes_it(tmp_path):
    with pytest.raises(ValueError, match="no such folder; `sterna curate` makes it"):
        open_artifact(str(tmp_path / "none"), made_by="curate")
    with pytest.raises(ValueError, match=r"no manifest\.json in this folder; `sterna pretrain or tune` makes it"):
        open_artifact(str(tmp_path), made_by=("pretrain", "tune"))
    make(str(tmp_path / "corpus"))
    with pytest.raises(ValueError, match="was made by `sterna curate`, but a folder from `sterna tokenize` is needed"):
        open_artifact(str(tmp_path / "corpus"), made_by="tokenize")


def test_what_this_stage_did_not_make_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("precious")
    make(str(tmp_path / "corpus"))
    for name, message in (
        ("file", "is a file"),
        ("folder", "no Sterna stage made"),
        ("corpus", "holds what `sterna curate` made"),
    ):
        with pytest.raises(ValueError, match=message):
            make(str(tmp_path / name), stage="tokenize")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "thesis.tex").read_text() == "precious"
    assert done(str(tmp_path / "corpus")) is not None
    assert beside(tmp_path) == {"file", "folder", "corpus"}


def test_an_empty_folder_may_be_filled_and_an_earlier_result_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    make(str(tmp_path / "out"), files={"old": "1"})
    made = make(str(tmp_path / "out"), size=2, files={"new": "2"})
    assert set(made.manifest.files) == {"new"}
    assert beside(tmp_path / "out") == {"new", "manifest.json"}
    assert beside(tmp_path) == {"out"}


def test_a_place_that_cannot_be_written_is_one_line():
    with pytest.raises(ValueError, match="cannot be written") as caught:
        make("/proc/sterna/out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["ftp://host/x", "gs://bucket/x", "s3:///x", "http://x"])
def test_other_storage_is_refused_in_one_line(uri):
    with pytest.raises(ValueError, match="not a storage location") as caught:
        resolve(uri)
    assert "\n" not in str(caught.value)


def test_an_interrupted_run_finds_its_work_and_another_run_does_not(tmp_path):
    output = str(tmp_path / "out")

    def interrupted(size: int) -> bool:
        with (
            contextlib.suppress(InterruptedError),
            publish(output, stage="curate", inputs={}, config=MadeConfig(output=output, size=size)) as draft,
        ):
            resumed = draft.resumed and (draft.dir / "work").exists()
            (draft.dir / "work").write_text("half")
            raise InterruptedError
        return resumed

    assert [interrupted(1), interrupted(1), interrupted(2), interrupted(2)] == [False, True, False, True]
    assert not Path(output).exists()
    with publish(output, stage="curate", inputs={}, config=MadeConfig(output=output, size=2)) as draft:
        assert draft.resumed
        draft.scratch = ["work", "never-made"]
    assert open_artifact(output, made_by="curate").manifest.files == {}


def test_a_state_file_cut_short_means_a_fresh_start(tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / artifact_module.PARTIAL_STATE).write_text('{"finger')
    make(str(tmp_path / "out"))
    assert done(str(tmp_path / "out")) is not None


def test_two_writers_of_one_folder_are_one_too_many(tmp_path):
    output = str(tmp_path / "out")
    first = publish(output, stage="curate", inputs={}, config=MadeConfig(output=output))
    with first, pytest.raises(ValueError, match="another run is writing this folder"):
        make(output)
    assert done(output) is not None


@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(
        st.text("abcXYZ é_-.0", min_size=1, max_size=8).filter(lambda n: n.strip(". ")), st.binary(max_size=300), max_size=5
    )
)
def test_any_files_come_back_as_they_were(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("any")
    with publish(str(folder / "out"), stage="curate", inputs={}, config=MadeConfig(output="")) as draft:
        for name, data in files.items():
            (draft.dir / name).write_bytes(data)
    opened = open_artifact(str(folder / "out"), made_by="curate")
    assert {name: (opened.local() / name).read_bytes() for name in opened.manifest.files} == files
    copy_tree(str(folder / "out"), str(folder / "copy"))
    assert open_artifact(str(folder / "copy"), made_by="curate").digest == opened.digest


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_artifact as t
folder = {folder!r}
events = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir")

def attempt(kill_at):
    child = os.fork()
    if child == 0:
        seen = 0
        def hook(event, args):
            nonlocal seen
            if event in events and folder in str(args):
                seen += 1
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        t.make(folder + "/out", size=2, files={{"new.txt": "n" * 100, "sub/new.txt": "s"}})
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

kill_at, outcomes = 0, set()
while True:
    kill_at += 1
    t.make(folder + "/out", size=1)
    code = attempt(kill_at)
    try:
        found = t.open_artifact(folder + "/out", made_by="curate").manifest.counts["rows"]
    except ValueError as error:
        assert "no such folder" in str(error), error
        found = 0
    outcomes.add(found)
    assert code == 0 or code == -signal.SIGKILL, code
    if code == 0:
        break
    again = t.make(folder + "/out", size=2, files={{"new.txt": "n" * 100, "sub/new.txt": "s"}})
    assert set(again.manifest.files) == {{"new.txt", "sub/new.txt"}}, again.manifest.files
assert found == 2 and kill_at > 10, (found, kill_at)
assert outcomes >= {{1, 2}}, outcomes
print("killed at each of", kill_at - 1, "steps; found", sorted(outcomes))
"""


def test_killed_at_any_step_a_folder_is_the_old_one_the_new_one_or_absent(tmp_path):
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "killed at each of" in done.stdout


def test_a_kill_from_outside_leaves_no_lock_that_holds(tmp_path):
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_artifact as t
with t.publish({str(tmp_path / "out")!r}, stage="curate", inputs={{}}, config=t.MadeConfig(output="", size=1)) as draft:
    (draft.dir / "work").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    with pytest.raises(ValueError, match="another run is writing"):
        make(str(tmp_path / "out"))
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    with publish(str(tmp_path / "out"), stage="curate", inputs={}, config=MadeConfig(output="", size=1)) as draft:
        assert draft.resumed
        assert (draft.dir / "work").read_text() == "half"


def test_a_refused_run_leaves_nothing_but_work_is_kept(tmp_path):
    config = MadeConfig(output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="refused"), publish(config.output, stage="curate", inputs={}, config=config):
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="later"), publish(config.output, stage="curate", inputs={}, config=config) as draft:  # noqa: PT012
        (draft.dir / "work.bin").write_bytes(b"an hour's")
        raise ValueError("later")
    with publish(config.output, stage="curate", inputs={}, config=config) as draft:
        assert draft.resumed
        assert (draft.dir / "work.bin").read_bytes() == b"an hour's"


@pytest.mark.parametrize("work", ["", "work.bin", "staged.bin", "work/answers/0"])
def test_what_a_stage_calls_disposable_does_not_keep_a_refused_run(tmp_path, work):
    config = MadeConfig(output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="refused"), publish(config.output, stage="curate", inputs={}, config=config) as draft:  # noqa: PT012
        draft.disposable = ["staged", "work/input"]
        for name in ("staged/0", "work/input/0", *filter(None, [work])):
            (draft.dir / name).parent.mkdir(parents=True, exist_ok=True)
            (draft.dir / name).write_text("a copy")
        raise ValueError("refused")
    left = [str(path.relative_to(tmp_path / "out.partial")) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == (sorted([".sterna-partial.json", "staged/0", "work/input/0", work]) if work else [])


def test_a_rerun_with_other_settings_says_which(tmp_path, capsys):
    output = str(tmp_path / "out")
    make(output, size=1)
    assert done(output, size=2) is None
    assert "other settings (size 1, now 2); making it again" in capsys.readouterr().err
    assert done(output, size=1, inputs={"text": "new"}) is None
    assert "other inputs" in capsys.readouterr().err
    assert done(output, size=1) is not None
    assert capsys.readouterr().err == ""
