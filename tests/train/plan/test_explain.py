"""What a plan says of itself: numbers that add up, and one line where there is none to explain."""

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import tomli_w

import sterna
from tests.train.plan.test_budget import TARIFF, WEB, fleet, machine
from train.plan.budget import decide, possible_shapes
from train.plan.config import Budget, ExplainConfig, PlanConfig
from train.plan.document import Planned, document
from train.plan.explain import plan_explain
from train.plan.law_file import PREDICTOR, OwnLaw, read_law
from train.plan.outlook import Outlook
from train.plan.price import Market
from train.plan.serving import for_serving


def planned(text: str, here, data=WEB, *, law: OwnLaw | None = None, serve_tokens: float = 0.0) -> Planned:
    config = PlanConfig(tokens="runs/tokens", output="runs/plan", budget=text, serve_tokens=serve_tokens, law="runs/law" if law else None)
    market, outlook = Market(tariff=TARIFF if here.accelerated else None), Outlook(law)
    budget = Budget.parse(text)
    best, candidates = decide(data, budget, here, market=market, outlook=outlook)
    optimal = best
    if serve_tokens:
        best = for_serving(optimal, possible_shapes(data, None, "dense"), serve_tokens, data, here, outlook=outlook, market=market)
    doubled = decide(data, budget.times(2), here, market=market, outlook=outlook)[0]
    return Planned(config=config, data=data, machine=here, market=market, outlook=outlook, budget=budget, best=best, optimal=optimal,
                   candidates=candidates, doubled=doubled)  # fmt: skip


@pytest.fixture(scope="module")
def rented_plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.toml"
    path.write_text(tomli_w.dumps(document(planned("hours=48", fleet(), serve_tokens=1e13), {})))
    return path


def test_every_table_is_explained_with_its_numbers(rented_plan, capsys):
    assert sterna.main(["plan", "explain", str(rented_plan)]) == 0
    said = capsys.readouterr().out
    plan = tomllib.loads(rented_plan.read_text())
    compute, train = plan["compute"], plan["train"]
    for part in (
        f"{compute['parameters']:,} parameters",
        "it includes the embeddings",
        "prior chinchilla (weight 1.00): E + A/N^alpha + B/D^beta = 1.8172 + 482.01/",
        f"{compute['steps']:,} x {train['global_batch']:,} x {train['sequence_length']:,}",
        "from the catalogue, not measured",
        "0.3118 C^-0.1250",
        "bytes a parameter",
        "between unannounced failures of the cluster",
        "spot: ",
        "saved over its life: ",
        "with twice the budget:",
    ):
        assert part in said, part


def test_the_terms_add_up(rented_plan):
    plan = tomllib.loads(rented_plan.read_text())
    terms = {**plan["memory"]}
    there = terms.pop("of")
    assert sum(terms.values()) == pytest.approx(plan["predicted"]["bytes_per_device"]["value"], rel=1e-4)
    assert sum(terms.values()) <= there
    assert plan["compute"]["steps"] * plan["compute"]["tokens_per_step"] == pytest.approx(plan["predicted"]["tokens"]["value"], rel=1e-5)
    assert plan["budget"]["doubled"]["loss"]["value"] < plan["serving"]["without_serving"]["loss"]
    for name, interval in plan["predicted"].items():
        assert interval["low"] <= interval["value"] <= interval["high"], name


def test_json_has_tables_and_words(rented_plan, capsys):
    assert sterna.main(["plan", "explain", str(rented_plan), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"]["train"]["num_workers"] == 8
    assert told["explained"]["memory of a worker"][-1].startswith("sum")


def test_a_plan_for_this_machine_has_no_price_and_repeats_its_text(tmp_path):
    data = replace(WEB, num_sequences=300, sequence_length=512, vocab_size=8192)
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(document(planned("hours=1", machine(), data), {"processor": "x"})))
    explained = plan_explain(ExplainConfig(plan=str(path))).sections
    assert "nobody has said what this machine costs" in explained["price"][0]
    assert "passes over" in explained["loss"][0]
    assert "measured here" in explained["time"][0]


OWN_LAWS = {
    "chinchilla": [*np.log([482.0, 2085.0, 1.8]).tolist(), 0.3478, 0.3658],
    "data_constrained": [6.255414, 7.3049974, 0.6254804, 0.3526596, *np.log([4.0, 2.0]).tolist()],
}


@pytest.mark.parametrize("form", OWN_LAWS)
def test_the_terms_of_ones_own_law_add_up_also_where_text_repeats(tmp_path, form):
    document_ = {"form": form, "theta": OWN_LAWS[form], "thetas": [OWN_LAWS[form]] * 3, "residuals": [0.01, -0.01], "stretch": 1.0,
                 "seed": 0, "embeddings": "excluded", "largest": [1e9, 1e20]}  # fmt: skip
    (tmp_path / PREDICTOR).write_text(json.dumps(document_))
    scarce = replace(WEB, num_sequences=300_000)
    plan = document(planned("hours=200", fleet(), scarce, law=read_law(tmp_path)), {})
    law, terms = plan["law"], plan["law"]["coefficients"]
    assert law["D_worth"] < law["D"] / 2
    total = terms["E"] + terms["A"] / law["N_worth"] ** terms["alpha"] + terms["B"] / law["D_worth"] ** terms.get("beta", terms["alpha"])
    assert total == pytest.approx(plan["predicted"]["loss"]["value"], rel=1e-4)
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(plan))
    loss = plan_explain(ExplainConfig(plan=str(tmp_path / "plan.toml"))).sections["loss"]
    assert f"U (1 + {law['R_data']:.4g} (1 - e^(-(" in loss[0]
    assert law["R_data"] == pytest.approx(15.387756 if form == "chinchilla" else 4.0)


@pytest.mark.parametrize(("key", "value"), [("steps", "many"), ("parameters", 0), ("flops_per_token", [1])])
def test_a_plan_that_was_changed_by_hand_is_one_line(rented_plan, tmp_path, key, value, capsys):
    plan = tomllib.loads(rented_plan.read_text())
    plan["compute"][key] = value
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(plan))
    assert sterna.main(["plan", "explain", str(tmp_path / "plan.toml")]) == 2
    shown = capsys.readouterr().err
    assert "was changed by hand" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no such file"), ("not [ toml", "cannot be read as TOML"), ("[model]\nx = 1", "has no [train] table"),
     ("\n".join(f"[{name}]" for name in ("model", "train", "predicted", "memory", "compute", "checkpoints", "law", "machines", "budget")),
      "lacks 'embedding_parameters'")],
)  # fmt: skip
def test_what_cannot_be_explained_is_one_line(tmp_path, text, said, capsys):
    path = tmp_path / "plan.toml"
    if text is not None:
        path.write_text(text)
    assert sterna.main(["plan", "explain", str(path)]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
