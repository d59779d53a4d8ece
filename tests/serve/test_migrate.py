"""The law of the stream: whatever its sources do, the client gets the undisturbed run, each token and character once."""

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

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
