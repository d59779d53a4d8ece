from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.train.tuning.tuned import base, changed, logits
from train.tuning.config import TRAITS
from train.tuning.folder import with_adapter
from train.tuning.methods import METHODS

SERVED = ("lora", "rslora", "adalora")


@pytest.mark.parametrize("method", [name for name, traits in TRAITS.items() if traits.alone])
def test_what_is_written_alone_makes_the_model_anew(method: str, tiny_model_dir: Path, tmp_path: Path):
    tuned = changed(method, tiny_model_dir)
    METHODS[method].write(tuned, tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
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


BY_LAYER = ("lora", "dora", "rslora", "adalora")  # name the layers that they change: a model with more of them is theirs, too


@pytest.mark.parametrize(("layers", "method"), [*((1, m) for m in (*BY_LAYER, "ia3", "prefix")), *((3, m) for m in ("ia3", "prefix"))])
def test_an_adapter_of_a_model_of_other_depth_is_one_line(layers: int, method: str, tiny_model_dir: Path, tmp_path: Path):
    """peft by itself takes it: layers that it lacks stay as they are, layers that are too many are passed over."""
    METHODS[method].write(changed(method, tiny_model_dir), tmp_path)
    config = AutoConfig.from_pretrained(tiny_model_dir)
    config.num_hidden_layers = layers
    with pytest.raises(ValueError, match="no adapter of this model") as caught:
        with_adapter(AutoModelForCausalLM.from_config(config), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_adapter_is_one_line(tiny_model_dir: Path, tmp_path: Path):
    for text in ("{", "{}", "[]", '{"peft_type": "NOVEL"}'):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match="no adapter of this model") as caught:
            with_adapter(base(tiny_model_dir), tmp_path)
        assert "\n" not in str(caught.value)


def test_an_adapter_of_another_model_is_one_line(tiny_model_dir: Path, models_dir: Path, tmp_path: Path):
    for method in ("lora", "bitfit", "adapter"):
        METHODS[method].write(changed(method, tiny_model_dir), tmp_path / method)
        with pytest.raises(ValueError, match="no adapter of this model") as caught:
            with_adapter(base(models_dir / "tiny-code"), tmp_path / method)
        assert "\n" not in str(caught.value)
