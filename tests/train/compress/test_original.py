"""The original on its prompts: references by part, kept in the store, and what it wrote itself among the calibration texts."""

from __future__ import annotations

import numpy as np

from serve.engine.config import EngineConfig
from train.compress import original
from train.compress.original import study
from train.compress.prompts import Probes
from train.compress.store import Store


def test_a_study_is_made_once_and_knows_every_part(tiny_model_dir, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    prompts = {name: rng.integers(4, 400, (6, 5)).tolist() for name in ("held_out", "search", "calibration")}
    parts = {name: Probes(rows, rows) for name, rows in prompts.items()}
    config = EngineConfig(num_threads=1)
    found = study(tiny_model_dir, "digest", parts, config, 8, Store(tmp_path))
    assert found.references.keys() == {"held_out", "search"}
    assert [list(prompt) for prompt in found.references["search"].prompts] == prompts["search"]
    assert all(
        len(trace.kl) == len(completion) for trace, completion in zip(found.noisy, found.references["held_out"].completions, strict=True)
    )
    assert found.calibration[:6] == prompts["calibration"]
    assert [text[:5] for text in found.calibration[6:]] == prompts["calibration"]
    assert all(5 < len(text) <= 13 for text in found.calibration[6:])
    assert [len(losses) for losses in found.text_losses] == [4] * 6
    for name in ("make_reference", "greedy", "losses_of", "measure_noise"):
        monkeypatch.setattr(original, name, None)
    again = study(tiny_model_dir, "digest", parts, config, 8, Store(tmp_path))
    assert again.references["search"].completions == found.references["search"].completions
    assert again.calibration == found.calibration
    assert again.noise == found.noise
    assert all(map(np.array_equal, again.text_losses, found.text_losses))
    for now, before in zip(again.noisy, found.noisy, strict=True):
        assert all(np.array_equal(getattr(now, name), getattr(before, name)) for name in ("likeliest", "losses", "margins", "kl"))
