"""Selection and order end to end on pieces: budgets kept, the same whatever the pieces, figures that add up."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pyarrow as pa
import pytest

from pipelines.curate.config import CurateConfig
from pipelines.curate.document import DOCUMENT
from pipelines.curate.passes import Part
from pipelines.curate.piece import write_piece
from pipelines.curate.select import choose, figures, summary

SEA = ["tern", "wave", "gull", "salt", "wind", "cliff", "nest", "tide", "foam", "sail"]
CODE = ["def", "return", "self", "import", "class", "lambda", "yield", "print", "range", "None"]
NUM = 80


def text_of(seed):
    pick = random.Random(seed)
    return " ".join(pick.choice(SEA if seed % 4 == 0 else CODE) for _ in range(pick.randrange(20, 60)))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, ray_session):
    """The same documents twice: in one piece, and in another order in three."""
    rows = [{"id": f"{i * 7919:032x}", "text": text_of(i), "num_chars": len(text_of(i))} for i in range(NUM)]
    shuffled = random.Random(1).sample(rows, NUM)
    folder = tmp_path_factory.mktemp("pieces")
    corpora = []
    for name, pieces in (("one", [rows]), ("three", [shuffled[:5], shuffled[5:40], shuffled[40:]])):
        for number, piece in enumerate(pieces):
            write_piece(pa.Table.from_pylist(piece, DOCUMENT), f"{folder}/{name}/{number}.parquet")
        parts = [Part(f"{folder}/{name}/{number}.parquet", np.arange(len(piece))) for number, piece in enumerate(pieces)]
        corpora.append((parts, [row["id"] for piece in pieces for row in piece]))
    return corpora


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    (folder / "sea.txt").write_text("\n\n".join(text_of(4000 + 4 * i) for i in range(30)))
    return str(folder)


def chosen_by_id(corpora, tmp_path, **settings):
    """{id: (score, order)} of the chosen, the same for both ways to lay the documents; and one of the choices."""
    config = CurateConfig(output="unused", **settings)
    found = []
    for parts, ids in corpora:
        choice = choose(parts, config, str(tmp_path / "shuffle"))
        found.append({ids[i]: (choice.score[i].item(), choice.order[i].item()) for i in np.flatnonzero(choice.chosen)})
    assert str(found[0].keys() ^ found[1].keys()) == "set()"
    assert repr(sorted(found[0].items())) == repr(sorted(found[1].items()))  # repr: nan is nan
    return found[0], choice, config


def num_of(document_id):
    return int(document_id, 16) // 7919


def test_resampling_raises_the_targets_share(corpora, tmp_path, target):
    found, choice, config = chosen_by_id(corpora, tmp_path, select_target=(target,), select_documents=16)
    assert len(found) == 16
    assert all(num_of(i) % 4 == 0 for i in found)  # a quarter of all
    told = summary(choice, config)
    assert (told["chosen_by"], told["candidates"], told["chosen"], told["chosen_size"]) == ("importance", NUM, 16, 16)
    assert told["mean_score_chosen"] > 0 > told["mean_score"]
    drawn = figures(choice, config)["selection"]
    assert [sum(series["y"]) for series in drawn["series"]] == pytest.approx([1, 1])
    assert json.dumps([told, drawn])


@pytest.mark.parametrize(
    ("budget", "least", "most"),
    [({"select_share": 0.25}, 20, 20), ({"select_chars": 1000}, 2, 12), ({"select_documents": 500}, NUM, NUM)],
)
def test_budgets_are_kept_also_by_chance(corpora, tmp_path, budget, least, most):
    found, choice, _ = chosen_by_id(corpora, tmp_path, seed=5, **budget)
    assert least <= len(found) <= most
    if "select_chars" in budget:
        assert 1000 - 60 * 7 < choice.num_chars[choice.chosen].sum() <= 1000
    other, _, _ = chosen_by_id(corpora, tmp_path, seed=6, **budget)
    assert (found.keys() == other.keys()) == (least == NUM)


def test_a_budget_in_tokens(corpora, tmp_path, tiny_model_dir):
    _, choice, _ = chosen_by_id(corpora, tmp_path, select_tokens=3000, select_tokenizer=str(tiny_model_dir))
    assert 2500 < choice.size[choice.chosen].sum() <= 3000
    assert (choice.size > choice.num_chars / 8).all()


@pytest.mark.parametrize("prefer", ["high", "middle", "low"])
def test_a_model_prefers_what_it_is_told_to(corpora, tmp_path, tiny_model_dir, prefer):
    found, choice, _ = chosen_by_id(
        corpora, tmp_path, select_model=str(tiny_model_dir), select_prefer=prefer, select_documents=10, model_tokens=16
    )
    ranks = np.argsort(np.argsort(choice.score))[choice.chosen]
    assert len(found) == 10
    expected = {"high": range(NUM - 10, NUM), "low": range(10), "middle": range(NUM // 2 - 10, NUM // 2 + 10)}[prefer]
    assert set(ranks.tolist()) <= set(expected)


def test_a_pool_is_thinned_to_what_covers_it(corpora, tmp_path, target):
    pool, _, _ = chosen_by_id(corpora, tmp_path, select_target=(target,), select_documents=16)
    found, _, _ = chosen_by_id(corpora, tmp_path, select_target=(target,), select_documents=8, select_pool=2.0)
    assert len(found) == 8
    assert found.keys() < pool.keys()


def test_a_pool_of_which_nothing_fits_gives_one_document(corpora, tmp_path):
    found, _, _ = chosen_by_id(corpora, tmp_path, select_chars=10, select_pool=300.0)
    assert len(found) == 1


@pytest.mark.parametrize("order", ["length", "rarity", "loss"])
def test_an_order_covers_the_chosen_easiest_first(corpora, tmp_path, tiny_model_dir, order):
    settings = {"order": order, "order_pacing": "sorted", "order_model": str(tiny_model_dir), "model_tokens": 16, "select_share": 0.5}
    found, choice, config = chosen_by_id(corpora, tmp_path, **settings)
    assert sorted(order for _, order in found.values()) == list(range(40))
    along = np.argsort(np.where(choice.chosen, choice.order, NUM))[:40]
    assert (np.diff(choice.difficulty[along]) >= 0).all()
    assert np.isnan(choice.difficulty[~choice.chosen]).all()
    assert (choice.order[~choice.chosen] == -1).all()
    curve = figures(choice, config)["order"]["series"][0]
    assert np.corrcoef(curve["x"], curve["y"])[0, 1] > 0.9  # equal difficulties may stand in any order
    reversed_, _, _ = chosen_by_id(corpora, tmp_path, **settings, order_reversed=True)
    lengths = [len(text_of(num_of(i))) for i in sorted(reversed_, key=lambda i: reversed_[i][1])]
    assert order != "length" or lengths == sorted(lengths, reverse=True)


def test_pacing_admits_the_easy_first_and_mixes(corpora, tmp_path):
    found, choice, config = chosen_by_id(corpora, tmp_path, order="length", order_start=0.2, order_full=1.0, order_pacing="linear")
    lengths = [len(text_of(num_of(i))) for i in sorted(found, key=lambda i: found[i][1])]
    assert lengths != sorted(lengths)
    assert max(lengths[:5]) <= sorted(lengths)[30]
    assert [series["name"] for series in figures(choice, config)["order"]["series"]] == ["mean difficulty", "admitted"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select_target": ("x",)}, "select_target: needs a budget"),
        ({"select_model": "x"}, "select_model: needs a budget"),
        ({"select_target": ("x",), "select_model": "y", "select_share": 0.1}, "select_model: select_target is given too"),
        ({"select_share": 0.1, "select_chars": 9}, "give one budget"),
        ({"select_share": 1.5}, "select_share: is 1.5"),
        ({"select_share": math.nan}, "select_share: is nan"),
        ({"select_documents": 0}, "select_documents: is 0"),
        ({"select_tokens": 5}, "select_tokens: needs select_tokenizer"),
        ({"select_pool": 0.5}, "select_pool: is 0.5"),
        ({"select_pool": math.nan, "select_share": 0.1}, "select_pool: is nan"),
        ({"select_pool": math.inf, "select_share": 0.1}, "select_pool: is inf"),
        ({"select_pool": 2.0}, "select_pool: needs a budget"),
        ({"order": "loss"}, "order_model: is needed"),
        ({"order_reversed": True}, "order_reversed: needs an order"),
        ({"order_model": "x"}, "order_model: needs an order"),
        ({"order_start": 0.0}, "order_start: is 0.0"),
        ({"decontaminate_cut": True}, "decontaminate_cut: needs decontaminate"),
        ({"decontaminate_common": 3}, "decontaminate_common: needs decontaminate"),
        ({"decontaminate_fields": ("q",)}, "decontaminate_fields: needs decontaminate"),
        ({"decontaminate_ngram": 1}, "decontaminate_ngram: is 1"),
        ({"decontaminate_ngram": 1001}, "decontaminate_ngram: is 1001"),
        ({"decontaminate_shortest": 14}, "decontaminate_shortest: is 14"),
        ({"decontaminate_common": -1, "decontaminate": ("x",)}, "decontaminate_common: is -1"),
        ({"model_tokens": 1}, "model_tokens: is 1"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        CurateConfig(output="corpus", **settings)
    assert "\n" not in str(caught.value)
