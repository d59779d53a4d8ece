"""`ray job submit --working-dir . -- python -m sterna VERB` against a real local head with the directory uploaded."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# Ray turns token authentication on for a head when the user has a token file, but not for the client: neither here.
ENV = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
HEAD = """
import socket, sys
from ray.cluster_utils import Cluster

def free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

# Ports of its own: two agents on one machine would want the same one, and the second would take no jobs.
ports = {"dashboard_port": free(), "dashboard_agent_listen_port": free()}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": True, **ports})
print(cluster.head_node.webui_url, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


def submitted(head, command):
    """The finished `ray job submit`; a head answers before its agent takes jobs, so it is asked until then."""
    deadline = time.monotonic() + 60
    while True:
        arguments = [str(BIN / "ray"), "job", "submit", "--address", head, "--working-dir", str(ROOT), "--", *command]
        shown = subprocess.run(arguments, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=240)
        if "No available agent" not in shown.stdout + shown.stderr or time.monotonic() > deadline:
            return shown


@pytest.fixture
def head():
    """The HTTP address of a head of our own, gone when the test ends."""
    process = subprocess.Popen([sys.executable, "-c", HEAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV)
    address = process.stdout.readline().strip()
    assert address, "the head did not start"
    yield f"http://{address}"
    process.communicate("\n", timeout=60)


def test_a_verb_runs_as_a_job_with_the_directory_uploaded(head, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for index in range(4):
        lines = [f"def area_{index}_{n}(width, height):\n    return width * height + {index * n}\n" for n in range(30)]
        (text / f"{index}.py").write_text("\n".join(lines))
    corpus = tmp_path / "corpus"
    command = ["python", "-m", "sterna", "curate", str(text), "--output", str(corpus), "--json"]
    shown = submitted(head, command)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "attached to the Ray cluster" in shown.stdout, "the job started a cluster of its own"
    assert json.loads((corpus / "manifest.json").read_text())["counts"]["documents_in"] == 4


def test_what_is_uploaded_is_small():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    assert sum(file.stat().st_size for file in files) < 20 * 2**20
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {".venv/", "/runs/", "/data/"} <= set(ignored), "Ray leaves out of the upload what .gitignore names"
