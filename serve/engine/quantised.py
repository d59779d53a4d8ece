"""What a folder's `quantization_config` says about each module: how many bits, and how many columns share a scale.

Promise: a module's scheme by the compressed-tensors rules (a target that names the module goes before a pattern, and a pattern before
a class; `ignore` excepts), or one ValueError line for what the engine does not run. Price: none, no tensor is read.
What is run: symmetric integer weights, per row ("channel") or by groups of columns, of 2 to 8 bits as `pack-quantized` (all but 4 bits
are widened to 8 on loading), or of 8 bits as `int-quantized`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Quantisation", "Scheme"]

_FORMATS = {"pack-quantized": range(2, 9), "int-quantized": (8,)}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a matrix is stored: values of `bits` bits, and a scale for every `group` columns of a row (0: one for the row)."""

    bits: int
    group: int = 0

    @property
    def offset(self) -> int:
        """What is added to a value so that it is stored without a sign."""
        return 1 << (self.bits - 1)


@dataclass(frozen=True, slots=True)
class Quantisation:
    """The schemes of a model, by target.

    >>> described = {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}, "targets": ["re:.*mlp.*"]}
    >>> config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"a": described}}
    >>> quantisation = Quantisation.of(config, "x")
    >>> quantisation.scheme("model.layers.0.mlp.up_proj"), quantisation.scheme("lm_head")
    (Scheme(bits=4, group=64), None)
    """

    schemes: tuple[tuple[str, Scheme], ...] = ()
    """(target, scheme): a module's name, "re:" and a pattern, or the name of a class, of which only Linear is known here."""
    ignore: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any] | None, where: str) -> Quantisation:
        """Read `quantization_config` (None: nothing is quantised) of the folder `where`."""
        if config is None:
            return cls()
        method = config.get("quant_method")
        if method != "compressed-tensors":
            raise ValueError(
                f"model: {where} is quantised by {method!r}; the engine reads compressed-tensors folders (see `sterna compress`)"
            )
        try:
            schemes = []
            for group in (config.get("config_groups") or {}).values():
                scheme = _scheme(group, group.get("format") or config.get("format"), where)
                schemes += [(target, scheme) for target in group.get("targets") or ()]
            found = cls(tuple(sorted(schemes, key=lambda pair: _rank(pair[0]))), tuple(config.get("ignore") or ()))
            for target in (*(target for target, _ in found.schemes), *found.ignore):
                _named("", [target])
        except (TypeError, AttributeError, re.error) as error:
            raise ValueError(f"model: {where} has a quantization_config that cannot be read ({error}); quantise the model again") from None
        return found

    def scheme(self, module: str) -> Scheme | None:
        """How the linear module `module` is stored; None for plain floats."""
        if _named(module, self.ignore):
            return None
        return next((scheme for target, scheme in self.schemes if _named(module, [target])), None)


def _rank(target: str) -> tuple[int, str]:
    """Exact names, then patterns, then classes."""
    return (2 if target == "Linear" else 1 if target.startswith("re:") else 0, target)


def _named(module: str, targets: Iterable[str]) -> bool:
    return any(
        re.match(target.removeprefix("re:"), module) is not None if target.startswith("re:") else target in (module, "Linear")
        for target in targets
    )


def _scheme(group: Mapping[str, Any], form: str | None, where: str) -> Scheme:
    weights = group.get("weights") or {}
    bits, strategy, size = weights.get("num_bits"), weights.get("strategy"), weights.get("group_size")
    plain = weights.get("type") == "int" and weights.get("symmetric", True) and not group.get("input_activations")
    sized = strategy == "channel" or (strategy == "group" and isinstance(size, int) and size > 0)
    if not plain or not sized or bits is None or bits not in _FORMATS.get(form or "", ()):
        raise ValueError(
            f"model: {where} has {bits}-bit weights ({weights.get('type')}, per {strategy}, {form}); "
            f"the engine runs int8 and int4 weights (and what fits into them), per channel or by groups, symmetric, "
            f"{' or '.join(_FORMATS)}, with activations as they are"
        )
    return Scheme(bits, int(size or 0) if strategy == "group" else 0)
