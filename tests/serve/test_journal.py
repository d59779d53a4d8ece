"""The journal: how a stream came, how long it paused, what was computed again; and who is told of a move."""

from serve.departure import NEW, Arrival
from serve.engine.request import Request
from serve.journal import Journal
from serve.migrate import Done, Fresh, Pulled, Tokens
from serve.router import Choice, Place

REQUEST = Request(id="r", prompt=(1,))
CHOICE = Choice(Place("spot", "r1", "n1", 0, 8), "least loaded")


def test_a_new_stream_has_no_gap_and_nobody_is_told() -> None:
    told = []
    journal = Journal(lambda how, gap_s: told.append((how, gap_s)))
    stay = journal.enter(CHOICE, REQUEST, 1, NEW, None)
    journal.heard(stay, Fresh(), Tokens(0, (), 0, ""))
    assert stay.first_s is None
    journal.heard(stay, Fresh((5, 6), "ab"), Tokens(0, (5, 6), 0, "ab", None, 3))
    journal.heard(stay, Fresh((7,), "c"), Done(Tokens(2, (7,), 2, "c", None, 9), "stop"))
    journal.leave(stay)
    assert (stay.how, stay.gap_s, stay.num_computed, stay.num_tokens, stay.end) == ("new", None, 3, 3, "cancelled")
    assert stay.start_s <= stay.first_s <= stay.last_s <= stay.end_s
    assert told == []


def test_a_moved_stream_says_how_and_its_gap_is_told_once() -> None:
    told = []
    journal = Journal(lambda how, gap_s: told.append((how, gap_s)))
    before = journal.enter(CHOICE, REQUEST, 1, NEW, None)
    journal.heard(before, Fresh((5,), "a"), Tokens(0, (5,), 0, "a"))
    stay = journal.enter(CHOICE, REQUEST, 2, Arrival(Pulled("kv", "it pays", 4096, 2, 0.1), CHOICE, "t"), before.last_s)
    for start in (1, 2):
        journal.heard(stay, Fresh((start,), "a"), Tokens(start, (start,), start, "a", None, 1))
    assert told == [("kv", stay.gap_s)]
    assert stay.gap_s == stay.first_s - before.last_s
    row = journal.rows()[-1]
    assert {name: row[name] for name in ("how", "why", "num_bytes", "stages", "num_computed", "reason")} == {
        "how": "kv", "why": "it pays", "num_bytes": 4096, "stages": 2, "num_computed": 1, "reason": "least loaded",
    }  # fmt: skip


def test_a_stream_that_is_bounced_after_a_crash_counts_as_computed_again() -> None:
    told = []
    journal = Journal(lambda how, gap_s: told.append(how))
    stay = journal.enter(CHOICE, REQUEST, 3, Arrival(Pulled("bounce", "it leaves")), 1.0)
    journal.heard(stay, Fresh((5,), "a"), Done(Tokens(0, (5,), 0, "a"), "stop"))
    assert told == ["recompute"]
