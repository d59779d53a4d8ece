"""The two normal forms: fixed points, and the fast path of ASCII equal to the plain one."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate import normalize
from pipelines.curate.normalize import canonical, clean

TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=200)


@settings(deadline=None)
@given(TEXT)
def test_clean_has_unix_lines_no_controls_and_is_nfc(text):
    cleaned = clean(text)
    assert not re.search("[\r\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", cleaned)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert clean(cleaned) == cleaned


def test_clean_keeps_code_as_it_is():
    code = "def f(x):\n\treturn {\n        'a': x,  # §\n    }"
    assert clean(code + "\r\n\r\n") == code


@settings(deadline=None)
@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=200))
def test_ascii_path_agrees_with_the_plain_definition(text):
    assert canonical(text) == " ".join(normalize._WORD.findall(unicodedata.normalize("NFKC", text).lower()))


@settings(deadline=None)
@given(TEXT)
def test_canonical_is_words_and_single_spaces(text):
    result = canonical(text)
    assert result == " ".join(result.split(" ")).strip()
    assert "  " not in result


@settings(deadline=None)
@given(TEXT)
def test_marks_are_looked_for_first_only_to_be_fast(text):
    text = unicodedata.normalize("NFKC", text).lower()
    if not normalize._MARK.search(text):
        assert normalize._WORD.findall(text) == normalize._WORD_WITHOUT_MARKS.findall(text)


def test_vowel_signs_part_words_that_differ_in_them_only():
    assert canonical("किताब") != canonical("कतब")
    assert canonical("كِتَاب (نص)") == "كِتَاب نص"
    assert canonical("❤\ufe0f x") == "x", "a mark without a letter is no word"


def test_canonical_ignores_case_layout_and_punctuation():
    assert canonical("The quick, brown\n\n fox!") == canonical("the  QUICK brown (fox)")
    assert canonical("ﬁne") == "fine"  # NFKC opens ligatures
