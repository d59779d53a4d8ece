"""The baton between stages: a folder, local or s3://, published atomically with its manifest last.

Promise: a folder with a `manifest.json` is whole and is what the manifest says, because everything else is in place
before the manifest is, and `open_artifact` checks sizes and content digests. A stage that finished with the same inputs
and configuration is recognised (`finished`) and not run again; one that was interrupted finds its partial folder again.
Price: one read of the folder per opening (xxh3, some GB/s); on S3 a server-side copy per file at the end.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import fs as arrow_fs

from cluster.console import say
from cluster.figure import Figure
from cluster.settings import as_dict
from cluster.storage import MANIFEST, PARTIAL_STATE, copy_tree, digest_of, downloaded, inventory, list_files, one_line, resolve

__all__ = ["Artifact", "Draft", "Manifest", "Unmet", "finished", "open_artifact", "publish"]

SCHEMA_VERSION = 1
_IGNORED_CONFIG = ("output", "work", "min_workers", "growth", "max_failures")
"""Where a stage writes, and how it bears machines that come and go: what it writes is the same."""
_VERBS = {"plan": "plan run", "fit": "plan fit", "sweep": "plan sweep"}
"""Stages whose verb on the command line is not their own name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a stage's folder holds and how it came to be."""

    stage: str
    """The verb that made the folder."""
    inputs: dict[str, str]
    """Input name -> digest of that input (another manifest's `digest`, or of a listing)."""
    config: dict[str, Any]
    """The full resolved configuration."""
    counts: dict[str, float] = field(default_factory=dict)
    """Conserved quantities: documents, tokens, rows."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Measured figures."""
    figures: dict[str, Figure] = field(default_factory=dict)
    """Figure data by name, drawn by the report (see cluster/figure.py)."""
    headline: str = ""
    """One short line for the journey's table."""
    seconds: float = 0.0
    """Wall time of the run that finished the folder."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path inside the folder -> {"bytes": size, "xxh3": hex digest}."""
    digest: str = ""
    """Digest of `files` (names and contents): the identity other stages refer to."""
    fingerprint: str = ""
    """Digest of stage, inputs and configuration: equal fingerprints need not be run twice."""
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Artifact:
    """An opened, checked stage folder."""

    uri: str
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def __str__(self) -> str:
        return f"{self.manifest.headline}\n{self.uri}"

    def summary(self) -> dict[str, Any]:
        """What a machine wants to know of it, for --json."""
        told = ("stage", "headline", "counts", "metrics", "seconds", "digest")
        return {"output": self.uri, **{name: getattr(self.manifest, name) for name in told}}

    def local(self, cache: Path | None = None) -> Path:
        """The folder as a local path; an s3:// folder is downloaded once into `cache` (by digest)."""
        if "://" not in self.uri:
            return Path(self.uri)
        return downloaded(self.uri, self.digest, cache)


class Unmet(ValueError):
    """A stage did its work and published the best that it reached, but that is not what was asked for."""

    def __init__(self, message: str, best: Artifact) -> None:
        super().__init__(message)
        self.best = best


@dataclass(slots=True)
class Draft:
    """A stage folder being written. Fill it, set `counts`, `metrics`, `figures`, `headline`; `publish` does the rest."""

    uri: str
    """Where the stage writes: a local folder or an s3:// prefix that remote tasks can reach."""
    dir: Path
    """A local folder: `uri` itself when local, else scratch that is uploaded when the draft is published (and that only the
    machine that made it has: look for a file before counting on it)."""
    resumed: bool
    """Whether an interrupted run with the same inputs and configuration left work at `uri`."""
    counts: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    headline: str = ""
    scratch: list[str] = field(default_factory=list)
    """Paths inside the folder that are working state (checkpoints of the stage itself) and are not published."""
    disposable: list[str] = field(default_factory=list)
    """Paths inside the folder that a refused run need not keep: a copy of its input, say."""


def fingerprint(stage: str, inputs: Mapping[str, str], config: Any) -> str:
    """Identity of a run: what it would produce depends on nothing else."""
    resolved = {k: v for k, v in as_dict(config).items() if k not in _IGNORED_CONFIG}
    return digest_of([SCHEMA_VERSION, stage, dict(inputs), resolved])


def open_artifact(uri: str, *, made_by: tuple[str, ...] | str) -> Artifact:
    """The folder at `uri`, checked against its manifest.

    Raises ValueError naming the folder and the stage that should have made it when there is no manifest, when another
    stage wrote it, or when a file is missing or differs from the digest that the manifest records.
    """
    stages = (made_by,) if isinstance(made_by, str) else made_by
    verbs = " or ".join(map(_verb, stages))
    should = f"`sterna {verbs}` makes it"
    manifest = _read_manifest(uri)
    if manifest is None:
        filesystem, path = resolve(uri)
        what = "no such folder" if filesystem.get_file_info(path).type == arrow_fs.FileType.NotFound else f"no {MANIFEST} in this folder"
        raise ValueError(f"{uri}: {what}; {should}")
    if manifest.stage not in stages:
        raise ValueError(f"{uri}: was made by `sterna {_verb(manifest.stage)}`, but a folder from `sterna {verbs}` is needed here")
    if digest_of(manifest.files) != manifest.digest:
        raise ValueError(f"{uri}: its {MANIFEST} was changed by hand; {should}, run it again")
    actual = inventory(uri)
    for name, entry in manifest.files.items():
        if name not in actual:
            raise ValueError(f"{uri}: {name} is missing; {should}, run it again")
        if actual[name] != entry:
            raise ValueError(f"{uri}: {name} is not what the manifest records (changed or truncated); {should}, run it again")
    return Artifact(uri if "://" in uri else resolve(uri)[1], manifest)


