"""The journal: how a stream came, how long it paused, what was computed again; and who is told of a move."""

import pytest

from serve.engine.request import Request
from serve.migrate import Begun, Done, Fresh, Pulled, Tokens
from serve.moves.departure import NEW, Arrival
from serve.moves.journal import Journal, Stay
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


def came(arrival: Arrival, num_computed: int) -> Stay:
    """A stream that came with 100 tokens, of which so many were computed before its first token."""
    journal = Journal()
    stay = journal.enter(CHOICE, Request(id="r", prompt=(1,) * 90, emitted=(2,) * 10), 2, arrival, 1.0)
    journal.heard(stay, Fresh((5,), "a"), Tokens(10, (5,), 0, "a", None, num_computed))
    assert (stay.num_known, stay.num_computed) == (100, num_computed)
    return stay


@pytest.mark.parametrize(
    ("before", "num_computed", "again"),
    [
        (99, 4, 3),  # six blocks of sixteen came, and one token was always to be computed
        (48, 52, 0),  # the source was computing its prompt
        (48, 60, 8),
        (99, 46, 45),
        (0, 100, 0),  # it waited at its source
        (120, 4, 4),  # the source was further than the record, and its last word was lost
        (None, 4, None),
    ],
)
def test_only_what_was_computed_before_is_computed_again(before: int | None, num_computed: int, again: int | None) -> None:
    arrival = Arrival(Pulled("kv", "it pays"), CHOICE, "t", before)
    assert came(arrival, num_computed).num_computed_again == again


def test_a_stream_that_begins_elsewhere_than_its_kv_is_not_one_that_moved_with_it() -> None:
    journal = Journal()
    for replica_id, how in (("r1", "kv"), ("r2", "recompute")):
        stay = journal.enter(CHOICE, REQUEST, 2, Arrival(Pulled("kv", "it pays"), CHOICE, "t"), 1.0)
        stay.begun(Begun("n2", replica_id))
        assert (stay.how, stay.replica_id, stay.node_id) == (how, replica_id, "n2")
    assert stay.why == "elsewhere: its KV had come to r1, which did not take it"
