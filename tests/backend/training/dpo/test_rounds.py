"""Rounds of DPO of a rewriter of two layers, in the world in which one word counts."""

import json

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.core.config import parse_config
from reprise.backend.core.errors import BadInput
from reprise.backend.preferences.mining import read_runs
from reprise.backend.preferences.pairing import PairMiner
from reprise.backend.preferences.store import Store
from reprise.backend.training.dpo import data as dpo
from reprise.backend.training.dpo import rounds as dpo_rounds
from reprise.backend.training.dpo.config import DpoConfig
from reprise.backend.training.dpo.train import train

from ..rounds_world import killed_at


@pytest.fixture(scope="module")
def values(taught, prompts, tmp_path_factory):
    held_out = tmp_path_factory.mktemp("prompts") / "eval.txt"
    held_out.write_text("a cube\na moon\n")
    return {
        "model": str(taught),
        "margin": 0.05,
        "max_steps": 4,
        "batch_size": 4,
        "device": "cpu",
        "learning_rate": 2e-3,
        "warmup_ratio": 0.0,
        "max_length": 96,
        "save_every": 3,
        "log_every": 1,
        "gradient_checkpointing": False,
        "export_dtype": "float16",
        "rounds": {
            "count": 2,
            "prompts": str(prompts),
            "eval_prompts": str(held_out),
            "rewrites": 6,
            "images": 1,
            "rewards": {"redness": 1.0, "structure": 0.5},
            "held_out": ["blueness"],
            "prompts_at_once": 2,
            "max_new_tokens": 32,
            "renderer": {"name": "words", "batch": 16},
        },
    }


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def quiet(line):
    pass


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    run, said = tmp_path_factory.mktemp("runs") / "whole", []
    train(DpoConfig(**values), run, log=said.append)
    return run, said


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_it_learns_round_by_round(finished):
    run, _ = finished
    looks = rows(run / "evaluations.jsonl")
    assert [row["round"] for row in looks] == [0, 1, 2] and "unchanged/redness" in looks[0]
    drawn = [rows(run / "rounds" / n / "rollouts.jsonl") for n in "12"]
    reds = [[one["scores"]["redness"] for row in of for one in row["rewrites"]] for of in drawn]
    assert sum(reds[1]) / len(reds[1]) > sum(reds[0]) / len(reds[0]) + 0.1, "round 2 writes with round 1"
    pairs = Store(run / "rounds/1/preferences").rewrites()
    assert 2 <= len(pairs) <= 4 and all(pair.chosen.score - pair.rejected.score >= 0.05 for pair in pairs)
    row = next(row for row in drawn[0] if row["prompt"] == pairs[0].prompt)
    scores = [one["score"] for one in row["rewrites"]]
    assert (pairs[0].chosen.score, pairs[0].rejected.score) == (max(scores), min(scores))
    one = row["rewrites"][0]
    parts = one["scores"]
    assert one["score"] == pytest.approx((parts["redness"] + 0.5 * parts["structure"]) / 1.5)
    assert weights(run / "final").popitem()[1].dtype == torch.float16
    assert weights(run / "rounds/2/final").popitem()[1].dtype == torch.float32, "rounds lose no bits"
    assert json.loads((run / "final" / "reprise.json").read_text())["system"] == "Rewrite."
    assert "Rounds" in (run / "report.html").read_text()


def test_its_rounds_can_be_mined(finished, tmp_path):
    run, _ = finished
    found = PairMiner(Store(tmp_path / "store", create=True))
    for group in read_runs(run, None, quiet):
        found.add_group(group)
    assert len(found.rewrites) >= 4 and {pair.reward for pair in found.rewrites} == {"redness"}
    for pair in found.rewrites:
        assert (pair.source, pair.renderer) == ("round", "words") and pair.prompt.startswith("a ")
        assert "red" in pair.chosen.rewrite and "red" not in pair.rejected.rewrite and pair.chosen.reason


@pytest.mark.parametrize(("where", "count"), [("draw", 9), ("judge", 20), ("learn", 4), ("learn", 8)])
def test_killed_and_resumed_equals_never_killed(where, count, values, finished, tmp_path):
    whole, _ = finished
    run = tmp_path / "run"
    killed_at(where, count, lambda: train(DpoConfig(**values), run, log=quiet))
    assert not (run / "final").exists()
    train(DpoConfig(**values), run, resume=True, log=quiet)
    assert same(run / "rounds/1/final", whole / "rounds/1/final") and same(run / "final", whole / "final")
    for name in ("rounds/1/rollouts.jsonl", "rounds/2/rollouts.jsonl"):
        assert rows(run / name) == rows(whole / name)


def test_a_round_of_ties_stops_the_run_with_the_reason(values, tmp_path):
    with pytest.raises(BadInput, match="round 1 has 0 pairs of 4 prompts: 4 were ties"):
        train(DpoConfig(**{**values, "margin": 2.0}), tmp_path / "run", log=quiet)


def test_a_later_round_without_usable_pairs_ends_the_run_with_the_round_before(values, tmp_path, monkeypatch):
    run, said, ids = tmp_path / "run", [], dpo.prompt_ids

    def longer(*given, **options):
        return ids(*given, **options) * (20 if (run / "rounds/1/final").is_dir() else 1)

    monkeypatch.setattr(dpo, "prompt_ids", longer)
    rounds = {**values["rounds"], "eval_prompts": None}
    train(DpoConfig(**{**values, "rounds": rounds, "export_dtype": "same"}), run, log=said.append)
    assert any("stopped: round 2 teaches nothing: of" in line for line in said)
    assert same(run / "final", run / "rounds/1/final")


def test_a_single_rewrite_is_no_tie(values, tmp_path, monkeypatch):
    row = dpo_rounds._row

    def read_one(*given):
        found = row(*given)
        return {**found, "rewrites": found["rewrites"][:1]}

    monkeypatch.setattr(dpo_rounds, "_row", read_one)
    with pytest.raises(BadInput, match="of 4 prompts: 0 were ties, 4 had nothing to be compared with"):
        train(DpoConfig(**values), tmp_path / "run", log=quiet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preferences": "p"}, "give one of the two"),
        ({"rounds": None}, "give one of the two"),
        ({"reward": "redness"}, "leave reward out"),
        ({"rounds": {"prompts": "p", "rewards": {"structure": 1.0, "x": 1.0}}}, "'x'"),
        ({"rounds": {"prompts": "p", "offload": True}}, "device=cpu puts none"),
        ({"dtype": "bfloat16", "lora": {"r": 2}, "device": "auto"}, "bfloat16 loses small changes"),
    ],
)
def test_impossible_settings(changes, message, values):
    with pytest.raises(BadInput, match=message):
        parse_config(DpoConfig, {**values, **changes}, "test")


def test_rewards_without_structure_are_refused(values):
    changes = {"rounds": {**values["rounds"], "rewards": {"redness": 1.0}}}
    with pytest.raises(BadInput, match="rounds: without 'structure' an answer"):
        parse_config(DpoConfig, {**values, **changes}, "test")
