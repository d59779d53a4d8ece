"""The selection benchmark: what it claims of domains holds on the sample, and its intervals say what they should."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.selection import domains_text, training_table, training_text
from benchmarks.selection_domains import domains_table, read_domains


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
