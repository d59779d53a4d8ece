"""What a fit looks like."""

import numpy as np

from tests.train.plan.test_fit import made
from train.plan.fit import fit
from train.plan.fit_figures import frontier
from train.plan.forms import FORMS
from train.plan.laws import CHINCHILLA


def test_the_frontier_is_where_both_terms_balance():
    found = fit(FORMS["chinchilla"], made(40, 0.0))
    flops = np.geomspace(1e17, 1e21, 5)
    sizes, loss = frontier(found, flops)
    tokens = flops / 6 / sizes
    np.testing.assert_allclose([CHINCHILLA.optimal_parameters(d) for d in tokens], sizes, rtol=0.2)
    assert (np.diff(loss) < 0).all()
    for shift in (0.5, 2.0):
        assert (loss <= [CHINCHILLA.loss(n * shift, d / shift) * 1.01 for n, d in zip(sizes, tokens, strict=True)]).all()
