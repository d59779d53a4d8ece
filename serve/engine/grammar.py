"""Texts held to a grammar: JSON schemas, regular expressions, EBNF and structural tags, as sets of tokens that may come next.

Promise: the text is always a beginning of something the grammar allows; the end token is drawn only where the grammar may end, and
where nothing may follow the request ends ("stop"). A guide is a function of the tokens: it follows them as they become known, is
rebuilt from them elsewhere, and looks along a draft and comes back. Price: xgrammar is imported when the first grammar comes (about a
second); compiling takes milliseconds and is cached by size; a token costs 5 to 100 microseconds.
After: XGrammar (arXiv 2411.15100), by its package.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from serve.engine.request import Sampling
from serve.engine.schema import checked_schema
from serve.engine.shortest import longest_shortest

if TYPE_CHECKING:
    from serve.engine.text import Tokenizer

__all__ = ["Grammars", "Guide"]

_CACHE_BYTES = 64 << 20
_MAX_FORCED = 4096
"""Bytes that may have to follow somewhere in a grammar for that to be looked up: it is found by going on until there is a choice."""
_MAX_WHITESPACE = 32
"""Characters of white space between two elements of JSON: enough for indentation, and an end to a model that likes line breaks."""

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|.)")


class Guide:
    """Where one text stands in its grammar."""

    def __init__(self, matcher: Any, num_tokens: int, ends: Iterable[int], special: frozenset[int], forces: bool = True) -> None:
        """`forces`: whether it is known that what must follow ends somewhere."""
        self._matcher, self._forces = matcher, forces
        self._special = special.difference(ends)  # tokens without text: never allowed, and the matcher would complain of each
        self._mask = np.zeros((1, -(-num_tokens // 32)), dtype=np.int32)  # what may come next, one bit a token
        self._others = _without(ends, num_tokens)
        self.ended = self._look()
        """Whether nothing may follow but the end."""

    def append(self, token: int) -> bool:
        """One more token of the text; whether nothing may follow. ValueError if the grammar does not allow it."""
        if not self._accepts(token):
            raise ValueError(f"emitted: token {token} is not allowed by the request's grammar; resume with the tokens it emitted")
        self.ended = self._look()
        return self.ended

    def forbidden(self, draft: Sequence[int], vocab_size: int) -> NDArray[np.bool_]:
        """What may not come next [k + 1, vocab]: after the known tokens, and after each of k drafted ones.

        Behind a drafted token that is forbidden, or that ends the text, nothing counts and so nothing is forbidden.
        """
        masks = np.full((len(draft) + 1, self._mask.shape[1]), -1, dtype=np.int32)
        masks[0] = self._mask[0]
        accepted = 0
        for row, token in enumerate(draft, 1):
            if not self._accepts(token):
                break
            accepted += 1
            if self._matcher.is_terminated():
                break
            self._matcher.fill_next_token_bitmask(masks, row)
            if not (masks[row] & self._others).any():
                masks[row] = -1
                break
        self._back(accepted)
        allowed = np.unpackbits(masks.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
        return np.logical_not(allowed)

    def fit(self, draft: Sequence[int]) -> tuple[int, str]:
        """How many tokens of a draft the grammar allows, and the text that must follow them (empty if it is open, or too long)."""
        accepted = 0
        for token in draft:
            if not self._accepts(token):
                break
            accepted += 1
        asks = self._forces and not self._matcher.is_terminated()
        forced = self._forced() if asks else ""
        self._back(accepted)
        return accepted, forced

    def _forced(self) -> str:
        """What must follow, unless that is no text: where the tokens end, or all ways part, within a character."""
        try:
            return str(self._matcher.find_jump_forward_string())
        except UnicodeDecodeError:
            return ""

    def _accepts(self, token: int) -> bool:
        return token not in self._special and bool(self._matcher.accept_token(token))

    def _look(self) -> bool:
        self._matcher.fill_next_token_bitmask(self._mask, 0)
        return not (self._mask[0] & self._others).any()

    def _back(self, num_tokens: int) -> None:
        if num_tokens:
            self._matcher.rollback(num_tokens)


class Grammars:
    """Compiled grammars for one tokenizer and vocabulary."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._compiler: Any = None
        self._special: frozenset[int] = frozenset()
        self._lock = threading.Lock()

    def prepare(self, sampling: Sampling) -> None:
        """Let `guide` find its work done. Any thread may call it, beside the engine's; the first time takes a second, a new schema
        milliseconds. ValueError as `guide` has it."""
        if (kind := sampling.guided_by) is not None:
            _xgrammar(kind)
            self._compiled(kind, text := getattr(sampling, kind))
            _forces(kind, text)

    def guide(self, sampling: Sampling, ends: Iterable[int]) -> Guide | None:
        """What guides a request's text from its beginning; None if it asks for no grammar. `ends`: tokens that end the text.

        ValueError, in one line, for a schema, expression or grammar that cannot be read, supported or matched by any text.
        """
        kind = sampling.guided_by
        if kind is None:
            return None
        xgrammar = _xgrammar(kind)
        nowhere = self._vocab_size  # stands for the end where no token does: it can never be drawn
        ends = sorted(end for end in ends if end < nowhere) or [nowhere]
        text = getattr(sampling, kind)
        matcher = xgrammar.GrammarMatcher(self._compiled(kind, text), override_stop_tokens=ends)
        guide = Guide(matcher, nowhere + 1, ends, self._special, _forces(kind, text))
        if guide.ended:
            raise ValueError(f"{kind}: allows no text but the empty one (in this model's tokens); give one that does")
        return guide

    def _compiled(self, kind: str, text: str) -> Any:
        with self._lock:
            if self._compiler is None:
                self._compiler, self._special = _compiler(self._tokenizer, self._vocab_size)
        try:
            if kind == "regex":
                return self._compiler.compile_regex(text)
            return self._compiler.compile_grammar(_ebnf(kind, text))
        except RuntimeError as error:
            reason = re.sub(r"^(\[[\d:]+\] )?\S+:\d+: ", "", str(error).strip()).partition("\n")[0] or "it is not valid"
            raise ValueError(f"{kind}: cannot be used: {reason}") from None


