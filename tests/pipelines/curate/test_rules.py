"""Thresholds given anew by name, and names that no rule has."""

from __future__ import annotations

import math

import pytest

from cluster.settings import as_dict, parse
from pipelines.curate.config import CurateConfig
from pipelines.curate.rules import PROFILES, Rule, check_overrides, overridden

EVERY = {rule.name: rule for rules in PROFILES.values() for rule in rules}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_names_each_rule_once_and_says_nothing_else_unasked(profile):
    rules = PROFILES[profile]
    assert len({rule.name for rule in rules}) == len(rules)
    assert overridden(rules, {}) == rules


@pytest.mark.parametrize("name", EVERY)
def test_every_rule_can_be_set_and_switched_off_alone(name):
    rule = EVERY[name]
    both = rule.at_least > float("-inf") and rule.at_most < float("inf")
    for profile in (rules for rules in PROFILES.values() if rule in rules):
        changed = overridden(profile, {name: [1, 2] if both else 7})
        assert [old.name for old, new in zip(profile, changed, strict=True) if old != new] == [name]
        new = next(rule for rule in changed if rule.name == name)
        assert (new.at_least, new.at_most) == (
            (1, 2) if both else (7, rule.at_most) if rule.at_most == float("inf") else (rule.at_least, 7)
        )
        assert [old for old in profile if old.name != name] == list(overridden(profile, {name: False}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gopher.short_documnt": 20}, "no rule 'gopher.short_documnt'; did you mean 'gopher.short_document'"),
        ({"gopher": {"short_documnt": 20}}, "no rule 'gopher.short_documnt'"),
        ({"elsewhere": 1}, "no rule 'elsewhere'"),
        ({"gopher.short_document": "many"}, "give a number, or false"),
        ({"gopher.short_document": True}, "give a number, or false"),
        ({"gopher.short_document": [1, 2]}, "give a number, or false"),
        ({"gopher.word_length": 3}, "two numbers"),
        ({"gopher.word_length": [12, 2]}, "nothing would pass"),
        ({"gopher.hashes": float("nan")}, "give a number"),
    ],
)
def test_a_mistake_is_one_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_overrides(given)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("rules: ")


@pytest.mark.parametrize("profile", ["none", "code", "c4"])
def test_a_rule_that_the_profile_never_asks_is_refused(profile):
    with pytest.raises(ValueError, match=rf"^rules: gopher.short_document is no rule of profile {profile}; give another --profile"):
        CurateConfig(output="x", profile=profile, rules={"gopher.short_document": 20})
    CurateConfig(output="x", profile=profile, rules={"gopher.short_document": False})


def test_by_itself_every_rule_is_asked():
    for rule in {rule.name: rule for rules in PROFILES.values() for rule in rules}.values():
        both = [rule.at_least, rule.at_most]
        bound = [b for b in both if math.isfinite(b)]
        check_overrides({rule.name: bound if len(bound) == 2 else bound[0]})


def test_the_configuration_takes_tables_and_dotted_names_and_refuses_what_is_none():
    nested = parse(CurateConfig, {"output": "x", "rules": {"gopher": {"short_document": 20}}}, where="here")
    dotted = parse(CurateConfig, {"output": "x", "rules": {"gopher.short_document": 20}}, where="here")
    assert overridden(PROFILES["web"], nested.rules) == overridden(PROFILES["web"], dotted.rules)
    assert as_dict(nested)["rules"] == {"gopher": {"short_document": 20}}
    with pytest.raises(ValueError, match=r"^here: .*no rule 'gopher.x'"):
        parse(CurateConfig, {"output": "x", "rules": {"gopher": {"x": 20}}}, where="here")


def test_a_rule_that_keeps_nothing_is_none():
    with pytest.raises(ValueError, match="nothing would pass"):
        Rule("a", "m", at_least=2, at_most=1)
