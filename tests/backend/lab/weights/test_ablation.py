"""The ablation's chain at toy size: who starts from what, once only."""

import pytest

from reprise.backend.core.config import load_config
from reprise.backend.lab.weights import ablation
from reprise.backend.training.grpo.config import GrpoConfig
from reprise.backend.training.sft.config import SftConfig


@pytest.fixture
def small(monkeypatch):
    toy = {
        "max_steps": 1,
        "prompts_per_step": 1,
        "rewrites": 2,
        "batch_size": 2,
        "eval_prompts": None,
        "max_new_tokens": 8,
        "resample": 0,
    }
    for key, value in toy.items():
        monkeypatch.setitem(ablation.GRPO, key, value)
    triples = ablation.triples
    monkeypatch.setattr(ablation, "triples", lambda count, seed: triples(32, seed))


def test_reasons_can_be_left_out(small, tmp_path):
    lines: list[str] = []
    made = ablation.build(tmp_path, "sft-rl-plain-1", lines.append)
    assert made == tmp_path / "sft-rl-plain-1" / "final" and (made / "model.safetensors").is_file()
    tuned = load_config(SftConfig, tmp_path / "sft-plain" / "config.yaml")
    assert tuned.model == str(ablation.EMBEDDED_REWRITER) and not tuned.reasoning
    rl = load_config(GrpoConfig, tmp_path / "sft-rl-plain-1" / "config.yaml")
    assert rl.model == str(tmp_path / "sft-plain" / "final") and not rl.reasoning and rl.seed == 1
    assert rl.renderer.steps == 4
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/final/*")}
    assert ablation.build(tmp_path, "sft-rl-plain-1", lines.append) == made
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/final/*")} == before


def test_every_method_has_three_seeds_and_the_embedded_rewriter_is_reused(tmp_path):
    assert ablation.build(tmp_path, "sft") == ablation.EMBEDDED_REWRITER and not list(tmp_path.iterdir())
    starts = list(ablation.STARTS.values())
    assert {start: starts.count(start) for start in starts} == {
        "base": 3,
        "base-plain": 3,
        "sft": 3,
        "sft-plain": 3,
    }
