"""Two lanes under `pytest -n 2`: every test that needs Ray in one process, with one Ray, and everything else in the other.

The Ray tests mostly wait, the others mostly compute, so two cores serve both, and the whole takes as long as the longer lane.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
WHOLE_CLUSTERS = ("tests/chaos/", "tests/journey/", "tests/serve/conformance/")
APART = (
    "tests/chaos/test_curate.py",
    "tests/chaos/test_storm.py",
)  # their clusters are of processes of their own: the shorter lane takes them


@cache
def lane(file: str) -> str:
    """Of a test file, by its path below the project's root: "cluster" where Ray is needed, else the file itself."""
    if file in APART:
        return file
    needs_ray = file.startswith(WHOLE_CLUSTERS) or "ray_session" in (ROOT / file).read_text()
    return "cluster" if needs_ray else file


class Lanes(LoadScopeScheduling):
    """Files go to whichever process is free; those that need Ray go to one."""

    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid.split("::")[0])
