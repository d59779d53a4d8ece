"""Storage that does not answer at first, and storage that never does."""

from __future__ import annotations

import pytest

from cluster import patience
from cluster.patience import patiently, patiently_given

BUSY = "AWS Error SLOW_DOWN (HTTP status 503)"


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    monkeypatch.setattr(patience, "_WAITS_S", (0.0, 0.0))


class Storage:
    """Fails with these errors, one after the other, then answers; items are given up to the place where it fails."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.asked = 0

    def read(self, answer="text"):
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return answer

    def items(self):
        self.asked += 1
        for item in range(5):
            if item == 3 and self.errors:
                raise self.errors.pop(0)
            yield item


def test_what_is_busy_is_asked_again():
    storage = Storage(OSError(BUSY), OSError(5, "Input/output error"))
    assert patiently(storage.read)(answer="found") == "found"
    assert storage.asked == 3


def test_each_item_is_given_once_however_often_it_is_begun():
    storage = Storage(OSError(BUSY), OSError(BUSY))
    assert list(patiently_given(storage.items)) == [0, 1, 2, 3, 4]
    assert storage.asked == 3


@pytest.mark.parametrize("ask", [lambda storage: patiently(storage.read)(), lambda storage: list(patiently_given(storage.items))])
def test_it_ends_some_day_and_other_errors_at_once(ask):
    down = Storage(*[OSError(BUSY)] * 9)
    with pytest.raises(OSError, match="SLOW_DOWN"):
        ask(down)
    assert down.asked == 3
    for error in (FileNotFoundError("gone"), OSError("AWS Error ACCESS_DENIED"), ValueError("mistake")):
        wrong = Storage(error)
        with pytest.raises(type(error), match=str(error)):
            ask(wrong)
        assert wrong.asked == 1
