"""Tokens to text and back: the tokenizer of a model folder, and text that is shown as tokens arrive.

Promise: the text shown after k tokens is a function of the first k tokens alone (so a stream resumed elsewhere shows the same);
an incomplete character or a possible beginning of a stop string is held back, and a stop string is never shown.
Price: a look-up per token; two decodes of a few tokens for tokens that are not whole characters, and with tokenizers whose tokens
read differently in different company. Uses: tokenizers and jinja2, not transformers, which takes seconds to import.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Decoder", "TextStream", "Tokenizer"]

_INCOMPLETE = "\ufffd"  # what an unfinished UTF-8 sequence decodes to
_CONTEXT = 6  # tokens decoded before the new ones, for tokenizers whose first token loses its space
_LONGEST_CHARACTER = 8  # tokens; more than this held back is not an unfinished character but broken bytes
_KEPT = 64  # tokens that a window may grow to before the old ones are dropped


class Decoder(Protocol):
    """Anything that turns tokens into text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""


class Pieces(dict[int, "str | None"]):
    """What each token adds to a text, looked up once; None where that depends on its neighbours.

    Right for decoders that treat tokens one by one (byte-level ones, and those that replace and fall back to bytes): there a
    token of whole characters adds the same behind any visible text. None: parts of characters, tokens that add nothing, and `bytes_`,
    whose text is given up when a neighbouring byte is broken.
    """

    def __init__(self, decoder: Decoder, anchor: Sequence[int], bytes_: Iterable[int]) -> None:
        super().__init__(dict.fromkeys(bytes_))
        self._decoder, self._anchor = decoder, list(anchor)
        self._before = len(decoder.decode(self._anchor))

    def __missing__(self, token: int) -> str | None:
        text = self._decoder.decode([*self._anchor, token])[self._before :]
        piece = self[token] = None if not text or _INCOMPLETE in text else text
        return piece


