"""What all splits of a model share: DeepSpeed is left nothing to do of its own. The stepper itself is in test_layouts.py."""

from train.parallel.split import engine_config
from train.recipe import Recipe


def test_deepspeed_neither_shards_nor_clips_nor_deals_otherwise_than_the_recipe():
    recipe = Recipe(
        steps=4, global_batch=12, micro_batch=2, sequence_length=32, learning_rate=1e-3, num_workers=2, zero_stage=0, pipeline=2, clip=1.0
    )
    config = engine_config(recipe)
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (2, 6)
    assert (config["zero_optimization"]["stage"], config["gradient_clipping"]) == (0, 0.0)
    assert "optimizer" not in config
