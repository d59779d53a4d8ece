from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from tests.train.tuning.tuned import base, changed, logits
from train.tuning.config import TRAITS
from train.tuning.folder import is_adapter, with_adapter
from train.tuning.methods import METHODS

SERVED = ("lora", "rslora", "adalora")


@pytest.mark.parametrize("method", [name for name, traits in TRAITS.items() if traits.alone])
def test_what_is_written_alone_makes_the_model_anew(method: str, tiny_model_dir: Path, tmp_path: Path):
    tuned = changed(method, tiny_model_dir)
    METHODS[method].write(tuned, tmp_path)
    assert is_adapter(tmp_path)
    whole = (tiny_model_dir / "model.safetensors").stat().st_size
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < whole
    again = with_adapter(base(tiny_model_dir), tmp_path)
    torch.testing.assert_close(logits(again), logits(tuned), rtol=1e-4, atol=1e-4)


def test_nobody_is_warned_of_names_that_only_libraries_use(tiny_model_dir: Path, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        METHODS["lora"].write(changed("lora", tiny_model_dir), tmp_path)
        with_adapter(base(tiny_model_dir), tmp_path)


def test_an_update_of_the_embedding_is_not_served_by_name(tiny_model_dir: Path, tmp_path: Path):
    from serve.engine.config import EngineConfig
    from serve.engine.engine import Engine

    METHODS["lora"].write(changed("lora", tiny_model_dir), tmp_path)
    with pytest.raises(ValueError, match=r"adapter: .* changes (model\.embed_tokens|lm_head)") as caught:
        Engine.load(tiny_model_dir, EngineConfig(dtype="float32", block_size=4, num_blocks=40, adapters=(f"mine={tmp_path}",)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [name for name, traits in TRAITS.items() if traits.alone])
def test_the_engine_serves_low_rank_adapters_by_name_and_refuses_the_others_in_one_line(method: str, tiny_model_dir: Path, tmp_path: Path):
    from serve.engine.config import EngineConfig
    from serve.engine.engine import Engine
    from serve.engine.request import Request, Sampling

    tuned = changed(method, tiny_model_dir, **({"merge": False} if TRAITS[method].alone else {}))
    METHODS[method].write(tuned, tmp_path)
    settings = EngineConfig(dtype="float32", block_size=4, num_blocks=40, adapters=(f"mine={tmp_path}",))
    if method not in SERVED:
        with pytest.raises(ValueError, match="adapter: ") as caught:
            Engine.load(tiny_model_dir, settings)
        assert "\n" not in str(caught.value)
        assert ("merge" in str(caught.value)) == TRAITS[method].merges
        return
    engine = Engine.load(tiny_model_dir, settings)
    prompt = (4, 9, 17, 30, 60, 9)
    engine.add(Request(id="a", prompt=prompt, adapter="mine", sampling=Sampling(temperature=0.0, max_tokens=6, ignore_eos=True)))
    answer: tuple[int, ...] = ()
    while engine.has_work:
        answer += tuple(token for emission in engine.step() for token in emission.tokens)
    with torch.no_grad():
        greedy = tuned.generate(torch.tensor([prompt]), max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=None)
    assert answer == tuple(greedy[0, len(prompt) :].tolist())


def test_an_adapter_of_another_model_is_one_line(tiny_model_dir: Path, models_dir: Path, tmp_path: Path):
    for method in ("lora", "bitfit", "adapter"):
        METHODS[method].write(changed(method, tiny_model_dir), tmp_path / method)
        with pytest.raises(ValueError, match="no adapter of this model") as caught:
            with_adapter(base(models_dir / "tiny-code"), tmp_path / method)
        assert "\n" not in str(caught.value)
