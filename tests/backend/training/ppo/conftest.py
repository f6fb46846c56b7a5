"""A tiny refiner, settings that train it, and a finished run."""

import pytest

from reprise.backend.training.ppo.config import PpoConfig
from reprise.backend.training.ppo.train import train

from ..grpo.test_train import quiet
from ..refined import teach


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    return teach(tmp_path_factory.mktemp("refiner") / "start")


@pytest.fixture(scope="module")
def values(refiner, prompts, tmp_path_factory):
    held_out = tmp_path_factory.mktemp("held-out") / "held-out.txt"
    held_out.write_text("a square\na circle\na triangle\n")
    return {
        "init": str(refiner),
        "prompts": str(prompts),
        "eval_prompts": str(held_out),
        "renderer": {"name": "words"},
        "rewards": {"redness": 1.0},
        "held_out": ["blueness"],
        "patience": 0,
        "prompts_per_step": 4,
        "rewrites": 2,
        "max_steps": 4,
        "epochs": 2,
        "minibatches": 2,
        "batch_size": 4,
        "learning_rate": 2e-3,
        "warmup_ratio": 0.0,
        "scheduler": "linear",
        "max_new_tokens": 4,
        "critic_width": 8,
        "device": "cpu",
        "save_every": 1,
        "eval_every": 2,
    }


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train(PpoConfig(**values), run, log=quiet) == run / "final"
    return run