def _verb(stage: str) -> str:
    return _VERBS.get(stage, stage)


def finished(output: str, *, stage: str, inputs: Mapping[str, str], config: Any) -> Artifact | None:
    """The artifact at `output` if this very run has finished before and is still whole, else None: then it must be run."""
    try:
        manifest = _read_manifest(output)
        if manifest is None or manifest.stage != stage:
            return None
        if manifest.fingerprint != fingerprint(stage, inputs, config):
            say(f"{output}: was made with {_differences(manifest, inputs, config)}; making it again")
            return None
        return open_artifact(output, made_by=stage)
    except ValueError as error:
        say(f"{error.args[0].partition(';')[0]}; making it again")
        return None


def _differences(manifest: Manifest, inputs: Mapping[str, str], config: Any) -> str:
    """What tells this run from the finished one: "other settings (threshold 0.8, now 0.9)"."""
    now = json.loads(json.dumps(as_dict(config)))
    changed = [k for k in now if k not in _IGNORED_CONFIG and manifest.config.get(k) != now[k]]
    if not changed:
        return "other inputs" if manifest.inputs != dict(inputs) else "another version of Sterna"
    return "other settings (" + ", ".join(f"{key} {manifest.config.get(key)!r}, now {now[key]!r}" for key in changed[:3]) + ")"


@contextmanager
def publish(output: str, *, stage: str, inputs: Mapping[str, str], config: Any) -> Iterator[Draft]:
    """Write a stage folder: yields a `Draft`, and publishes it when the block ends without an exception.

    The work happens in `<output>.partial`, which an interrupted run with the same fingerprint finds again
    (`draft.resumed`) and any other run clears. What stood at `output` stays until the new folder is whole.
    """
    output = _followed(output)
    _refuse_foreign(output, stage)
    print_ = fingerprint(stage, inputs, config)
    partial = output.rstrip("/") + ".partial"
    started = time.monotonic()
    with _exclusive(partial, output) if "://" not in output else _no_lock(partial):
        draft = _begin(partial, print_)
        try:
            yield draft
        except ValueError:
            _forget_if_worthless(draft)
            raise
        manifest = Manifest(
            stage=stage, inputs=dict(inputs), config=as_dict(config), counts=draft.counts, metrics=draft.metrics,
            figures=draft.figures, headline=draft.headline, seconds=round(time.monotonic() - started, 3), fingerprint=print_,
        )  # fmt: skip
        _commit(draft, output, manifest)


def _read_manifest(uri: str) -> Manifest | None:
    filesystem, path = resolve(uri)
    try:
        if filesystem.get_file_info(f"{path}/{MANIFEST}").type != arrow_fs.FileType.File:
            return None
        with filesystem.open_input_stream(f"{path}/{MANIFEST}") as stream:
            raw = stream.readall()
    except OSError as error:
        raise ValueError(f"{uri}: cannot be read ({one_line(error)}); check the location and your access to it") from None
    try:
        data = json.loads(raw)
        if data.get("schema") != SCHEMA_VERSION:
            raise ValueError(f"schema {data.get('schema')}, this Sterna reads {SCHEMA_VERSION}")
        return Manifest(**data)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{uri}/{MANIFEST}: not a manifest this Sterna reads ({error}); run the stage again") from None


def _followed(output: str) -> str:
    """Where a link leads: the link stays, and the folder comes to lie on the disk that it points to."""
    return os.path.realpath(resolve(output)[1]) if "://" not in output and os.path.islink(resolve(output)[1]) else output


def _refuse_foreign(output: str, stage: str) -> None:
    """ValueError if publishing to `output` would replace what this stage has not made, or cannot be done at all."""
    filesystem, path = resolve(output)
    info = filesystem.get_file_info(path)
    if info.type == arrow_fs.FileType.File:
        raise ValueError(f"{output}: is a file; choose another --output folder")
    if info.type == arrow_fs.FileType.Unknown:  # the swap would put a folder in the place of /dev/null
        raise ValueError(f"{output}: is a device, a pipe or a socket; choose another --output folder")
    if info.type != arrow_fs.FileType.Directory or not (names := list_files(filesystem, path)) or PARTIAL_STATE in names:
        return  # nothing there, or an upload of ours that was cut short
    try:
        manifest = _read_manifest(output)
    except ValueError:
        manifest = None
    if manifest is None:
        raise ValueError(f"{output}: holds files that no Sterna stage made; choose another --output folder")
    if manifest.stage != stage:
        raise ValueError(f"{output}: holds what `sterna {_verb(manifest.stage)}` made; choose another --output folder, or delete this one")


