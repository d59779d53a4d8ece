"""The engine's front door: the names a library user needs, without loading what is not asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import serve.engine


def test_every_name_is_there():
    for name in serve.engine.__all__:
        assert getattr(serve.engine, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        serve.engine.nonsense


def test_a_request_needs_no_torch():
    code = "import sys; from serve.engine import Request, Sampling; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
