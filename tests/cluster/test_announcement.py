"""Machines that will be gone, announced in a real GCS, and who listens there."""

import time
from collections.abc import Iterator

import pytest

from cluster import announcement
from cluster.announcement import announce, announced, lead, listen, withdraw
from cluster.bulletin import Bulletin


@pytest.fixture
def bulletin(ray_session: None) -> Iterator[Bulletin]:
    made = Bulletin()
    yield made
    for topic in (announcement.NOTICES, announcement.LISTENERS):
        for writer in made.read(topic):
            made.remove(topic, writer)


def test_the_latest_word_on_a_machine_holds_until_it_is_withdrawn_or_long_past(bulletin: Bulletin) -> None:
    now_s = time.time()
    announce(bulletin, "a", now_s + 100, "drill")
    announce(bulletin, "a", now_s + 50, "drill")
    announce(bulletin, "b", now_s + 9, "drill")
    announce(bulletin, "gone", now_s - announcement.PAST_S - 1, "drill")
    assert announced(bulletin) == {"a": now_s + 50, "b": now_s + 9}
    assert set(bulletin.read(announcement.NOTICES)) == {"a", "b"}, "what is past is taken down"
    withdraw(bulletin, "b")
    assert set(announced(bulletin)) == {"a"}


def test_the_longest_lead_of_those_who_listen_now_counts(bulletin: Bulletin, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lead(bulletin) is None
    listen(bulletin, "one", 30.0)
    listen(bulletin, "other", 10.0)
    assert lead(bulletin) == 30.0
    monkeypatch.setattr(announcement, "FRESH_S", -1.0)
    assert lead(bulletin) is None, "they have not been heard of late"
