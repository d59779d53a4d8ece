"""Which language a text is in, told by a naive Bayes model of byte n-grams that comes with its library.

Promise: no network and no file beside the package; the answer depends on the text alone. Long texts are judged by three
pieces, from the beginning, the middle and the end, so a document costs about the same however long it is. Price: the model
loads in 0.3 s, once a process; then some 0.5 ms a document. Why this one: py3langid is BSD-licensed, pure Python over
numpy, a few MB with its model, knows 139 languages and is kept up; fastText's model must be fetched (126 MB) and its package
compiled, lingua is 100 MB, CLD3 is no longer kept. After: Lui and Baldwin's langid.py (ACL 2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

__all__ = ["check_languages", "identify"]

_WHOLE_CHARS = 1500
_PIECE_CHARS = 500


def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
    """For each text its language (ISO 639-1, or 639-3 where that has none) and how certain that is, 0 to 1.

    >>> [language for language, _ in identify(["The tern flies over the sea.", "Die Seeschwalbe fliegt über das Meer."])]
    ['en', 'de']
    """
    classify = _identifier().classify
    return [(language, round(float(score), 4)) for language, score in (classify(_sample(text)) for text in texts)]


def check_languages(languages: Sequence[str]) -> None:
    """ValueError, one line, for a language that the model does not know."""
    known = sorted(set(_identifier().nb_classes)) if languages else []
    if unknown := [language for language in languages if language not in known]:
        raise ValueError(f"languages: {unknown[0]!r} is not known; give codes such as en; known: {' '.join(known)}")


def _sample(text: str) -> str:
    if len(text) <= _WHOLE_CHARS:
        return text
    middle = (len(text) - _PIECE_CHARS) // 2
    return "\n".join((text[:_PIECE_CHARS], text[middle : middle + _PIECE_CHARS], text[-_PIECE_CHARS:]))


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
