"""Guided drafts: nothing forbidden is proposed, what is forced is, and the inner drafter is judged by its own tokens only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from serve.engine.guided import GuidedDrafter, guided


class Scripted:
    """A drafter that proposes what it is told to, and remembers what it heard."""

    def __init__(self, proposal: list[int]) -> None:
        self.proposal = proposal
        self.judged: list[int] = []
        self.seen: list[int] = []
        self.recycled: list[tuple[list[int], list[int]]] = []

    def observe(self, tokens: Iterable[int]) -> None:
        self.seen += tokens

    def propose(self, verify_cost: float) -> list[int]:
        return list(self.proposal)

    def judge(self, num_accepted: int) -> None:
        self.judged.append(num_accepted)

    def recycle(self, tokens: Sequence[int], successors: Sequence[int]) -> None:
        self.recycled.append((list(tokens), list(successors)))


class Line:
    """A guide that allows one text only, whose characters are the tokens; all of it is forced after its first `free` ones."""

    def __init__(self, text: str, free: int) -> None:
        self._text, self._free = text, free

    def fit(self, draft: Sequence[int]) -> tuple[int, str]:
        num = next((i for i, token in enumerate(draft) if token != ord(self._text[i])), len(draft))
        return num, self._text[num:] if num >= self._free else ""


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def make(inner: Scripted, free: int = 3, max_draft: int = 8) -> GuidedDrafter:
    drafter = guided(inner, Line("abcdefgh", free), encode, max_draft)  # type: ignore[arg-type]
    assert isinstance(drafter, GuidedDrafter)
    return drafter


def test_a_draft_is_cut_where_it_is_forbidden() -> None:
    assert make(Scripted(encode("abX"))).propose(0.0) == encode("ab")
    assert make(Scripted(encode("Xbc"))).propose(0.0) == []


def test_what_is_forced_follows_but_for_its_last_token() -> None:
    assert make(Scripted(encode("abc"))).propose(0.0) == encode("abcdefg")
    assert make(Scripted([]), free=0, max_draft=4).propose(0.0) == encode("abcd")
    assert make(Scripted([]), free=0).propose(1.0) == [], "where verification costs a whole step, even sure drafts gain nothing"


def test_forced_text_in_tokens_that_are_forbidden_is_not_proposed() -> None:
    drafter = GuidedDrafter(Scripted([]), Line("abcdefgh", 0), lambda text: encode("ab" + text), 8)  # type: ignore[arg-type]
    assert drafter.propose(0.0) == encode("ab")


def test_the_inner_drafter_is_judged_by_its_own_tokens() -> None:
    inner = Scripted(encode("abX"))
    drafter = make(inner, free=2)
    assert drafter.propose(0.0) == encode("abcdefg")
    drafter.judge(6)
    drafter.propose(0.0)
    drafter.judge(1)
    assert inner.judged == [2, 1]


def test_forced_drafts_that_fail_are_given_up_and_tried_again() -> None:
    drafter = make(Scripted([]), free=0)
    for _ in range(40):
        drafter.propose(0.1)
        drafter.judge(0)
    assert drafter.propose(0.1) == []
    assert drafter.propose(0.0) != []
    drafter.judge(7)
    for _ in range(6):
        drafter.propose(0.0)
        drafter.judge(7)
    assert drafter.propose(0.1) != []


def test_of_a_long_forced_text_no_more_is_looked_at_than_can_be_drafted() -> None:
    asked: list[str] = []

    def count(text: str) -> list[int]:
        asked.append(text)
        return encode(text)

    drafter = guided(Scripted([]), Line("x" * 100_000, 0), count, 8)  # type: ignore[arg-type]
    assert drafter is not None
    assert drafter.propose(0.0) == encode("x" * 8)
    assert max(map(len, asked)) < 1000


def test_the_text_and_what_the_model_thought_are_passed_on() -> None:
    inner = Scripted([])
    drafter = make(inner)
    drafter.observe([1, 2])
    drafter.recycle([1], [2])
    assert (inner.seen, inner.recycled) == ([1, 2], [([1], [2])])


def test_without_a_guide_or_a_drafter_there_is_nothing_to_add() -> None:
    inner = Scripted([])
    assert guided(inner, None, encode, 8) is inner
    assert guided(None, Line("a", 0), encode, 8) is None  # type: ignore[arg-type]
