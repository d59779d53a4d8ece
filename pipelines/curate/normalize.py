r"""Two normal forms of a text: the one that is kept, and the one that is compared.

`clean` is what goes into the corpus: Unicode NFC, "\n" for every line end, no control characters, no blank edges.
`canonical` is what duplicates are looked for in: the words in lower case, one space between them, nothing else. Word means
a run of letters with their marks, digits and underscores, or one ideograph, so that Chinese and Japanese have 5-grams of five characters.
Price: ASCII texts, nearly all of code, take a path of table lookups (bytes.translate, split); a test holds both paths equal.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["canonical", "clean"]

_CONTROL = {c: None for c in (*range(0x20), *range(0x7F, 0xA0)) if chr(c) not in "\t\n\x85"}
_CONTROL_CLASS = re.compile("[" + "".join(re.escape(chr(c)) for c in _CONTROL) + "]")
_LINE_END = re.compile("\r\n?|[\x85\u2028\u2029]")
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LETTER = rf"[^\W{_IDEOGRAPH}]"
_MARK = re.compile(
    "[" + "".join(chr(c) for c in range(0x300, 0x20000) if unicodedata.category(chr(c))[0] == "M") + "]"
)  # no letters to `re`
_WORD = re.compile(rf"[{_IDEOGRAPH}]|{_LETTER}+(?:{_MARK.pattern}+{_LETTER}*)*")
_WORD_WITHOUT_MARKS = re.compile(rf"[{_IDEOGRAPH}]|{_LETTER}+")  # twice as fast
_ASCII_FOLD = bytes(ord(chr(c).lower()) if chr(c).isalnum() or c == 0x5F else 0x20 for c in range(128)) + bytes(128)


def clean(text: str) -> str:
    r"""The text as it is kept.

    >>> clean("\ufeffdef f():\r\n\treturn 1\x00\r\n\r\n")
    'def f():\n\treturn 1'
    """
    if "\r" in text or not text.isascii():
        text = _LINE_END.sub("\n", text)
    if _CONTROL_CLASS.search(text):
        text = text.translate(_CONTROL)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return text.rstrip().lstrip("\n\ufeff")


def canonical(text: str) -> str:
    """The text as it is compared.

    >>> canonical("The  quick (brown) Fox, 大きい x_1!")
    'the quick brown fox 大 き い x_1'
    >>> canonical("हिन्दी में")
    'हिन्दी में'
    """
    if text.isascii():
        return b" ".join(text.encode().translate(_ASCII_FOLD).split()).decode()
    text = unicodedata.normalize("NFKC", text).lower()
    return " ".join((_WORD if _MARK.search(text) else _WORD_WITHOUT_MARKS).findall(text))
