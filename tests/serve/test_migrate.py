"""The law of the stream: whatever its sources do, the client gets the undisturbed run, each token and character once."""

from dataclasses import dataclass, replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve.engine.request import Request, Sampling
from serve.migrate import Begun, Done, Moved, Record, Tokens

PROMPT = Request(id="r-0", prompt=(1, 2, 3), sampling=Sampling(max_tokens=64, seed=7))


@dataclass(frozen=True)
class Answer:
    """An undisturbed run: the tokens, and how many characters are out after each of them (held back text catches up later)."""

    tokens: tuple[int, ...]
    held: tuple[int, ...]

    @property
    def text(self) -> str:
        return "".join(chr(97 + token % 26) * 2 for token in self.tokens)

    def chars(self, k: int) -> int:
        """Characters shown after k tokens: all of them at the end, else 2k minus what is held back, never shrinking."""
        if k >= len(self.tokens):
            return len(self.text)
        return max((2 * i - min(self.held[i], 2 * i) for i in range(k + 1)), default=0)

    def frame(self, start: int, end: int) -> Tokens:
        a, b = self.chars(start), self.chars(end)
        return Tokens(start, self.tokens[start:end], a, self.text[a:b], tuple(self.tokens[start:end]))

    def frames(self, start: int, cuts: list[int]) -> list[Tokens | Done]:
        """What a faithful source sends from `start` on, cut into frames."""
        bounds = sorted({start, len(self.tokens), *(c for c in cuts if start < c < len(self.tokens))})
        parts: list[Tokens | Done] = [self.frame(a, b) for a, b in pairwise(bounds)]
        if not parts:
            return [Done(self.frame(start, start), "length")]
        return [*parts[:-1], Done(parts[-1], "length")]


answers = st.integers(1, 12).flatmap(
    lambda n: st.builds(
        Answer,
        st.lists(st.integers(0, 25), min_size=n, max_size=n).map(tuple),
        st.lists(st.integers(0, 5), min_size=n, max_size=n).map(tuple),
    )
)
EVENTS = st.sampled_from(["deliver", "deliver", "deliver", "repeat", "skip", "late", "old", "move", "die"])


@settings(max_examples=300, deadline=None)
@given(answers, st.lists(EVENTS, max_size=60), st.data())
def test_any_sources_give_the_undisturbed_run(answer: Answer, events: list[str], data: st.DataObject) -> None:
    record, sent, text, past = Record(PROMPT), [], "", []
    attempt, queue = 0, []
    events = [*events, *["deliver"] * 100]  # after the trouble, quiet: the stream must end
    for event in events:
        if record.finish is not None:
            break
        if record.must_resume:
            attempt, request = record.resume()
            assert request.emitted == answer.tokens[: len(sent)]
            assert record.num_chars == len(text)
            queue = answer.frames(len(request.emitted), data.draw(st.lists(st.integers(1, 11), max_size=4)))
        given_ = []
        if event == "die" or not queue:
            record.lost(attempt)
        elif event == "move":
            given_ = [(attempt, Moved(None))]
        elif event == "repeat":
            given_ = [(attempt, queue[0])] * 2
        elif event == "late" and past:
            given_ = [(max(attempt - 1, 0), data.draw(st.sampled_from(past)))]  # a frame of an earlier source
        elif event == "old" and past:
            given_ = [(attempt, data.draw(st.sampled_from(past)))]  # the source repeats itself from far back
        elif event == "deliver":
            given_ = [(attempt, queue[0])]
        if event in ("deliver", "repeat", "skip") and queue:
            past.append(queue.pop(0))
        for number, frame in given_:
            fresh = record.take(number, frame)
            sent.extend(fresh.tokens)
            text += fresh.text
            assert fresh.logprobs is None or len(fresh.logprobs) == len(fresh.tokens)
        assert sent == list(answer.tokens[: len(sent)])
        assert answer.text.startswith(text)
    assert record.finish is not None
    assert sent == list(answer.tokens) == record.tokens
    assert text == answer.text


@dataclass
class Origin:
    """A source in the middle of its work: it runs ahead of what has arrived, and may be told to leave, stop or die."""

    attempt: int
    at: int
    """Tokens of the answer that it has computed."""
    in_flight: list[Tokens | Done | Moved]
    state: str = "runs"
    """runs, leaves (and goes on), stopped (said its last) or dead."""


