"""A law that was written and read again predicts the same, and knows what repetition is worth."""

import json

import numpy as np
import pytest

from tests.train.plan.test_fit import made
from train.plan.extrapolate import predictor
from train.plan.fit import fit
from train.plan.forms import FORMS
from train.plan.law_file import PREDICTOR, predictor_document, read_law
from train.plan.laws import MUENNIGHOFF_REPETITION, worth


@pytest.fixture(scope="module", params=["chinchilla", "kaplan"])
def written(request, tmp_path_factory):
    runs = made(30, 0.004)
    found = predictor(fit(FORMS[request.param], runs), runs, draws=20)
    folder = tmp_path_factory.mktemp("law")
    (folder / PREDICTOR).write_text(json.dumps(predictor_document(found, runs, "included")))
    return folder, found, runs


def test_what_is_read_predicts_what_was_written(written):
    folder, found, runs = written
    law = read_law(folder)
    assert law.predictor.interval(3e8, 6e9) == found.interval(3e8, 6e9)
    assert law.loss(3e8, 6e9, unique=1e12) == found.interval(3e8, 6e9)
    assert law.largest == (runs.parameters.max(), runs.flops.max())
    assert law.counts_embeddings


def test_repeated_tokens_count_for_less(written):
    law = read_law(written[0])
    once, again, fresh = (law.loss(1e8, d, u).value for d, u in ((1e9, 1e9), (8e9, 1e9), (8e9, 8e9)))
    assert fresh < again < once
    if law.predictor.fitted.form.name == "kaplan":
        assert again == pytest.approx(law.predictor.interval(1e8, worth(8e9, 1e9, MUENNIGHOFF_REPETITION.data)).value)


def test_an_older_folder_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"holds no predictor\.json; run `sterna plan fit --output`"):
        read_law(tmp_path)


def test_a_law_that_ignores_sizes_cannot_choose_one(tmp_path):
    document = {"form": "kaplan_tokens", "theta": [30.0, -2.0], "thetas": [[30.0, -2.0]] * 3, "residuals": [0.01], "stretch": 1.0,
                "seed": 0, "embeddings": "unsaid", "largest": [1e9, 1e20]}  # fmt: skip
    (tmp_path / PREDICTOR).write_text(json.dumps(document))
    with pytest.raises(ValueError, match="says nothing of parameters, so that no size can be chosen by it"):
        read_law(tmp_path)


def test_a_law_of_repetition_is_used_as_it_is(tmp_path):
    theta = np.array([6.255414, 7.3049974, 0.6254804, 0.3526596, np.log(15.387756), np.log(5.309743)])
    document = {"form": "data_constrained", "theta": theta.tolist(), "thetas": [theta.tolist()] * 3, "residuals": [0.001, -0.001],
                "stretch": 1.0, "seed": 0, "embeddings": "excluded", "largest": [1e9, 1e20]}  # fmt: skip
    (tmp_path / PREDICTOR).write_text(json.dumps(document))
    law = read_law(tmp_path)
    assert law.loss(6.34e9, 242e9, unique=25e9).value == pytest.approx(2.2256440889984477, abs=1e-9)
    assert not law.counts_embeddings
