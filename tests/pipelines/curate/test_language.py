"""Languages told apart, by the text alone."""

from __future__ import annotations

import pytest

from pipelines.curate import language
from pipelines.curate.language import check_languages, identify

SAMPLES = {
    "en": "The arctic tern is a small bird that flies every year from one end of the earth to the other and back.",
    "de": "Die Küstenseeschwalbe ist ein kleiner Vogel, der jedes Jahr von einem Ende der Erde zum anderen fliegt.",
    "fr": "La sterne arctique est un petit oiseau qui vole chaque année d'un bout de la terre à l'autre et retour.",
    "ru": "Полярная крачка — небольшая птица, которая каждый год летит с одного конца земли на другой и обратно.",
    "zh": "北极燕鸥是一种小型鸟类，每年从地球的一端飞到另一端，然后再飞回来。",
    "ja": "キョクアジサシは小さな鳥で、毎年地球の端から端まで飛び、また戻ってきます。",
}


def test_languages_are_told_apart():
    found = identify(list(SAMPLES.values()))
    assert [name for name, _ in found] == list(SAMPLES)
    assert all(score > 0.7 for _, score in found)


def test_an_answer_does_not_depend_on_the_company():
    texts = list(SAMPLES.values())
    assert identify(texts) == [identify([text])[0] for text in texts] == identify(texts[::-1])[::-1]


def test_a_long_text_is_judged_by_three_pieces_of_it():
    long = "".join(f"{SAMPLES['en']} {number} " for number in range(2000))
    assert len(language._sample(long)) < 1600
    assert identify([long])[0][0] == "en"
    assert identify([long.replace("The arctic tern", "")])[0][1] > 0.9


@pytest.mark.parametrize("text", ["", " ", "0123 4567", "}{", "\0"])
def test_what_is_in_no_language_is_nothing_to_be_sure_of(text):
    ((_, score),) = identify([text])
    assert score < 0.9


def test_an_unknown_language_is_one_line():
    check_languages(["en", "de"])
    with pytest.raises(ValueError, match=r"languages: 'english' is not known; give codes such as en; known: .* en ") as caught:
        check_languages(["en", "english"])
    assert "\n" not in str(caught.value)
