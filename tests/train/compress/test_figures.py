"""The report's figures: a cell per matrix, points per plan, and texts that part where the tokens do."""

from __future__ import annotations

import numpy as np

from pipelines.report import _draw
from train.compress import figures
from train.compress.divergence import Reference, Trace
from train.compress.noise import Noise


def rows_of(options):
    kinds = ("self_attn.q_proj", "mlp.up_proj")
    return [
        {"name": f"model.layers.{i}.{kind}", "option": options[i], "bytes_before": 100, "bytes_after": 100 if options[i] == "keep" else 50}
        for i in range(len(options)) for kind in kinds
    ]  # fmt: skip


def test_the_heat_map_has_a_cell_per_matrix():
    rows = [{"name": "model.embed_tokens", "option": "keep", "bytes_before": 10, "bytes_after": 10}, *rows_of(["int8", "keep"])]
    figure = figures.chosen(rows)
    assert figure["cells"] == {
        "–": {"embed_tokens": [1.0, "keep"]},
        "0": {"q_proj": [0.5, "int8"], "up_proj": [0.5, "int8"]},
        "1": {"q_proj": [1.0, "keep"], "up_proj": [1.0, "keep"]},
    }
    assert "svg" in _draw("chosen", figure)


def test_the_frontier_shows_what_was_tried_and_the_budget():
    points = {"tried": [(3e6, 0.01), (2e6, 0.05)], "chosen": [(2.5e6, 0.02)]}
    figure = figures.frontier(points, "flips", {"flips": 0.02})
    assert {c["name"]: (c["x"], c["y"]) for c in figure["series"]} == {
        "tried": ([2.0, 3.0], [5.0, 1.0]), "chosen": ([2.5], [2.0]), "budget": ([2.0, 3.0], [2.0, 2.0]),
    }  # fmt: skip
    assert figure["dots"] == ["tried", "chosen"]
    assert "svg" in _draw("frontier", figure)


def reference_of(completions):
    traces = tuple(Trace(np.array(c), *(np.full(len(c), 0.1) for _ in range(3))) for c in completions)
    nothing = tuple(np.zeros((len(c), 0)) for c in completions)
    return Reference(tuple((65, 66) for _ in completions), tuple(map(tuple, completions)), traces, nothing, nothing)


def traces_of(likeliest):
    return [Trace(np.array(c), *(np.full(len(c), 0.1) for _ in range(3))) for c in likeliest]


def test_texts_part_where_the_tokens_do():
    reference = reference_of([[97, 98, 99], [97, 98, 99]])
    asked = []

    def complete(prompts):
        asked.extend(prompts)
        return [[97, 120, 121]]

    figure = figures.diffs(reference, traces_of([[97, 98, 99], [97, 120, 99]]), complete, lambda tokens: bytes(tokens).decode())
    assert asked == [[65, 66]]
    assert figure["title"].startswith("Where completions part: 1 of 2 do")
    assert figure["body"].splitlines() == [
        "first divergence after 1 tokens, from …'ABa'",
        "  original   '«b»c'",
        "  compressed '«x»y'",
    ]


def test_no_text_parts():
    reference = reference_of([[97]])
    figure = figures.diffs(reference, traces_of([[97]]), lambda _: [], str)
    assert figure["body"] == "None of 1 completions differs in any token."


def test_the_divergence_is_drawn_beside_the_noise():
    reference, traces = reference_of([[97, 98]]), traces_of([[97, 99]])
    noise = Noise(flips=0.1, batch_flips=0.2, decode_flips=0.3, kl_mean=0.0, margin=0.0, arithmetic="")
    certificate = {"flips": 0.5, "flips_upper": 0.9, "flips_beyond_noise": 0.5}
    made = figures.divergence("int8", reference, traces, traces, certificate, noise)
    assert made["divergence"]["groups"]["numeric noise"] == {"bfloat16": 10.0, "batch of 8": 20.0, "decoding": 30.0}
    assert made["survival"]["series"][0]["y"] == [1.0, 1.0, 0.0]
    assert all("svg" in _draw(name, figure) for name, figure in made.items())
