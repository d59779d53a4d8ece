"""Text as it streams: whole characters only, stop strings never, and always a function of the tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.text import TextStream, Tokenizer


class Fallback:
    """A tokenizer that, like SentencePiece's byte fallback, gives up all bytes of a run that is no text."""

    def decode(self, tokens: Sequence[int]) -> str:
        try:
            return bytes(tokens).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(tokens)


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")


def show(text: str, stop: Sequence[str] = (), prompt: str = "") -> tuple[list[str], bool]:
    """The pieces a stream shows for the bytes of `text`, and whether a stop string ended it."""
    stream = TextStream(Bytes(), list(prompt.encode()), stop)
    pieces = []
    for token in text.encode():
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    if not stream.stopped:
        pieces.append(stream.finish())
    return pieces, stream.stopped


@settings(deadline=None)
@given(st.text(alphabet="aé日🐦 ", max_size=20), st.text(alphabet="bñ", max_size=5))
def test_pieces_make_the_text_and_never_hold_half_a_character(text: str, prompt: str) -> None:
    pieces, _ = show(text, prompt=prompt)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


@settings(deadline=None)
@given(st.text(alphabet="abc", max_size=30), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces, stopped = show(text, stop)
    shown = "".join(pieces)
    assert not any(s in shown for s in stop)
    ends = [text.find(s) + len(s) for s in stop if s in text]
    assert stopped == bool(ends)
    if ends:  # the stream stops at the first completed one
        first = text[: min(ends)]
        assert shown == first[: min(first.find(s) for s in stop if s in first)]
    else:
        assert shown == text


def test_what_may_become_a_stop_string_is_held_back() -> None:
    stream = TextStream(Bytes(), [], ["END"])
    assert [stream.push(t) for t in b"aEN"] == ["a", "", ""]
    assert stream.push(ord("x")) == "ENx"


def test_nothing_follows_a_stop_string() -> None:
    stream = TextStream(Bytes(), [], ["abc"])
    assert "".join(stream.push(byte) for byte in b"xabc") == "x"
    assert stream.stopped
    assert stream.push(ord("y")) == stream.finish() == ""


def test_an_unfinished_character_is_shown_at_the_end_as_what_it_is() -> None:
    stream = TextStream(Bytes(), [], [])
    assert stream.push("é".encode()[0]) == ""
    assert stream.finish() == "\ufffd"


def test_broken_bytes_do_not_hold_back_text_for_ever() -> None:
    stream = TextStream(Bytes(), [], [])
    assert "".join(stream.push(0xFF) for _ in range(100)).count("\ufffd") >= 80


def shown(tokens: Sequence[int], prompt: Sequence[int]) -> str:
    """All that a stream of these tokens shows."""
    stream = TextStream(Bytes(), prompt)
    return "".join([*(stream.push(t) for t in tokens), stream.finish()])


def test_a_character_after_broken_bytes_is_whole() -> None:
    assert shown([0xFF] * 8 + list("語x".encode()), b"a") == "\ufffd" * 8 + "語x"


@settings(deadline=None)
@given(st.text(alphabet="aé日🐦", max_size=20), st.text(alphabet="a日🐦", max_size=5))
def test_a_decoder_that_gives_up_broken_runs_never_sees_one(text: str, prompt: str) -> None:
    stream = TextStream(Fallback(), list(prompt.encode()))
    assert "".join([*(stream.push(t) for t in text.encode()), stream.finish()]) == text


def test_a_character_that_the_prompt_began_is_shown_whole() -> None:
    assert shown([0xA9, ord("b")], [ord("a"), 0xC3]) == "éb"
    assert shown(b"b", [ord("a"), 0xC3]) == "b"


pieces_of_bytes = st.lists(st.sampled_from([b"a", b"\xff", b"\xe8", b"\xf0\x9f", "é".encode(), "語".encode(), "🐦".encode()]), max_size=40)


@settings(deadline=None, max_examples=300)
@given(pieces_of_bytes)
def test_any_bytes_show_what_they_decode_to_together(pieces: list[bytes]) -> None:
    tokens = b"".join(pieces)
    assert shown(tokens, b"a") == tokens.decode(errors="replace")


@settings(deadline=None)
@given(st.text(alphabet="aé🐦", min_size=1, max_size=12), st.data())
def test_a_stream_resumed_anywhere_shows_the_rest(text: str, data: st.DataObject) -> None:
    tokens = list(text.encode())
    cut = data.draw(st.integers(0, len(tokens)))
    whole, resumed = TextStream(Bytes(), [], ["🐦🐦"]), TextStream(Bytes(), [], ["🐦🐦"])
    pieces = [whole.push(t) for t in tokens]
    for token in tokens[:cut]:
        resumed.push(token)
    assert [resumed.push(t) for t in tokens[cut:]] == pieces[cut:]


def test_tokenizer_reads_a_folder(tiny_model_dir: Path) -> None:
    tokenizer = Tokenizer(tiny_model_dir)
    text = "def add(left, right):\n    return 日本語 🐦"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_id("<|endoftext|>") == 0
    assert tokenizer.decode([0, *tokenizer.encode("a")]) == "a"
    assert tokenizer.token_bytes(0) == b"<|endoftext|>"
    assert tokenizer.token_bytes(10**6) == b""


def test_streaming_real_tokens_gives_the_decoded_text(tiny_model_dir: Path) -> None:
    tokenizer = Tokenizer(tiny_model_dir)
    tokens = tokenizer.encode("Ünïcode: naïve café, 日本語, emoji 🐦 and a tab\there.")
    stream = TextStream(tokenizer, tokenizer.encode("prompt "), [])
    assert "".join([*(stream.push(t) for t in tokens), stream.finish()]) == tokenizer.decode(tokens)


def write_fallback_tokenizer(folder: Path) -> None:
    """A small tokenizer in SentencePiece's manner: spaces are part of words, other characters fall back to bytes."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, normalizers

    words = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁ab", "é", "日", "ab", "."]
    vocab = {word: i for i, word in enumerate(words)}
    fast = Fast(models.BPE(vocab, [("▁", "a"), ("▁a", "b"), ("a", "b")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    fast.add_special_tokens(["<s>"])
    fast.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizers(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("fallback")
    write_fallback_tokenizer(folder)
    return {"byte-level": Tokenizer(tiny_model_dir), "fallback": Tokenizer(folder)}


class Slow:
    """A tokenizer that does not know its tokens' pieces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.decode = tokenizer.decode


some_tokens = st.lists(st.integers(0, 266) | st.sampled_from([0, 1, 258, 259, 261, 262]), max_size=30)


@pytest.mark.parametrize("kind", ["byte-level", "fallback"])
@settings(deadline=None, max_examples=200)
@given(prompt=some_tokens, tokens=some_tokens, stop=st.sampled_from([(), ("ab",), ("a", " b")]))
def test_pieces_are_shown_exactly_as_decoding_would(
    tokenizers: dict[str, Tokenizer], kind: str, prompt: list[int], tokens: list[int], stop: tuple[str, ...]
) -> None:
    tokenizer = tokenizers[kind]
    assert tokenizer.pieces is not None
    quick, slow = TextStream(tokenizer, prompt, stop), TextStream(Slow(tokenizer), prompt, stop)
    for token in tokens:
        assert quick.push(token) == slow.push(token)
        assert quick.stopped == slow.stopped
    assert quick.finish() == slow.finish()


@settings(deadline=None, max_examples=200)
@given(prompt=st.lists(st.integers(0, 399), max_size=9), tokens=st.lists(st.integers(0, 399), max_size=40))
def test_pieces_of_bytes_make_the_text_of_the_whole(tokenizers: dict[str, Tokenizer], prompt: list[int], tokens: list[int]) -> None:
    tokenizer = tokenizers["byte-level"]
    anchor = tokenizer.encode("x")  # a prompt that ends between characters, so that the whole can be cut there
    stream = TextStream(tokenizer, [*prompt, *anchor])
    text = "".join([*(stream.push(t) for t in tokens), stream.finish()])
    assert tokenizer.decode([*prompt, *anchor]) + text == tokenizer.decode([*prompt, *anchor, *tokens])


@settings(deadline=None)
@given(text=st.text(alphabet="ab é日🐦.", max_size=30))
def test_a_fallback_tokenizer_shows_the_decoded_text(tokenizers: dict[str, Tokenizer], text: str) -> None:
    tokenizer = tokenizers["fallback"]
    prompt, tokens = tokenizer.encode("ab"), tokenizer.encode(text)
    stream = TextStream(tokenizer, prompt)
    shown = "".join([*(stream.push(t) for t in tokens), stream.finish()])
    assert "ab" + shown == tokenizer.decode([*prompt, *tokens])


@given(text=st.text(), words=st.text(alphabet="ab é日🐦.", min_size=1))
def test_the_bytes_of_tokens_are_those_of_the_text(tokenizers: dict[str, Tokenizer], text: str, words: str) -> None:
    def joined(kind: str, text: str) -> bytes:
        return b"".join(map(tokenizers[kind].token_bytes, tokenizers[kind].encode(text)))

    assert joined("byte-level", text) == text.encode()
    assert joined("fallback", words) == b" " + words.encode()  # which begins a text there


def test_tokenizers_whose_tokens_depend_on_company_have_no_pieces(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models

    for decoder in (decoders.WordPiece(), decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "x")]), None):
        fast = Fast(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
        if decoder is not None:
            fast.decoder = decoder
        fast.save(str(tmp_path / "tokenizer.json"))
        assert Tokenizer(tmp_path).pieces is None


def test_chat_is_what_transformers_writes(tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "more"}]
    theirs = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert Tokenizer(tiny_model_dir).chat(messages) == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_a_folder_without_tokenizer_or_template_says_so(tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tiny_model_dir / "tokenizer.json").read_bytes())
    bare = Tokenizer(tmp_path)
    assert not bare.has_chat_template
    with pytest.raises(ValueError, match=r"chat template: .* has none"):
        bare.chat([{"role": "user", "content": "hi"}])


def test_a_template_may_refuse(tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_model_dir / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ raise_exception('only users') }}"}))
    with pytest.raises(ValueError, match="only users"):
        Tokenizer(tmp_path).chat([{"role": "tool", "content": ""}])


@pytest.mark.parametrize("message", [{"role": "user", "content": None}, {"role": 3, "content": "x"}, {"role": "user", "content": [1]}])
def test_messages_that_a_template_trips_over_are_refused(message: dict[str, object], tiny_model_dir: Path) -> None:
    broken = Tokenizer(tiny_model_dir)
    broken._template = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="messages: refused by the chat template") as error:
        broken.chat([message])
    assert "\n" not in str(error.value)


def test_special_tokens_are_shown_where_asked_for(tiny_model_dir: Path) -> None:
    tokenizer = Tokenizer(tiny_model_dir)
    tokens = tokenizer.encode("a<|pad|>b")
    shown = {skip: TextStream(tokenizer.reader(skip), tokenizer.encode("x")) for skip in (True, False)}
    texts = {skip: "".join(map(stream.push, tokens)) + stream.finish() for skip, stream in shown.items()}
    assert texts == {True: "ab", False: "a<|pad|>b"}
