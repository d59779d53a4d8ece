import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.limits.first_token import Expectation, FirstToken, Stream

NOW = Expectation(0.0, waits=False)


def made(num_prompt: int = 10, max_tokens: int = 100, num_tokens: int = 0, first_s: float | None = None) -> Stream:
    return Stream(num_prompt, max_tokens, 0.0, NOW, num_tokens=num_tokens, first_s=first_s)


def learnt(token_s: float = 0.1, prompt_s: float = 0.01) -> FirstToken:
    first_token = FirstToken()
    first_token.token_s, first_token.prompt_s = token_s, prompt_s
    return first_token


def test_a_worked_example() -> None:
    """Two places: streams with 20 and 60 tokens left; one waits ahead. It starts after 2 s and takes 0.1 + 10 s; so mine starts after 6."""
    streams = [made(num_tokens=80, first_s=0.0), made(num_tokens=40, first_s=0.0), made()]
    expected = learnt().expect(streams, 2, num_prompt=50)
    assert expected == Expectation(pytest.approx(6.0 + 0.5), waits=True)


def test_a_free_place_costs_the_prompts_that_are_being_computed_and_its_own() -> None:
    assert learnt().expect([made(num_prompt=30)], 2, num_prompt=50) == Expectation(pytest.approx(0.8), waits=False)


def test_without_observations_nothing_is_expected_and_without_places_everyone_waits() -> None:
    assert FirstToken().expect([made()] * 100, 8, 50).seconds == 0.0
    assert learnt().expect([], 0, 1).waits


def test_places_that_were_lost_make_running_streams_wait_too() -> None:
    running = [made(num_tokens=90, first_s=0.0) for _ in range(4)]  # a second each
    assert learnt().expect(running, 4, 0).seconds == pytest.approx(1.0)
    assert learnt().expect(running, 2, 0).seconds == pytest.approx(2.0)


def test_it_learns_speeds_and_how_much_of_their_limits_answers_use() -> None:
    first_token = FirstToken()
    for _ in range(200):
        stream = made(num_prompt=100, max_tokens=40)
        first_token.heard(stream, 1, 2.0)
        for step in range(1, 10):
            first_token.heard(stream, 2, 2.0 + step)
        first_token.ended(stream)
    assert first_token.prompt_s == pytest.approx(0.02)
    assert first_token.token_s == pytest.approx(0.5)
    assert first_token.share == pytest.approx(19 / 40, abs=0.01)


def test_a_stream_that_stood_still_hardly_changes_what_a_token_takes() -> None:
    first_token, stream = learnt(token_s=0.02), made(first_s=0.0)
    first_token.heard(stream, 1, 60.0)
    assert first_token.token_s < 0.024


@pytest.mark.parametrize("waits", [True, False])
def test_the_margin_is_the_worst_late_experience_and_forgets(waits: bool) -> None:
    first_token = learnt()
    late = Stream(10, 100, 0.0, Expectation(1.0, waits=True))
    assert first_token.margin_s([late], 0.5) == 0.0
    assert first_token.margin_s([late], 4.0) == 3.0  # it has not even come yet
    first_token.heard(late, 1, 5.0)
    assert first_token.margin_s([], 5.0) == 4.0
    for _ in range(300):
        first_token.heard(Stream(10, 100, 0.0, Expectation(1.0, waits=waits)), 1, 0.9)
    assert first_token.margin_s([], 6.0) == 0.0


STREAMS = st.lists(
    st.builds(
        lambda prompt, limit, share, started: made(prompt, limit, int(limit * share), 0.0 if started else None),
        *[st.integers(1, 500), st.integers(1, 200), st.floats(0, 0.9), st.booleans()],
    ),
    max_size=30,
)


@given(STREAMS, st.integers(1, 12), st.integers(1, 500))
def test_more_places_never_make_it_longer_and_more_streams_never_shorter(streams: list[Stream], slots: int, num_prompt: int) -> None:
    first_token = learnt(prompt_s=0.0)
    expected = first_token.expect(streams, slots, num_prompt)
    assert first_token.expect(streams, slots + 1, num_prompt).seconds <= expected.seconds + 1e-9
    assert first_token.expect([*streams, made()], slots, num_prompt).seconds >= expected.seconds - 1e-9
    assert expected.waits == (len(streams) >= slots)
    assert expected.seconds <= sum(first_token._left_s(stream) for stream in streams) + 1e-9
