"""A tiny FLUX, and settings of rounds that train it."""

import pytest

from ...renderers.conftest import build


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "flux"
    build("flux").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def values(model, tmp_path_factory):
    """Two rounds of four prompts, four pictures each, two prompts at once."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "train.txt").write_text("a cat\na dog\n" + '{"prompt": "an owl", "judged_as": "owl"}\na fox\n')
    (folder / "eval.txt").write_text("a cow\na bee\n")
    return {
        "model": str(model),
        "max_steps": 3,
        "batch_size": 2,
        "accumulation": 1,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "device": "cpu",
        "save_every": 2,
        "gradient_checkpointing": False,
        "beta": 200.0,
        "margin": 0.001,
        "max_sequence_length": 20,
        "lora": {"r": 2, "alpha": 3, "targets": "blocks"},
        "rounds": {
            "count": 2,
            "prompts": str(folder / "train.txt"),
            "eval_prompts": str(folder / "eval.txt"),
            "images": 4,
            "eval_images": 2,
            "rewards": {"redness": 1.0},
            "held_out": ["blueness"],
            "renderer": {"steps": 2, "size": 64, "guidance": 3.5, "batch": 8},
        },
    }
