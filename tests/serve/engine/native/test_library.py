"""The kernels are compiled once, by whoever comes first, and a machine that cannot have them says why in one line."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve.engine.native import library
from serve.engine.native.library import CPU_FLAGS, NAMES, NativeError, build, load, native, refusal

needs_native = pytest.mark.skipif(refusal() is not None, reason=str(refusal()))


def fake_compiler(folder: Path, script: str) -> str:
    """A compiler that is a shell script; the output file is the argument after -o."""
    file = folder / "fake-g++"
    file.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n{script}\n')
    file.chmod(0o755)
    return str(file)


def test_a_library_is_compiled_once(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path, f'echo run >> {tmp_path}/runs; echo code > "$2"')
    first = build("linear", compiler=compiler, folder=tmp_path / "cache")
    assert first.read_text() == "code\n"
    assert build("linear", compiler="absent", folder=tmp_path / "cache") == first, "an image may ship it without a compiler"
    assert (tmp_path / "runs").read_text() == "run\n"
    assert sorted(file.suffix for file in first.parent.iterdir()) == [".lock", ".so"], "no scratch is left"


def test_processes_that_start_together_compile_once(tmp_path: Path) -> None:
    compiler, cache = fake_compiler(tmp_path, f'echo run >> {tmp_path}/runs; echo code > "$2"'), tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path; from serve.engine.native.library import build; print('ready', flush=True); "
        "print(build('linear', compiler=sys.argv[1], folder=Path(sys.argv[2])))"
    )
    cache.mkdir()
    with (cache / "linear.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-c", code, compiler, str(cache)]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
    outputs = {process.communicate(timeout=120)[0] for process in started}
    assert len(outputs) == 1
    assert Path(outputs.pop().strip()).read_text() == "code\n"
    assert (tmp_path / "runs").read_text() == "run\n"


def test_a_user_without_a_home_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(NativeError, match=r"no folder to keep .* set XDG_CACHE_HOME"):
        build("linear")


def test_another_source_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.cpp").write_text('#include "b.h"\n')
    (tmp_path / "b.h").write_text('#include "c.h"\n#include <cstddef>\n')
    (tmp_path / "c.h").write_text("int c = 1;\n")
    monkeypatch.setattr(library, "_SOURCES", tmp_path)
    before = library._digest("a")
    assert library._digest("a") == before
    (tmp_path / "c.h").write_text("int c = 2;\n")
    assert library._digest("a") != before, "what an included file includes counts too"


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo 'x.cpp:1: error: no such thing' >&2; exit 1", "failed on linear.cpp: x.cpp:1: error: no such thing"),
        ("exit 3", "failed on linear.cpp: no message"),
    ],
)
def test_a_compiler_that_fails_is_one_line(script: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(NativeError) as caught:
        build("linear", compiler=fake_compiler(tmp_path, script), folder=tmp_path / "cache")
    assert str(caught.value).endswith(complaint)
    assert "\n" not in str(caught.value)


def test_no_compiler_and_no_place_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match=r"no compiler /absent/g\+\+; install g\+\+"):
        build("linear", compiler="/absent/g++", folder=tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(NativeError, match=r"cannot write the compiled kernels to .*; set XDG_CACHE_HOME"):
        build("linear", folder=tmp_path / "file" / "cache")


def test_another_processor_is_named_by_what_it_lacks(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags\t\t: fpu " + " ".join(flag for flag in CPU_FLAGS if flag != "avx512_vnni") + "\n")
    assert library._missing_flags(info) == ["avx512_vnni"]
    assert library._missing_flags(tmp_path / "absent") == ["Linux"]


def test_without_kernels_torch_takes_over_and_says_so_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(library, "refusal", lambda: "this processor lacks wings")
    library._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [native("auto"), native("auto"), native("torch")] == [False] * 3
    assert [record.message for record in caplog.records] == [
        "running on torch's kernels, which are slower and sum in another order at other widths: this processor lacks wings"
    ]
    with pytest.raises(ValueError, match="kernels: native kernels cannot run here: this processor lacks wings; use auto or torch"):
        native("native")
    library._say_once.cache_clear()


def test_a_broken_compiler_leaves_torchs_kernels(tmp_path: Path) -> None:
    """From outside: a fresh process whose only g++ fails still loads, with one line on stderr."""
    (tmp_path / "bin").mkdir()
    compiler = tmp_path / "bin" / "g++"
    compiler.write_text("#!/bin/sh\necho 'error: out of order' >&2\nexit 1\n")
    compiler.chmod(0o755)
    code = "from serve.engine.native.library import native; print(native('auto'), native('auto'))"
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False False\n"
    assert len(done.stderr.splitlines()) == 1
    assert "running on torch's kernels" in done.stderr


@needs_native
def test_one_openmp_pool_serves_torch_and_the_kernels() -> None:
    for name in NAMES:
        load(name)
    maps = Path("/proc/self/maps").read_text()
    assert len({line.split()[-1] for line in maps.splitlines() if "libgomp" in line}) == 1


@needs_native
def test_everything_can_be_compiled_ahead(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        library.main()
    assert [Path(record.message).name.split("-")[0] for record in caplog.records] == list(NAMES)
    assert all(Path(record.message).is_file() for record in caplog.records)
