"""Settings come in one way: converted where nothing is lost, refused in one line that names the key and the place."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.settings import as_dict, field_help, parse, settings


@settings
class Engine:
    """Inner settings."""

    block_size: int = 16
    """Tokens of a block."""


@settings
class Serve:
    """Outer settings."""

    model: str
    """Model
    folder."""
    share: float = 0.5
    """Share of memory."""
    stop: tuple[str, ...] = ()
    """Where to stop."""
    engine: Engine = Engine()
    """The engine's own."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: is {self.share}; must be above 0 and at most 1")


def test_strings_become_what_the_field_is():
    made = parse(Serve, {"model": "m", "share": "0.25", "stop": ["a", "b"], "engine": {"block_size": "32"}}, where="here")
    assert made == Serve(model="m", share=0.25, stop=("a", "b"), engine=Engine(block_size=32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"model": "m", "shere": 1}, "here: unknown key 'shere'; did you mean 'share'?"),
        ({"model": "m", "qqqqqq": 1}, "here: unknown key 'qqqqqq'; known keys: model, share, stop, engine"),
        ({}, "here: 'model' is required"),
        ({"model": "m", "share": 3}, "here: share: is 3.0; must be above 0 and at most 1"),
        ({"model": "m", "share": "much"}, "here: share: "),
        ({"model": "m", "engine": {"block_size": 1.5}}, "here: engine.block_size: "),
        ({"model": "m", "stop": "a=b"}, 'here: stop: give a list, such as ["a=b"]'),
        ({"model": "m", "engine": 5}, "here: engine"),
        ({"model": 7}, "here: model: "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_place_and_key(data, message):
    with pytest.raises(ValueError) as caught:
        parse(Serve, data, where="here")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"engine": {"block_size": "10MB"}}, "engine.block_size: is '10MB'; give a whole number"),
        ({"engine": {"block_size": 1.5}}, "engine.block_size: is 1.5; give a whole number"),
        ({"share": "half"}, "share: is 'half'; give a number"),
    ],
)
def test_what_is_no_number_is_shown(data, message):
    with pytest.raises(ValueError, match=f"^here: {message}$"):
        parse(Serve, {"model": "m", **data}, where="here")


def test_an_unknown_inner_key_suggests_among_the_inner_keys():
    with pytest.raises(ValueError, match=r"unknown key 'engine.block_siez'; did you mean 'block_size'"):
        parse(Serve, {"model": "m", "engine": {"block_siez": 1}}, where="here")


def test_several_mistakes_are_counted():
    with pytest.raises(ValueError, match=r"\(and 1 more\)"):
        parse(Serve, {"share": "much"}, where="here")


def test_settings_are_frozen_slotted_and_keyword_only():
    made = Serve(model="m")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.model = "other"  # type: ignore[misc]
    assert not hasattr(made, "__dict__")
    with pytest.raises(TypeError):
        Serve("m")  # type: ignore[misc]


@given(st.text(min_size=1), st.floats(0.01, 1), st.lists(st.text()), st.integers())
def test_plain_data_goes_there_and_back(model, share, stop, block_size):
    made = Serve(model=model, share=share, stop=tuple(stop), engine=Engine(block_size=block_size))
    assert parse(Serve, as_dict(made), where="round trip") == made


def test_help_is_the_docstring_under_the_field():
    assert field_help(Serve) == {
        "model": "Model folder.",
        "share": "Share of memory.",
        "stop": "Where to stop.",
        "engine": "The engine's own.",
    }
