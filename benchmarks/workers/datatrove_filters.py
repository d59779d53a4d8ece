"""datatrove's filters as a worker, in an environment of their own: for each document what each of its rules says alone.

Reads documents (jsonl: a text a line) from standard input, writes a line for each: rule -> whether it drops the document.
A filter tells only its first reason, so each rule has a filter in which all others are off. With --between-spaces words are what
stands between white space: what then agrees that did not before was apart by what a word is.
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    fineweb_quality_filter,
    gopher_quality_filter,
    gopher_repetition_filter,
)

_QUALITY = {
    "min_doc_words": None, "max_doc_words": None, "min_avg_word_length": None, "max_avg_word_length": None, "max_symbol_word_ratio": None,
    "max_bullet_lines_ratio": None, "max_ellipsis_lines_ratio": None, "max_non_alpha_words_ratio": None, "min_stop_words": None,
}  # fmt: skip
_REPETITION = {
    "dup_line_frac": None, "dup_para_frac": None, "dup_line_char_frac": None, "dup_para_char_frac": None, "top_n_grams": (),
    "dup_n_grams": (),
}  # fmt: skip
_C4 = {
    "remove_citations": False, "filter_no_terminal_punct": False, "min_num_sentences": -1, "min_words_per_line": -1, "max_word_length": -1,
    "filter_lorem_ipsum": False, "filter_javascript": False, "filter_curly_bracket": False, "filter_policy": False,
}  # fmt: skip
_FINEWEB = {"line_punct_thr": -1.0, "short_line_thr": 2.0, "char_duplicates_ratio": 2.0, "new_line_ratio": 1e9}
_SENTENCES = {"filter_lorem_ipsum": False, "filter_curly_bracket": False}


def filters() -> dict[str, tuple[Any, str]]:
    """By our name of the rule (or of a whole filter, in capitals): the filter, and how its reason must begin."""
    quality = {
        "gopher.short_document": {"min_doc_words": 50},
        "gopher.long_document": {"max_doc_words": 100_000},
        "gopher.word_length": {"min_avg_word_length": 3, "max_avg_word_length": 10},
        "gopher.hashes": {"max_symbol_word_ratio": 0.1},
        "gopher.ellipses": {"max_symbol_word_ratio": 0.1},
        "gopher.bullet_lines": {"max_bullet_lines_ratio": 0.9},
        "gopher.ellipsis_lines": {"max_ellipsis_lines_ratio": 0.3},
        "gopher.words_without_letters": {"max_non_alpha_words_ratio": 0.8},
        "gopher.stop_words": {"min_stop_words": 2},
    }
    reasons = {"gopher.hashes": "gopher_too_many_hashes", "gopher.ellipses": "gopher_too_many_ellipsis"}
    repetition: dict[str, dict[str, Any]] = {
        "gopher.duplicate_lines": {"dup_line_frac": 0.3},
        "gopher.duplicate_line_chars": {"dup_line_char_frac": 0.2},
        "gopher.duplicate_paragraphs": {"dup_para_frac": 0.3},
        "gopher.duplicate_paragraph_chars": {"dup_para_char_frac": 0.2},
    }
    repetition |= {f"gopher.top_{n}gram": {"top_n_grams": ((n, most),)} for n, most in ((2, 0.2), (3, 0.18), (4, 0.16))}
    limits = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    repetition |= {f"gopher.duplicate_{n}gram": {"dup_n_grams": ((n, most),)} for n, most in limits}
    fineweb = {
        "fineweb.punctuated_lines": {"line_punct_thr": 0.12},
        "fineweb.short_lines": {"short_line_thr": 0.67},
        "fineweb.duplicate_line_chars": {"char_duplicates_ratio": 0.1},  # the paper's; the package's default is 0.01
        "fineweb.newlines": {"new_line_ratio": 0.3},
    }
    found = {name: (GopherQualityFilter(**_QUALITY | own), reasons.get(name, "")) for name, own in quality.items()}
    found |= {name: (GopherRepetitionFilter(**_REPETITION | own), "") for name, own in repetition.items()}
    found |= {name: (FineWebQualityFilter(**_FINEWEB | own), "") for name, own in fineweb.items()}
    found["c4.lorem_ipsum"] = (C4QualityFilter(**_C4 | {"filter_lorem_ipsum": True}), "")
    found["c4.curly_bracket"] = (C4QualityFilter(**_C4 | {"filter_curly_bracket": True}), "")
    found["c4.few_sentences"] = (C4QualityFilter(**_SENTENCES), "")
    found["c4.few_sentences (web)"] = (C4QualityFilter(**_SENTENCES, filter_no_terminal_punct=False), "")
    found["GOPHER QUALITY"] = (GopherQualityFilter(), "")
    found["GOPHER REPETITION"] = (GopherRepetitionFilter(), "")
    found["C4"] = (C4QualityFilter(), "")
    found["FINEWEB"] = (FineWebQualityFilter(char_duplicates_ratio=0.1), "")
    return found


def remember_words(between_spaces: bool) -> None:
    """Split each text into words once, not once for every filter; at white space instead of by spaCy, if told so."""
    for module in (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter):
        own = module.split_into_words
        module.split_into_words = lru_cache(4)((lambda text, language: text.split()) if between_spaces else own)


def verdict(text: str, judge: Any, reason: str) -> bool:
    """Whether the filter drops the text, for this reason."""
    result = judge.filter(Document(text=text, id="0"))
    kept, why = result if isinstance(result, tuple) else (result, "")
    return not kept and str(why).startswith(reason)


def main() -> None:
    """Judge standard input."""
    remember_words(between_spaces="--between-spaces" in sys.argv[1:])
    judges = filters()
    for line in sys.stdin:
        text = json.loads(line)
        print(json.dumps({name: bool(verdict(text, judge, reason)) for name, (judge, reason) in judges.items()}), flush=True)


if __name__ == "__main__":
    main()
