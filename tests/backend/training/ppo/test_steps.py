"""What a step of PPO learns: gains, advantages, gradients, the two weights of the KL."""

import json
import math
from pathlib import Path

import pytest
import torch

from reprise.backend.storage.files import read_lines
from reprise.backend.training.ppo import train as ppo
from reprise.backend.training.ppo.config import PpoConfig
from reprise.backend.training.ppo.loop import PpoLoop, adapted
from reprise.backend.training.ppo.policy import ValueHead
from reprise.backend.training.ppo.train import train

from ..grpo.test_train import quiet, rows

ROOT = Path(ppo.__file__).parents[3]


def loop_of(values, run, **changes):
    return PpoLoop(PpoConfig(**{**values, **changes}), run, False, quiet)


@pytest.mark.parametrize("group_baseline", [False, True])
def test_a_step_by_hand(values, tmp_path, group_baseline):
    """Critic 0 at first, ratio 1: advantages are gains fading backwards, whitened over all tokens. With
    the group's baseline, a gain is what it is over the mean gain of the prompt's others."""
    loop = loop_of(values, tmp_path, epochs=1, minibatches=1, group_baseline=group_baseline)
    row = loop.step(1)
    lines = [line for line in read_lines(tmp_path / "rollouts" / "rollouts.jsonl") if "gain" in line]
    own = {
        line["position"]: line
        for line in read_lines(tmp_path / "rollouts" / "rollouts.jsonl")
        if line["variant"] == "original"
    }
    faded, returns = [], 0.0
    for line in lines:
        gain = line["scores"]["redness"] - own[line["position"]]["scores"]["redness"]
        assert line["gain"] == pytest.approx(gain) and line["seeds"] == own[line["position"]]["seeds"]
        if group_baseline:
            group = [other["gain"] for other in lines if other["position"] == line["position"]]
            gain -= (sum(group) - gain) / (len(group) - 1)
        faded += [gain * 0.95**left for left in reversed(range(line["tokens"]))]
        returns += sum(0.5 * (gain * 0.95**left) ** 2 for left in range(line["tokens"]))
    assert row["value_loss"] == pytest.approx(returns / len(faded), abs=1e-6)
    assert row["policy_loss"] == pytest.approx(0, abs=1e-6)  # ratio 1, advantages of mean 0
    mean = sum(faded) / len(faded)
    std = math.sqrt(sum((x - mean) ** 2 for x in faded) / (len(faded) - 1))
    at = 0
    for line in lines:
        part = [(x - mean) / std for x in faded[at : at + line["tokens"]]]
        assert line["advantage"] == pytest.approx(sum(part) / len(part), abs=1e-4)
        at += line["tokens"]


def test_gradients_reach_only_the_encoder_and_the_value_head(values, tmp_path):
    loop = loop_of(values, tmp_path)
    before = {name: one.clone() for name, one in loop.model.state_dict().items()}
    batch = loop.rollouts.collect()
    pasts, _ = loop._look_back(batch.valid)
    loss, _ = loop._loss(list(zip(batch.valid, pasts)), 1, 1)
    loss.backward()
    for name, weight in loop.model.named_parameters():
        reached = weight.grad is not None and bool(weight.grad.abs().max() > 0)
        assert reached == name.startswith("encoder."), name
    assert any(weight.grad is not None for weight in loop.critic.parameters())
    loop._take_optimiser_step(1)
    changed = {name for name, one in loop.model.state_dict().items() if not torch.equal(one, before[name])}
    assert changed and all(name.startswith("encoder.") for name in changed)


def test_no_gradient_flows_back_through_the_value_head():
    critic, states = ValueHead(6, 4), torch.randn(3, 6, requires_grad=True)
    assert torch.equal(critic(states), torch.zeros(3))
    (critic(states) - 1).square().sum().backward()
    assert states.grad is None and critic.outer.bias.grad is not None


def test_batches_and_accumulation_give_one_trajectory(values, tmp_path, monkeypatch):
    """Minibatches of 4 at once, and one row after the other: the same rollouts, and the same gradients within
    the rounding of sums. (Adam's division makes more of it in the weights whose gradient is nearly 0.)"""
    update, seen = PpoLoop._take_optimiser_step, {4: [], 1: []}

    def watched(self, step):
        groups = [weights.values() for weights in self.groups.values()]
        seen[self.config.batch_size].append(
            [torch.cat([one.grad.flatten() for one in group if one.grad is not None]) for group in groups]
        )
        return update(self, step)

    monkeypatch.setattr(PpoLoop, "_take_optimiser_step", watched)
    for size in (4, 1):
        changes = {"batch_size": size, "max_steps": 2, "eval_prompts": None, "anchor": 0.1}
        train(PpoConfig(**{**values, **changes}), tmp_path / str(size), log=quiet)
    assert len(seen[4]) == len(seen[1]) == 2 * 2 * 2
    for one, other in zip(seen[4], seen[1]):
        for a, b in zip(one, other, strict=True):
            assert (a - b).norm() < 1e-4 * a.norm()
    runs = [tmp_path / "4", tmp_path / "1"]
    records = [read_lines(run / "rollouts" / "rollouts.jsonl") for run in runs]
    assert [line["rewrite"] for line in records[0]] == [line["rewrite"] for line in records[1]]
    for one, other in zip(*map(rows, runs)):
        for key in ("policy_loss", "value_loss", "kl", "ratio", "drift"):
            assert one[key] == pytest.approx(other[key], rel=1e-2, abs=1e-5), key


def test_the_anchor_and_the_kl_limit_the_drift(values, tmp_path):
    kept, found = {"free": {"kl": 0.0}, "kl": {"kl": 5.0}, "anchor": {"kl": 0.0, "anchor": 50.0}}, {}
    for name, changes in kept.items():
        changes |= {"eval_prompts": None, "scheduler": "constant", "max_steps": 5}
        train(PpoConfig(**{**values, **changes}), tmp_path / name, log=quiet)
        found[name] = rows(tmp_path / name)[-1]
    assert found["kl"]["kl"] < found["free"]["kl"] and found["anchor"]["drift"] < found["free"]["drift"]


def test_the_weight_of_the_kl_is_adapted_by_hand(values, tmp_path):
    assert adapted(0.1, 0.11, 0.1) == pytest.approx(0.101)
    assert adapted(0.1, 9.0, 0.1) == pytest.approx(0.102) and adapted(0.1, 0.0, 0.1) == pytest.approx(0.098)
    changes = {"kl_target": 1e-9, "eval_prompts": None, "max_steps": 3}
    train(PpoConfig(**{**values, **changes}), tmp_path / "run", log=quiet)
    assert [row["kl_weight"] for row in rows(tmp_path / "run")] == pytest.approx([0.05, 0.049, 0.04998])


def test_running_scales(values, tmp_path):
    """Differences over their standard deviation so far, also where a stopped run goes on."""
    changes = {"scaling": "running", "eval_prompts": None, "max_steps": 2}
    run = tmp_path / "run"
    train(PpoConfig(**{**values, **changes}), run, log=quiet)
    lines = read_lines(run / "rollouts" / "rollouts.jsonl")
    own = {line["position"]: line["scores"]["redness"] for line in lines if line["variant"] == "original"}
    differences = [line["scores"]["redness"] - own[line["position"]] for line in lines if "gain" in line]
    std = torch.tensor(differences[:8]).std().item()
    gains = [line["gain"] for line in lines if "gain" in line]
    assert gains[:8] == pytest.approx([d / std for d in differences[:8]], rel=1e-4)
    state = json.loads((run / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["norms"]["redness"]["count"] == 16
