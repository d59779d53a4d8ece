"""Notes in the GCS: posted, replaced, aged, forgotten; on a real one."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cluster.bulletin import Bulletin, Poster

PATIENCE_S = 60.0


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)  # the GCS has no event for it


@pytest.fixture
def bulletin(ray_session: None) -> Iterator[Bulletin]:
    made = Bulletin()
    yield made
    for writer in made.read("test"):
        made.remove("test", writer)


def test_a_note_is_what_its_writer_last_said_and_ages(bulletin: Bulletin, monkeypatch: pytest.MonkeyPatch) -> None:
    bulletin.post("test", "a", {"n": 1})
    bulletin.post("test", "a", {"n": 2})
    bulletin.post("test", "b/c", {"n": 3})
    notes = bulletin.read("test", max_age_s=60)
    assert {writer: note["n"] for writer, note in notes.items()} == {"a": 2, "b/c": 3}
    assert abs(notes["a"]["time_s"] - time.time()) < 30
    assert bulletin.read("test", max_age_s=-1) == {}
    monkeypatch.setattr("cluster.bulletin.FORGET_S", -1.0)
    assert bulletin.read("test", max_age_s=-1) == {}
    assert bulletin.read("test") == {}, "taken down, for their writers are gone"
    monkeypatch.undo()
    bulletin.post("test", "a", {"n": 2})
    bulletin.post("test", "b/c", {"n": 3})
    bulletin.remove("test", "a")
    assert set(bulletin.read("test")) == {"b/c"}
    assert bulletin.read("tes") == {}, "topics do not run into each other"


def test_a_poster_posts_until_it_is_closed_and_outlives_a_failing_report(bulletin: Bulletin) -> None:
    count, failed = 0, threading.Event()

    def report() -> dict[str, int]:
        nonlocal count
        count += 1
        if count == 2:
            failed.set()
            raise RuntimeError("no report now")
        return {"n": count}

    poster = Poster("test", "p", report, interval_s=0.02, bulletin=bulletin)
    assert failed.wait(PATIENCE_S)
    until(lambda: bulletin.read("test").get("p", {"n": 0})["n"] > 2)
    poster.close()
    assert "p" not in bulletin.read("test")
