"""Accelerators and machines that are not at hand: what they can do and cost, from a data file, and `--machines 8xH100` in its terms.

Promise: every figure has its source and the file its date; nothing here is passed off as measured. Price: one small file is read.
Source: catalogue.toml beside this module.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cluster.settings import parse, settings

__all__ = ["LOCAL", "Accelerator", "Catalogue", "Fleet", "MachineType", "fleet_of", "read_catalogue"]

LOCAL = "local"
"""`--machines local`: this machine, measured."""
MOST = 100_000
"""Accelerators; more are a slip of the keyboard."""


@settings
class Accelerator:
    """What one device can do."""

    peak_flops: float
    """FLOP/s, dense, in bfloat16."""
    memory_bytes: float
    """As the data sheet counts them."""
    bytes_per_second: float
    """Of its memory."""
    link_bytes_per_second: float
    """What it sends to the others of its machine, one way."""
    utilisation: float
    """Share of the peak that training a wide model reaches."""
    source: str
    """Where the figures are from."""

    def __post_init__(self) -> None:
        for name in ("peak_flops", "memory_bytes", "bytes_per_second", "link_bytes_per_second", "utilisation"):
            _positive(name, getattr(self, name))
        if self.utilisation > 1:
            raise ValueError(f"utilisation: is {self.utilisation:g}; must be above 0 and at most 1")


@settings
class MachineType:
    """A machine that can be rented."""

    accelerator: str
    """Its accelerators' name in the catalogue."""
    count: int
    """How many it has."""
    host_memory_bytes: float
    """Beside the accelerators'."""
    network_bytes_per_second: float
    """To other machines, one way, shared by its accelerators."""
    on_demand_per_hour: float
    """Dollars."""
    spot_per_hour: float | None = None
    """Dollars, where somebody has looked."""
    source: str
    """Where the figures are from, and of when."""

    def __post_init__(self) -> None:
        for name in ("count", "host_memory_bytes", "network_bytes_per_second", "on_demand_per_hour"):
            _positive(name, getattr(self, name))


@settings
class Catalogue:
    """Names -> figures."""

    as_of: str
    """Year and month of the newest look at it."""
    accelerators: dict[str, Accelerator]
    """By name."""
    machines: dict[str, MachineType]
    """By instance type."""

    def __post_init__(self) -> None:
        for name, machine in self.machines.items():
            if machine.accelerator not in self.accelerators:
                raise ValueError(f"machines.{name}: accelerator {machine.accelerator!r} is not in the catalogue")


@dataclass(frozen=True, slots=True)
class Fleet:
    """`--machines` understood: so many accelerators, on so many machines."""

    accelerator_name: str
    accelerator: Accelerator
    machine_name: str
    machine: MachineType
    num_accelerators: int

    @property
    def num_machines(self) -> int:
        """Machines, the last one perhaps not used up."""
        return math.ceil(self.num_accelerators / self.machine.count)

    @property
    def share(self) -> float:
        """Machines that are paid for: a part of one counts as that part."""
        return self.num_accelerators / self.machine.count

    def __str__(self) -> str:
        return f"{self.num_accelerators} x {self.accelerator_name} ({self.share:g} x {self.machine_name})"


def read_catalogue(own: str | None = None) -> Catalogue:
    """The catalogue, with the tables of the file `own` laid over it; ValueError where that is no catalogue."""
    table = tomllib.loads(files("train.plan").joinpath("catalogue.toml").read_text(encoding="utf-8"))
    if own is None:
        return parse(Catalogue, table, where="catalogue.toml")
    try:
        mine = tomllib.loads(Path(own).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"catalogue: {own}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"catalogue: {own}: cannot be read as TOML ({error})") from None
    return parse(Catalogue, _laid_over(table, mine), where=own)


def fleet_of(text: str, catalogue: Catalogue) -> Fleet:
    """`8xH100`, `2xp5.48xlarge` or one of either; ValueError, in one line, for what the catalogue does not have.

    >>> str(fleet_of("16xH100", read_catalogue()))
    '16 x H100 (2 x p5.48xlarge)'
    """
    match = re.fullmatch(r"\s*(?:([+-]?\d+)\s*[xX*]\s*)?([A-Za-z][\w.\-]*)\s*", text)
    if match is None:
        raise ValueError(f"machines: {text!r} is not understood; say {LOCAL}, or COUNTxNAME such as 8xH100 or 2xp5.48xlarge")
    number, name = int(match[1] or 1), _known(match[2], catalogue)
    if number < 1:
        raise ValueError(f"machines: {text!r} are {number} machines; give at least 1")
    if name in catalogue.machines:
        machine_name, machine = name, catalogue.machines[name]
        number *= machine.count
    else:
        machine_name, machine = _cheapest(name, catalogue)
    if number > MOST:
        raise ValueError(f"machines: {text!r} are {number:,} accelerators; at most {MOST:,} are planned for")
    return Fleet(machine.accelerator, catalogue.accelerators[machine.accelerator], machine_name, machine, number)


def _known(name: str, catalogue: Catalogue) -> str:
    names = [*catalogue.accelerators, *catalogue.machines]
    found = {known.lower(): known for known in names}.get(name.lower())
    if found is not None:
        return found
    close = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.5) or difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"it has {LOCAL}, {', '.join(names)}; add your own with --catalogue"
    raise ValueError(f"machines: {name!r} is not in the catalogue; {hint}")


def _cheapest(accelerator: str, catalogue: Catalogue) -> tuple[str, MachineType]:
    """The machine with this accelerator that costs least for each."""
    have = [(name, machine) for name, machine in catalogue.machines.items() if machine.accelerator == accelerator]
    if not have:
        raise ValueError(f"machines: the catalogue has no machine with {accelerator}; add one with --catalogue")
    return min(have, key=lambda pair: pair[1].on_demand_per_hour / pair[1].count)


def _laid_over(table: dict[str, Any], mine: dict[str, Any]) -> dict[str, Any]:
    """The tables of both, `mine` first where both have a key."""
    merged = dict(table)
    for key, value in mine.items():
        below = merged.get(key)
        merged[key] = _laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: is {value:g}; must be above 0 and finite")
