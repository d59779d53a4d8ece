"""The catalogue: whole, consistent with what the meter knows, and clear about what it does not have."""

import doctest

import pytest

from train.plan import catalogue as module
from train.plan.catalogue import fleet_of, read_catalogue

KNOWN = read_catalogue()


def test_doctests():
    assert doctest.testmod(module).failed == 0


def test_peaks_are_those_that_utilisation_is_measured_by():
    from train.progress.meter import _PEAK_TFLOPS

    for name, accelerator in KNOWN.accelerators.items():
        assert accelerator.peak_flops == pytest.approx(_PEAK_TFLOPS[name.split("-")[0]] * 1e12), name


@pytest.mark.parametrize(
    ("text", "accelerators", "machines", "kind"),
    [
        ("8xH100", 8, 1, "p5.48xlarge"),
        ("h100", 1, 1, "p5.48xlarge"),
        (" 2 x p5.48xlarge ", 16, 2, "p5.48xlarge"),
        ("12xA100", 12, 2, "p4d.24xlarge"),
        ("4*L4", 4, 4, "g6.2xlarge"),
    ],
)
def test_machines_are_understood(text, accelerators, machines, kind):
    found = fleet_of(text, KNOWN)
    assert (found.num_accelerators, found.num_machines, found.machine_name) == (accelerators, machines, kind)
    assert found.share == pytest.approx(accelerators / found.machine.count)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8xH1OO", "did you mean H100"),
        ("quantum", "is not in the catalogue; it has local, B200"),
        ("0xH100", "give at least 1"),
        ("-2xH100", "give at least 1"),
        ("8xH100+8xA100", "is not understood; say local"),
        ("", "is not understood"),
        ("8", "is not understood"),
        ("1000000xH100", "at most 100,000"),
    ],
)
def test_machines_that_are_none_are_one_line(text, said):
    with pytest.raises(ValueError, match=r"^machines: ") as caught:
        fleet_of(text, KNOWN)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


MINE = """[machines."mine"]
accelerator = "H100"
count = 2
host_memory_bytes = 1e12
network_bytes_per_second = 1e10
on_demand_per_hour = 4.0
source = "our own"
[accelerators.H100]
utilisation = 0.5
"""


def test_a_file_of_ones_own_is_laid_over_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    found = fleet_of("4xH100", read_catalogue(str(path)))
    assert (found.machine_name, found.num_machines) == ("mine", 2), "cheaper for each accelerator than the catalogue's"
    assert found.accelerator.utilisation == 0.5
    assert found.accelerator.memory_bytes == KNOWN.accelerators["H100"].memory_bytes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not toml [", "cannot be read as TOML"),
        ("[accelerators.H100]\nutilisation = 2.0", "must be above 0 and at most 1"),
        ("[accelerators.H100]\npeak_flops = -1.0", "must be above 0 and finite"),
        ("[accelerators.H100]\nspeed = 1.0", "unknown key"),
        ('[machines.x]\naccelerator = "Y"\ncount = 1\nhost_memory_bytes = 1.0\nnetwork_bytes_per_second = 1.0\n'
         'on_demand_per_hour = 1.0\nsource = "z"', "accelerator 'Y' is not in the catalogue"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.toml") as caught:
        read_catalogue(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there():
    with pytest.raises(ValueError, match="no such file"):
        read_catalogue("/no/such.toml")