def _xgrammar(kind: str) -> Any:
    try:
        import xgrammar
    except ModuleNotFoundError:
        raise ValueError(f"{kind}: needs the package xgrammar, which is not installed here; pip install 'sterna[grammar]'") from None
    return xgrammar


@lru_cache(maxsize=64)
def _forces(kind: str, text: str) -> bool:
    """Whether what must follow is short everywhere in a grammar that compiles."""
    import xgrammar

    read = xgrammar.Grammar.from_regex if kind == "regex" else xgrammar.Grammar.from_ebnf
    return longest_shortest(read(_ebnf(kind, text))) <= _MAX_FORCED


def _ebnf(kind: str, text: str) -> str:
    """A grammar, schema or structural tag as EBNF (a regular expression as it is)."""
    if kind == "json_schema":
        return _json_grammar(text)
    return _tags(text) if kind == "structural_tag" else text


def _tags(text: str) -> str:
    """Structural tags as EBNF, each schema in them by the same rules as a schema alone."""
    import xgrammar

    try:
        return _written(xgrammar.Grammar.from_structural_tag(_with_grammars(json.loads(text))))
    except (ValidationError, json.JSONDecodeError, TypeError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"structural_tag: cannot be read ({reason}); give one as XGrammar's documentation has them") from None


def _with_grammars(part: Any) -> Any:
    """A part of a structural tag, each schema in it replaced by the schema's grammar."""
    if isinstance(part, list):
        return [_with_grammars(each) for each in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "json_schema":
        return {"type": "grammar", "grammar": _json_grammar(json.dumps(part.get("json_schema"), ensure_ascii=False))}
    return {key: _with_grammars(value) for key, value in part.items()}


def _json_grammar(schema: str) -> str:
    """A schema as EBNF. xgrammar lets raw control characters into strings whose length is bounded; JSON does not."""
    import xgrammar

    checked_schema(schema)
    rules = _written(xgrammar.Grammar.from_json_schema(schema, max_whitespace_cnt=_MAX_WHITESPACE))
    return rules.replace(r"[^\"\\\r\n]", r"[^\0-\x1f\"\\]")


def _written(grammar: Any) -> str:
    r"""A grammar as EBNF that reads as it was: xgrammar writes ó as \xf3, and would read \xf3d, where a d follows, as one character."""
    return _ESCAPE.sub(lambda found: found[0] if found[1] is None else f"\\u00{found[1]}", str(grammar))


def _compiler(tokenizer: Tokenizer, vocab_size: int) -> tuple[Any, frozenset[int]]:
    """xgrammar's compiler, and the tokens that have no text."""
    import xgrammar

    names, byte_level = tokenizer.vocabulary()
    if names is None:
        raise ValueError(
            "grammar: this model's tokenizer neither has bytes as tokens nor falls back to them, so no text can be held to one"
        )
    known = [*names, *[""] * (vocab_size - len(names))][:vocab_size]
    kind = xgrammar.VocabType.BYTE_LEVEL if byte_level else xgrammar.VocabType.BYTE_FALLBACK
    info = xgrammar.TokenizerInfo(known, kind, vocab_size=vocab_size + 1, stop_token_ids=[vocab_size])
    compiler = xgrammar.GrammarCompiler(info, max_threads=os.cpu_count() or 1, cache_limit_bytes=_CACHE_BYTES)
    return compiler, frozenset(info.special_token_ids)


def _without(tokens: Iterable[int], num_tokens: int) -> NDArray[np.int32]:
    """A mask of all tokens but these."""
    bits = np.zeros(-(-num_tokens // 32) * 32, dtype=np.uint8)
    bits[:num_tokens] = 1
    bits[list(tokens)] = 0
    return np.packbits(bits, bitorder="little").view(np.int32)
