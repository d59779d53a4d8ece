"""Rented machines: plausible where people have measured, and marked as not measured."""

import pytest

from train.plan.catalogue import fleet_of, read_catalogue
from train.plan.rented import rented
from train.plan.shapes import shape_of_width


def fleet(text, **options):
    return rented(fleet_of(text, read_catalogue()), vocab_size=32_000, sequence_length=2048, **options)


def test_a_wide_model_reaches_about_the_catalogues_utilisation():
    machine = fleet("8xH100")
    wide, narrow = (shape_of_width(w, vocab_size=32_000, max_length=2048).train_flops_per_token(2048) for w in (4096, 256))
    assert 0.30 < machine.throughput.flops_per_second(wide) / 989e12 < 0.40
    assert machine.throughput.flops_per_second(narrow) < 0.2 * 989e12
    assert not machine.measured
    assert machine.accelerated
    assert "8 x H100" in machine.name


def test_machines_are_counted_and_share_their_network():
    machine = fleet("24xA100")
    assert (machine.num_machines, machine.workers_per_machine) == (3, 8)
    assert machine.worker_link_bytes_per_s == pytest.approx(0.8 * 50e9 / 8)
    assert fleet("8xA100").worker_link_bytes_per_s == pytest.approx(0.8 * 300e9)


def test_float32_is_slower():
    flops = shape_of_width(2048, vocab_size=32_000, max_length=2048).train_flops_per_token(2048)
    rates = [fleet("1xA100", precision=name).throughput.flops_per_second(flops) for name in ("float32", "bfloat16")]
    assert rates[0] < rates[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"num_workers": 16}, "num_workers: 16 workers need as many accelerators; .* are 8 too few"),
     ({"memory_bytes": 1e12}, r"memory_bytes: 1,000\.0 GB are 920\.0 GB more than a H100 has")],
)  # fmt: skip
def test_more_than_there_is_is_one_line(options, said):
    with pytest.raises(ValueError, match=said):
        fleet("8xH100", **options)