class TextStream:
    """The text of a growing run of tokens, in pieces that are safe to show."""

    def __init__(self, decoder: Decoder, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        self._inner = frozenset("".join(s[:-1] for s in self._stop))  # what may be the last character of a begun stop string
        self._window: list[int]  # tokens decoded together: context, then those that wait
        self._out: str  # what of the window's text is out, or is the prompt's
        self._window, self._out = self._context(list(prompt))
        self._waiting = 0  # tokens at the window's end whose text is not out, or not all of it
        self._pieces: Pieces | None = getattr(decoder, "pieces", None)
        self._ahead = False  # whether `_out` lags behind the window, all of whose text is out
        self._held = ""  # decoded, but maybe the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """What one more token lets show. Sets `stopped` once a stop string is complete."""
        if self._pieces is not None and not self._waiting and self._out:
            piece = self._pieces[token]
            if piece is not None:
                self._window.append(token)
                self._ahead = True
                if len(self._window) > _KEPT:
                    self._window = self._window[-_KEPT // 2 :]
                return self._release(piece) if self._stop else piece
        if self._ahead:
            self._window, self._out = self._context(self._window)
            self._ahead = False
        self._window.append(token)
        self._waiting += 1
        return self._release(self._decode(final=False))

    def finish(self) -> str:
        """What was held back and need not be any more: nothing will follow."""
        text = self._release(self._decode(final=True)) if self._waiting else ""
        held, self._held = self._held, ""
        return text + held

    def _decode(self, final: bool) -> str:
        text = self._decoder.decode(self._window)
        unfinished = text.endswith(_INCOMPLETE) and not final
        if unfinished and self._waiting <= _LONGEST_CHARACTER:
            return ""
        start, end = _common(self._out, text), len(text) - unfinished  # the last character may still become another one
        self._window, self._out = self._context(self._window)
        self._waiting = int(unfinished)
        if unfinished:
            self._out = self._out[:-1]
        return text[start:end]

    def _context(self, tokens: list[int]) -> tuple[list[int], str]:
        """The last tokens and their text, from the start of a character: some decoders give up bytes that begin inside one."""
        for size in range(_CONTEXT, _CONTEXT + 4):
            text = self._decoder.decode(tokens[-size:])
            if not text.startswith(_INCOMPLETE):
                return tokens[-size:], text
        return tokens[-_CONTEXT:], self._decoder.decode(tokens[-_CONTEXT:])

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        if not self._stop:
            return text
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop) if text[-1:] in self._inner else 0
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _common(out: str, text: str) -> int:
    """Where the text goes on after `out`: a half character at its end is another one once it is whole."""
    if not out.endswith(_INCOMPLETE):
        return len(out)
    return next((i for i, (a, b) in enumerate(zip(out, text, strict=False)) if a != b), min(len(out), len(text)))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def _byte_names() -> dict[str, bytes]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's: printable ones for themselves)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): bytes([byte]) for byte in plain} | {chr(256 + n): bytes([byte]) for n, byte in enumerate(others)}


_BYTES = _byte_names()
_LONG = 65_536  # characters from which on it pays that a batch, unlike a single text, lets other threads run


class Tokenizer:
    """The tokenizer of a model folder: tokenizer.json, and the chat template beside it."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Fast

        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"model: {folder} has no tokenizer.json; save the tokenizer beside the weights (save_pretrained)")
        settings_file = folder / "tokenizer_config.json"
        try:
            self._fast = Fast.from_file(str(file))
            self._settings: dict[str, Any] = dict(json.loads(settings_file.read_text())) if settings_file.is_file() else {}
        except Exception as error:  # tokenizers raises bare exceptions
            raise ValueError(
                f"model: {folder}: broken tokenizer.json or tokenizer_config.json ({error}); save the tokenizer again"
            ) from None
        template_file = folder / "chat_template.jinja"
        self._template: str | None = template_file.read_text() if template_file.is_file() else _template(self._settings)
        self._folder = folder

    @cached_property
    def pieces(self) -> Pieces | None:
        """Each token's text where tokens are decoded one by one; None for other decoders."""
        anchor = self.encode_plain("a")
        known = _one_by_one(self._decoding)
        bytes_ = [token for byte in range(256) if (token := self.token_id(f"<0x{byte:02X}>")) is not None]
        return Pieces(self, anchor, bytes_) if known and self.decode(anchor) else None

    @cached_property
    def _decoding(self) -> list[dict[str, Any]]:
        """The steps of decoding, as tokenizer.json has them."""
        state = {} if self._fast.decoder is None else json.loads(self._fast.decoder.__getstate__())
        return list(state.get("decoders", [state]))

    def vocabulary(self) -> tuple[list[str] | None, bool]:
        """Every token's name by its id, "" for special tokens and gaps, and whether names are byte-level.

        No names for tokenizers whose tokens are neither bytes nor words with a fallback to bytes.
        """
        kinds = {step.get("type") for step in self._decoding}
        if not kinds & {"ByteLevel", "ByteFallback", "Metaspace"}:
            return None, False
        vocab = self._fast.get_vocab(with_added_tokens=True)
        names = [""] * (1 + max(vocab.values()))
        for name, token in vocab.items():
            names[token] = name
        for token, added in self._fast.get_added_tokens_decoder().items():
            if added.special:
                names[token] = ""
        return names, "ByteLevel" in kinds

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._fast.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; by default with whatever the tokenizer puts around it (a begin token, often)."""
        if len(text) > _LONG:
            return list(self._fast.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids)
        return list(self._fast.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text that is part of another."""
        return self.encode(text, add_special_tokens=False)

    @cached_property
    def longest_token(self) -> int:
        """Most characters of text that one token can stand for (a byte-level token's name has one for each byte)."""
        return max(map(len, self._fast.get_vocab(with_added_tokens=True)))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self._fast.decode(list(tokens), skip_special_tokens=True))

    def reader(self, skip_special_tokens: bool) -> Decoder:
        """What turns its tokens into text: itself, or one that shows special tokens too."""
        return self if skip_special_tokens else _Everything(self._fast)

    def token_bytes(self, token: int) -> bytes:
        """One token's own bytes, special tokens included; those of a text's tokens, put together, are the text's."""
        name, kinds = self.token_name(token), {step.get("type") for step in self._decoding}
        if name is None:  # ids that a model has beyond its tokenizer's
            return b""
        if token in self._added:
            return name.encode()
        if "ByteLevel" in kinds:
            return b"".join(_BYTES.get(character, character.encode()) for character in name)
        if "ByteFallback" in kinds and (byte := re.fullmatch("<0x([0-9A-F]{2})>", name)):
            return bytes.fromhex(byte[1])
        if kinds & {"ByteFallback", "Metaspace"}:
            return name.replace("▁", " ").encode()
        return str(self._fast.decode([token], skip_special_tokens=False)).encode()

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._fast.get_added_tokens_decoder())

    def token_name(self, token: int) -> str | None:
        """A token as the vocabulary has it; None outside of it."""
        return self._fast.id_to_token(token)  # type: ignore[no-any-return]

    def token_id(self, token: str) -> int | None:
        """The id of a token given by its name, if there is one."""
        found = self._fast.token_to_id(token)
        return None if found is None else int(found)

    @property
    def template(self) -> str | None:
        """The chat template, in Jinja."""
        return self._template

    def is_special(self, mark: str) -> bool:
        """Whether a text holds special tokens."""
        return any(added.special and added.content in mark for added in self._fast.get_added_tokens_decoder().values())

    @property
    def has_chat_template(self) -> bool:
        """Whether the folder says how a conversation is written."""
        return self._template is not None

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """A conversation as the model's prompt text. ValueError without a template, or when the template refuses the messages."""
        from jinja2 import TemplateError

        if self._template is None:
            raise ValueError(f"chat template: {self._folder} has none; use a plain completion, or add chat_template.jinja to the folder")
        names = {key: _name(self._settings.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
        variables = {**{k: v for k, v in names.items() if v is not None}, "tools": None, "documents": None, **extra}
        try:
            return str(self._compiled.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **variables))
        except (TemplateError, TypeError, LookupError, AttributeError, ValueError) as error:  # a template adds what it is given to texts
            raise ValueError(f"messages: refused by the chat template of {self._folder}: {error}") from None

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **extra: Any) -> list[int]:
        """A conversation as token ids; the template writes the special tokens itself."""
        return self.encode(self.chat(messages, add_generation_prompt=add_generation_prompt, **extra), add_special_tokens=False)

    @cached_property
    def _compiled(self) -> Any:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = _to_json
        return environment.from_string(self._template or "")


class _Everything:
    """A decoder that leaves nothing out."""

    def __init__(self, fast: Any) -> None:
        self._fast = fast

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return str(self._fast.decode(list(tokens), skip_special_tokens=False))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    """What templates call tojson: JSON that is not escaped for HTML, as in transformers."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _one_by_one(decoding: Sequence[Mapping[str, Any]]) -> bool:
    """Whether decoding by these steps reads a token of whole characters the same behind any visible text."""
    kinds = [step.get("type") for step in decoding]
    if kinds == ["ByteLevel"]:
        return True
    trailing = any(step.get("type") == "Strip" and step["stop"] for step in decoding)
    return kinds[:2] == ["Replace", "ByteFallback"] and kinds[2:] in (["Fuse"], ["Fuse", "Strip"]) and not trailing


def _template(settings: Mapping[str, Any]) -> str | None:
    """The chat template in tokenizer_config.json: a string, or a list of named ones of which "default" counts."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _name(token: Any) -> str | None:
    """A special token's text: written plainly, or as an object with its content."""
    return token.get("content") if isinstance(token, dict) else token
