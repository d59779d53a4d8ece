"""A sequence is its tokens: cut anywhere and resumed, it shows the same text, ends the same way and hashes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.blocks import root_hash
from serve.engine.request import Request, Sampling
from serve.engine.sequence import Sequence
from serve.engine.text import TextStream, Tokenizer

END, LIMIT = 0, 24
PROMPT = (40, 41, 42)
TOKENS = st.lists(st.integers(4, 399) | st.sampled_from([END, *range(150, 260)]), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer(tiny_model_dir)


def live(tokenizer: Tokenizer, emitted: tuple[int, ...] = (), stop: tuple[str, ...] = (), root: bytes = b"") -> Sequence:
    request = Request(id="a", prompt=PROMPT, emitted=emitted, sampling=Sampling(seed=0, stop=stop))
    text = TextStream(tokenizer, request.prompt, stop)
    return Sequence(
        request=request, arrival=0, limit=LIMIT, stop_ids=frozenset({END}), text=text, drafter=None, root=root or root_hash("m")
    )


def shown(sequence: Sequence, tokens: list[int]) -> list[str]:
    """The text each token lets show, up to the one that ends the sequence."""
    texts = []
    for token in tokens:
        if sequence.finish_reason is None:
            texts.append(sequence.append(token))
    return texts


@settings(max_examples=150)
@given(tokens=TOKENS, stop=st.lists(st.sampled_from(["e", "th", "return", "rn", "日本", " "]), max_size=2), data=st.data())
def test_cut_anywhere_the_rest_is_shown_and_no_more(tokenizer: Tokenizer, tokens: list[int], stop: list[str], data: st.DataObject) -> None:
    whole = live(tokenizer, stop=tuple(stop))
    texts = shown(whole, tokens)
    cut = data.draw(st.integers(0, len(texts)))
    moved = live(tokenizer, emitted=whole.emitted[:cut], stop=tuple(stop))
    assert shown(moved, tokens[cut:]) == texts[cut:]
    assert (moved.tokens, moved.emitted, moved.finish_reason) == (whole.tokens, whole.emitted, whole.finish_reason)
    assert not any(each in "".join(texts) for each in stop)


@given(tokens=TOKENS)
def test_it_ends_at_an_end_token_or_at_its_limit(tokenizer: Tokenizer, tokens: list[int]) -> None:
    sequence = live(tokenizer)
    text = "".join(shown(sequence, tokens))
    room = LIMIT - len(PROMPT)
    if END in tokens[:room]:
        emitted, reason = tokens[: tokens.index(END) + 1], "stop"
    else:
        emitted, reason = tokens[:room], "length" if len(tokens) >= room else None
    assert (list(sequence.emitted), sequence.finish_reason) == (emitted, reason)
    if reason is not None:  # nothing is held back any more; the end token has no text
        assert text == tokenizer.decode([*PROMPT, *emitted]).removeprefix(tokenizer.decode(PROMPT))


def test_a_stop_string_ends_it_before_the_limit_does(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("a tern flies over the sea")
    sequence = live(tokenizer, stop=("flies",))
    assert "".join(shown(sequence, tokens)) == "a tern "
    assert sequence.finish_reason == "stop"
    assert len(sequence.emitted) < len(tokens)


def test_at_the_limit_nothing_is_held_back(tokenizer: Tokenizer) -> None:
    """Half a stop string and half a character are shown once nothing can follow them."""
    room = LIMIT - len(PROMPT)
    tokens = [tokenizer.encode("x")[0]] * (room - 1)
    held = live(tokenizer, stop=("xy",))
    assert "".join(shown(held, [*tokens, tokens[0]])) == "x" * room
    broken = live(tokenizer)
    assert "".join(shown(broken, [*tokens, tokenizer.encode("日")[0]])).rstrip("\ufffd") == "x" * (room - 1)
    assert (held.finish_reason, broken.finish_reason) == ("length", "length")


def test_tokens_sent_after_the_end_are_not_taken_in(tokenizer: Tokenizer) -> None:
    resumed = live(tokenizer, emitted=(50, END, 51))
    assert resumed.finish_reason == "stop"
    assert resumed.emitted == (50, END)


@given(tokens=TOKENS.map(lambda t: [x or 1 for x in t]), size=st.integers(1, 5), data=st.data())
def test_a_chain_grows_and_never_changes(tokenizer: Tokenizer, tokens: list[int], size: int, data: st.DataObject) -> None:
    grown = live(tokenizer)
    asked: list[bytes] = []
    for token in tokens:
        if grown.finish_reason is None:
            grown.append(token)
        if data.draw(st.booleans()):
            chain = grown.chain(len(grown.tokens) // size, size)
            assert chain[: len(asked)] == asked
            asked = chain
    full = len(grown.tokens) // size
    at_once = live(tokenizer, emitted=grown.emitted)
    assert grown.chain(full, size) == at_once.chain(full, size)
    assert grown.chain(full // 2, size) == at_once.chain(full, size)[: full // 2], "asked for less, it gives less"
    with pytest.raises(AssertionError, match="only full blocks"):
        grown.chain(full + 1, size)


@given(left=TOKENS, right=TOKENS, roots=st.tuples(st.sampled_from("mn"), st.sampled_from("mn")))
def test_blocks_are_shared_just_as_far_as_the_tokens_and_the_root_agree(
    tokenizer: Tokenizer, left: list[int], right: list[int], roots: tuple[str, str]
) -> None:
    common = [7, 8, 9, 7, 8]
    a, b = (live(tokenizer, tuple(common + t), root=root_hash(r)) for t, r in zip((left, right), roots, strict=True))
    chains = [s.chain(len(s.tokens) // 2, 2) for s in (a, b)]
    for place, (one, other) in enumerate(zip(*chains, strict=False)):
        end = 2 * place + 2
        assert (one == other) == (roots[0] == roots[1] and a.tokens[:end] == b.tokens[:end])


def test_an_emission_says_where_the_sequence_stands(tokenizer: Tokenizer) -> None:
    sequence = live(tokenizer, emitted=(50, 51))
    sequence.computed = 3
    assert (sequence.num_prompt_tokens, sequence.pending) == (3, 2)
    text = sequence.append(END)
    emission = sequence.emission([END], text, [])
    assert (emission.tokens, emission.finish_reason, emission.num_prompt_tokens) == ((END,), "stop", 3)
    assert emission.num_cached_tokens == 0, "never admitted, so nothing was found"
    assert emission.logprobs == ()
    assert sequence.emission([], "").logprobs is None
