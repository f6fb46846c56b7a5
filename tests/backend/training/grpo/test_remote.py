"""`reprise train grpo` with judges that `reprise serve rewards` runs, and with a vision-language model."""

import json

import pytest
import torch

from reprise.backend.cli.main import run as reprise
from reprise.backend.core.types import RewardSpec
from reprise.backend.storage.files import read_lines
from reprise.backend.training.grpo import loop

from ....reward_server import clean, serving  # noqa: F401  clean: a fixture
from ...rewards.vlm import tiny_vlm
from ..world import FailsAlways, Redness
from .test_train import held_out, same, values, weights  # noqa: F401  fixtures


class Cyan(Redness):
    """How little red there is, in per cent: lower is better."""

    spec = RewardSpec("cyan", 0.0, 100.0, higher_is_better=False)

    def score(self, images, prompts):
        return [100.0 * (1 - red) for red in super().score(images, prompts)]


@pytest.fixture
def train(tmp_path, values):  # noqa: F811  the fixture
    """`train(run, **settings)`: the command, with the world's settings and these on top; its exit code."""

    def call(run, **settings):
        config = tmp_path / f"{run}.yaml"
        config.write_text(json.dumps({**values, "max_steps": 2, "beta": 0.0, **settings}))
        return reprise(["train", "grpo", str(config), "--out", str(tmp_path / run)])

    return call


def test_a_served_judge_trains_as_the_same_judge_here(train, tmp_path, capsys):
    """Its pictures have 8 bits, which is all that there are: the weights are equal, bit for bit."""
    tiny_vlm.llava(tmp_path / "seer")
    with serving(Redness(), Cyan()) as server:
        remote, cyan = (f"remote:{name}@{server.url}" for name in ("redness", "cyan"))
        seer = f"vlm:{tmp_path / 'seer'}"
        rewards = {remote: 1.0, "structure": 0.5}
        assert train("remote", rewards=rewards, held_out=[cyan, seer]) == 0, capsys.readouterr().err
        assert server.queue.answered > 0
    assert train("here", held_out=["blueness"]) == 0, capsys.readouterr().err
    assert same(weights(tmp_path / "remote" / "final"), weights(tmp_path / "here" / "final"))
    far, near = (read_lines(tmp_path / run / "rollouts" / "rollouts.jsonl") for run in ("remote", "here"))
    assert [one["advantage"] for one in far] == [one["advantage"] for one in near]
    drawn = [one["scores"] for one in far if one["pictures"]]
    assert drawn and all(one[cyan] == pytest.approx(100 * (1 - one[remote])) for one in drawn)
    assert all(0 <= one[seer] <= 1 for one in drawn)
    rows = read_lines(tmp_path / "remote" / "evaluations.jsonl")
    assert {f"held-out/{name}" for name in (remote, cyan, seer)} <= rows[0].keys()
    assert "redness" in (tmp_path / "remote" / "report.html").read_text()


def test_a_served_judge_brings_its_direction(train, tmp_path, capsys):
    """Lower is better of one, higher of the other, of the same pictures: the same is learned."""
    with serving(Redness(), Cyan()) as server:
        for name in ("redness", "cyan"):
            rewards = {f"remote:{name}@{server.url}": 1.0, "structure": 0.5}
            settings = {"rewards": rewards, "held_out": [], "eval_prompts": None, "max_steps": 1}
            assert train(name, **settings) == 0, capsys.readouterr().err
    one, other = (
        torch.tensor(
            [line["advantage"] for line in read_lines(tmp_path / run / "rollouts" / "rollouts.jsonl")]
        )
        for run in ("redness", "cyan")
    )
    assert one.abs().max() > 0.5
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_a_served_judge_that_fails_is_named_as_it_was_given(train, capsys):
    with serving(FailsAlways()) as server:
        name = f"remote:fails-always@{server.url}"
        settings = {"held_out": [], "eval_prompts": None, "max_steps": 1}
        assert train("run", rewards={name: 1.0, "structure": 0.5}, **settings) == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"reward '{name}' failed: " in said and "had to be dropped" in said and "is down" in said


def test_a_server_is_asked_before_any_model_is_loaded(train, tmp_path, capsys, monkeypatch):
    def load(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loop, "load_rewriter", load)
    assert train("run", rewards={"remote:redness@http://127.0.0.1:9": 1.0, "structure": 0.5}) == 1
    assert "cannot reach the reward server" in capsys.readouterr().err
    with serving(Redness()) as server:
        assert train("other", rewards={f"remote:rednes@{server.url}": 1.0, "structure": 0.5}) == 2
        assert "did you mean 'redness'" in capsys.readouterr().err