class Migration(RuleBasedStateMachine):
    """Any interleaving of an old and a new source: both run, frames are on their way from both, either leaves, stops or dies."""

    @initialize(answer=answers)
    def begin(self, answer: Answer) -> None:
        self.answer, self.record = answer, Record(PROMPT)
        self.sent: list[int] = []
        self.text = ""
        self.sources: list[Origin] = []

    @precondition(lambda self: self.record.must_resume and self.record.finish is None)
    @rule()
    def resume(self) -> None:
        attempt, request = self.record.resume()
        assert request == replace(PROMPT, emitted=self.answer.tokens[: len(self.sent)])
        assert self.record.num_chars == len(self.text)
        self.sources = [*self.sources[-1:], Origin(attempt, len(request.emitted), [])]

    @precondition(lambda self: any(s.state in ("runs", "leaves") for s in self.sources))
    @rule(data=st.data(), count=st.integers(0, 3))
    def compute(self, data: st.DataObject, count: int) -> None:
        source = data.draw(st.sampled_from([s for s in self.sources if s.state in ("runs", "leaves")]))
        end = min(source.at + count, len(self.answer.tokens))
        part = self.answer.frame(source.at, end)
        if end == len(self.answer.tokens):
            source.in_flight.append(Done(part, "length"))
            source.state = "stopped"
        else:
            source.in_flight.append(part)
        source.at = end

    @precondition(lambda self: any(s.state == "runs" for s in self.sources))
    @rule()
    def leave(self) -> None:
        next(s for s in self.sources if s.state == "runs").state = "leaves"

    @precondition(lambda self: any(s.state == "leaves" for s in self.sources))
    @rule()
    def last_stage(self) -> None:
        source = next(s for s in self.sources if s.state == "leaves")
        source.in_flight.append(Moved(None))
        source.state = "stopped"

    @precondition(lambda self: any(s.in_flight for s in self.sources))
    @rule(data=st.data(), again=st.booleans())
    def arrive(self, data: st.DataObject, again: bool) -> None:
        source = data.draw(st.sampled_from([s for s in self.sources if s.in_flight]))
        frame = source.in_flight.pop(0)
        for _ in range(1 + again):
            fresh = self.record.take(source.attempt, frame)
            self.sent.extend(fresh.tokens)
            self.text += fresh.text

    @precondition(lambda self: any(s.state != "dead" for s in self.sources))
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from([s for s in self.sources if s.state != "dead"]))
        source.state, source.in_flight = "dead", []  # what was on its way is lost with it, a last frame too
        self.record.lost(source.attempt)

    @precondition(lambda self: self.record.finish is not None)
    @rule(attempt=st.integers(0, 5), frame=st.sampled_from([Moved(None), Done(Tokens(0, (), 0, ""), "stop"), Tokens(0, (25,), 0, "zz")]))
    def say_more_after_the_end(self, attempt: int, frame: Tokens | Done | Moved) -> None:
        assert not self.record.take(attempt, frame)

    @invariant()
    def what_was_sent_is_the_beginning_of_the_answer(self) -> None:
        if hasattr(self, "record"):
            assert tuple(self.sent) == self.answer.tokens[: len(self.sent)] == tuple(self.record.tokens)
            assert self.answer.text.startswith(self.text)
            assert self.record.finish is None or len(self.sent) == len(self.answer.tokens)

    def teardown(self) -> None:
        """After the trouble, quiet: one more source that stays is enough."""
        if not hasattr(self, "record"):
            return
        for source in self.sources:
            self.record.lost(source.attempt)
        if self.record.finish is None:
            attempt, request = self.record.resume()
            for frame in self.answer.frames(len(request.emitted), []):
                self.text += self.record.take(attempt, frame).text
        assert self.record.finish is not None
        assert (tuple(self.record.tokens), self.text) == (self.answer.tokens, self.answer.text)


TestMigration = Migration.TestCase


def test_a_frame_that_disagrees_is_not_believed() -> None:
    record = Record(PROMPT)
    attempt, _ = record.resume()
    record.take(attempt, Tokens(0, (5, 6), 0, "ab"))
    assert not record.take(attempt, Tokens(1, (9, 9), 1, "zz"))
    assert record.must_resume
    assert record.num_deaths == 1
    assert record.resume()[1].emitted == (5, 6)


def test_an_end_before_what_was_sent_is_not_believed() -> None:
    record = Record(PROMPT)
    attempt, _ = record.resume()
    record.take(attempt, Tokens(0, (5, 6), 0, "ab"))
    record.take(attempt, Done(Tokens(0, (5,), 0, "a"), "stop"))
    assert record.finish is None
    assert record.must_resume


def test_fruitless_deaths_count_only_those_without_progress() -> None:
    record = Record(PROMPT)
    for _ in range(3):
        record.lost(record.resume()[0])
    assert record.fruitless_deaths == 3
    attempt, _ = record.resume()
    record.take(attempt, Tokens(0, (5,), 0, "a"))
    assert record.fruitless_deaths == 0
    record.lost(attempt)
    record.lost(attempt)  # the same loss reported twice is one loss
    assert (record.num_deaths, record.fruitless_deaths) == (4, 1)


def test_handing_over_is_not_dying() -> None:
    record = Record(PROMPT)
    attempt, _ = record.resume()
    record.take(attempt, Tokens(0, (5,), 0, "a"))
    record.take(attempt, Moved(None))
    assert (record.num_moves, record.num_deaths, record.must_resume) == (1, 0, True)
    assert record.resume() == (2, Request(id="r-0", prompt=(1, 2, 3), sampling=PROMPT.sampling, emitted=(5,)))
    assert Begun("node", "replica").node_id == "node"