@contextmanager
def _exclusive(partial: str, output: str) -> Iterator[None]:
    lock = Path(resolve(partial)[1] + ".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("w")
    except OSError as error:
        raise ValueError(f"{output}: cannot be written ({error.strerror}); choose another --output folder") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(handle.fileno()).st_ino == lock.stat().st_ino  # else the run before has just removed it
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            raise ValueError(f"{output}: another run is writing this folder; wait for it or choose another --output")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def _no_lock(_: str) -> Iterator[None]:
    yield  # object stores have no locks: two runs into one s3:// folder at once are not kept apart


def _begin(partial: str, print_: str) -> Draft:
    filesystem, path = resolve(partial)
    local = "://" not in partial
    folder = Path(path) if local else Path(tempfile.gettempdir()) / "sterna-scratch" / digest_of([partial, print_])
    resumed = _state_of(filesystem, path) == print_
    if not resumed:
        try:
            if filesystem.get_file_info(path).type == arrow_fs.FileType.Directory:
                filesystem.delete_dir(path)
            filesystem.create_dir(path, recursive=True)
            with filesystem.open_output_stream(f"{path}/{PARTIAL_STATE}") as stream:
                stream.write(json.dumps({"fingerprint": print_}).encode())
        except OSError as error:
            raise ValueError(f"{partial}: cannot be written ({one_line(error)}); choose another --output") from None
        if not local:
            shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return Draft(uri=path if local else partial, dir=folder, resumed=resumed)


def _forget_if_worthless(draft: Draft) -> None:
    """A refused run leaves nothing, unless there is work to go on with."""
    filesystem, path = resolve(draft.uri)
    here = {str(entry.relative_to(draft.dir)) for entry in draft.dir.rglob("*") if entry.is_file()}
    disposable = (PARTIAL_STATE, *(f"{name}/" for name in draft.disposable))
    if all(name.startswith(disposable) for name in {*list_files(filesystem, path), *here}):
        filesystem.delete_dir(path)


def _state_of(filesystem: arrow_fs.FileSystem, path: str) -> str | None:
    """The fingerprint of the run that left its work at `path`; None if there is none, or it was killed while it wrote that."""
    if filesystem.get_file_info(f"{path}/{PARTIAL_STATE}").type != arrow_fs.FileType.File:
        return None
    with filesystem.open_input_stream(f"{path}/{PARTIAL_STATE}") as stream:
        raw = stream.readall()
    try:
        return str(json.loads(raw)["fingerprint"])
    except (ValueError, KeyError, TypeError):
        return None


def _commit(draft: Draft, output: str, manifest: Manifest) -> None:
    filesystem, path = resolve(draft.uri)
    for name in draft.scratch:
        target = draft.dir / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        if "://" in draft.uri and filesystem.get_file_info(f"{path}/{name}").type == arrow_fs.FileType.Directory:
            filesystem.delete_dir(f"{path}/{name}")
    if "://" in draft.uri:
        copy_tree(str(draft.dir), draft.uri)
    files = inventory(draft.uri)
    manifest = Manifest(**{**asdict(manifest), "files": files, "digest": digest_of(files)})
    if "://" not in draft.uri:
        _publish_local(Path(path), Path(resolve(output)[1]), manifest)
        return
    _publish_remote(draft, output, manifest)


def _publish_remote(draft: Draft, output: str, manifest: Manifest) -> None:
    """Copy the files, then the manifest. A folder without a manifest may not be read, one with the state file may be overwritten."""
    filesystem, path = resolve(draft.uri)
    out_fs, out = resolve(output)
    stale = list_files(out_fs, out)
    out_fs.copy_file(f"{path}/{PARTIAL_STATE}", f"{out}/{PARTIAL_STATE}")
    for name in sorted(set(stale) - {PARTIAL_STATE}, key=lambda name: name != MANIFEST):  # the manifest first
        out_fs.delete_file(f"{out}/{name}")
    for name in manifest.files:
        out_fs.copy_file(f"{path}/{name}", f"{out}/{name}")
    with out_fs.open_output_stream(f"{out}/{MANIFEST}") as stream:
        stream.write(_dump(manifest))
    out_fs.delete_file(f"{out}/{PARTIAL_STATE}")
    filesystem.delete_dir(path)
    shutil.rmtree(draft.dir, ignore_errors=True)


def _publish_local(partial: Path, output: Path, manifest: Manifest) -> None:
    """Swap the folders. Killed between the two renames, the earlier folder waits beside as `.replaced` and the work is resumed."""
    (partial / MANIFEST).write_bytes(_dump(manifest))
    old = output.with_name(output.name + ".replaced")
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
    partial.rename(output)
    (output / PARTIAL_STATE).unlink()  # last, so that an interrupted swap finds its work again
    shutil.rmtree(old, ignore_errors=True)


def _dump(manifest: Manifest) -> bytes:
    return (json.dumps(asdict(manifest), indent=1) + "\n").encode()
