"""The selection benchmark: what it claims of domains holds on the sample, and its intervals say what they should."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks.selection import _draw, domains_text, priors_text, training_table, training_text
from benchmarks.selection_domains import PACKAGES, domains_table, priors_table, read_domains, read_packages


def test_resampling_raises_every_domain(data_dir):
    """Must show 5, on two splits: at least three times its share with a tenth of the documents."""
    documents = read_domains(data_dir / "docs/pile-domains.jsonl")
    assert len({document.id for document in documents}) == 1000
    rows = domains_table(documents, splits=2)
    assert len(rows) == 12
    assert {row["domain"]: row["raised"] for row in rows if row["raised"] < 3} == {}
    assert rows[0]["domain"] in domains_text(rows)


@pytest.mark.parametrize(
    ("gains", "verdict"), [((-0.5, -0.51, -0.49), "helps"), ((0.5, 0.4, 0.6), "hurts"), ((-0.5, 0.5, 0.1), "no difference seen")]
)
def test_a_difference_counts_where_its_interval_leaves_out_zero(gains, verdict):
    runs = [{"way": "random", "seed": seed, "target": 5.0 + seed, "pool": 4.0} for seed in range(3)]
    runs += [{"way": "selected", "seed": seed, "target": 5.0 + seed + gain, "pool": 4.0} for seed, gain in enumerate(gains)]
    rows = {(row["way"], row["text"]): row for row in training_table(runs)}
    found = rows["selected", "target"]
    assert found["difference"] == pytest.approx(np.mean(gains))
    assert found["verdict"] == verdict
    assert found["high"] - found["difference"] == pytest.approx(4.303 * np.std(gains, ddof=1) / np.sqrt(3), rel=1e-3)
    assert rows["random", "target"]["verdict"] == ""
    assert verdict in training_text(list(rows.values()))


def test_the_smoothing_is_compared_on_packages(tmp_path):
    """Files that use their own package's words alone are told from the others' by any smoothing."""
    for package, _ in PACKAGES[:3]:
        (tmp_path / package / "deep").mkdir(parents=True)
        for n in range(20):
            (tmp_path / package / "deep" / f"{n}.py").write_text(f"import {package}  # {n}\n" + f"{package}.run()\n" * 20)
        (tmp_path / package / "too_small.py").write_text("")
    documents = read_packages(tmp_path)
    assert [sum(document.domain == package for document in documents) for package, _ in PACKAGES[:4]] == [20, 20, 20, 0]
    rows = priors_table({"packages": documents}, splits=2, priors=(500, 32_000))
    assert [row["prior"] for row in rows] == [500, 32_000]
    assert all(2 < row["least"] <= row["mean"] < 4 for row in rows)  # of three kinds: three times is all that there is
    assert f"| packages | {rows[0]['mean']:.1f}x" in priors_text(rows)


def test_both_tables_are_drawn(tmp_path):
    domains = [{"domain": f"d{n}", "before": 0.1, "raised": 5.0 + n, "low": 4.5 + n, "high": 5.5 + n} for n in range(3)]
    runs = [{"way": way, "seed": seed, "target": 5.0 - seed, "pool": 4.0} for way in ("random", "selected") for seed in range(3)]
    _draw(tmp_path / "both.png", {"domains": domains, "training": training_table(runs)})
    _draw(tmp_path / "one.png", {"domains": domains})
    sizes = [plt.imread(tmp_path / name).shape[1] for name in ("both.png", "one.png")]
    assert sizes[0] > sizes[1] > 500
