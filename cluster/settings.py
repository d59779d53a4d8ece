"""Configuration is frozen data, and this is the one door it comes in by.

Promise: a settings class is a frozen, keyword-only, slotted dataclass that refuses unknown keys; whatever the source
(TOML, flags, a JSON body, a dict from `serve run`), `parse` turns it into that class or raises one `ValueError` line
that names the key, what is wrong with it and where it came from. The docstring under each field is its help text.
Price: one pydantic validation per run. After: torchtitan's `config/configs.py` (documented data), pydantic's TypeAdapter.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import json
import textwrap
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

if TYPE_CHECKING:  # pydantic takes 0.1 s to import, which an engine that is handed its settings need not pay
    from pydantic import TypeAdapter, ValidationError

__all__ = ["as_dict", "field_help", "parse", "settings"]

T = TypeVar("T")

_WANTED = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
}
"""pydantic's kinds of mistakes -> what to give instead; its own sentences do not name what was given."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only, slotted dataclass whose parser refuses unknown keys."""
    made = dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(cls)
    made.__pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # type: ignore[attr-defined]
    return made


def _make_adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(_make_adapter)


def parse(cls: type[T], data: Mapping[str, Any], *, where: str) -> T:
    """`data` as a `cls`, or one `ValueError` line that starts with `where` (a file, "command line", …).

    Strings are converted where that loses nothing ("3" for an int), so flags and TOML share one path.
    """
    from pydantic import ValidationError

    try:
        made: T = _adapter(cls).validate_python(dict(data))
        return made
    except ValidationError as error:
        raise ValueError(f"{where}: {_explain(cls, error)}") from None


def as_dict(value: Any) -> dict[str, Any]:
    """A settings object as plain JSON-able data, nested settings included."""
    return dict(_adapter(type(value)).dump_python(value, mode="json"))


def field_help(cls: type[Any]) -> dict[str, str]:
    """The docstring under each field of a settings class, by field name, base classes first."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_field_help(base)
    return found


def _own_field_help(cls: type[Any]) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            found[field.target.id] = " ".join(after.value.value.split())
    return found


def _explain(cls: type[Any], error: ValidationError) -> str:
    """The first mistake in one line; for an unknown key, the nearest known one."""
    unknown = ("unexpected_keyword_argument", "extra_forbidden")
    first = next((e for e in error.errors() if e["type"] in unknown), error.errors()[0])
    key = ".".join(str(part) for part in first["loc"] if part != "function-after")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] in unknown:
        known = [f.name for f in dataclasses.fields(_owner(cls, key.split(".")[:-1]))]
        close = difflib.get_close_matches(key.split(".")[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}{more}"
    missing = ("missing", "missing_keyword_only_argument")
    if first["type"] in missing:
        lacking = [str(e["loc"][-1]) for e in error.errors() if e["type"] in missing]
        others = error.error_count() - len(lacking)
        more = f" (and {others} more)" if others else ""
        return f"{', '.join(map(repr, lacking))} {'is' if len(lacking) == 1 else 'are'} required{more}"
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "tuple_type":
        message = f"give a list, such as [{json.dumps(str(first['input']))}]"
    elif wanted := _WANTED.get(first["type"]):
        message = f"is {first['input']!r}; give {wanted}"
    return f"{key}: {message}{more}" if key else f"{message}{more}"


def _owner(cls: type[Any], path: list[str]) -> type[Any]:
    """The settings class that holds the key at the end of `path`; the outer one where the way there is not by settings alone."""
    for name in path:
        hint = typing.get_type_hints(cls).get(name)
        inner = [t for t in (hint, *typing.get_args(hint)) if isinstance(t, type) and dataclasses.is_dataclass(t)]
        if not inner:
            return cls
        cls = inner[0]
    return cls
