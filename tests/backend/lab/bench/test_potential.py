"""Pruning by potential at the cost of halving: with a perfect judge, a blind one, and one that waits."""

import json

import pytest
import torch

from reprise.backend.cli.main import run
from reprise.backend.core.errors import Unsupported
from reprise.backend.core.types import RewardSpec
from reprise.backend.lab.bench.potential import compare
from reprise.backend.renderers.fake import FakeRenderer
from reprise.backend.rewards.base import BaseReward
from reprise.backend.shapeworld.prompts import sample_prompts

ASIDE = [case.prompt for case in sample_prompts("train", 2)]


class Brightness(BaseReward):
    spec = RewardSpec("brightness", 0.0, 1.0)

    def score(self, images, prompts):
        return images.mean((1, 2, 3)).tolist()


class Looking(BaseReward):
    """P(yes) from the noise or from the picture in a preview; clear from half of the steps on."""

    spec = RewardSpec("looking", 0.0, 1.0)

    def __init__(self, foresees=True):
        self.foresees, self.calls = foresees, 0

    def score(self, images, prompts):
        self.calls += len(images)
        sign = 1 if self.foresees else -1
        return torch.sigmoid(sign * 40 * (images.mean((1, 2, 3)) - 0.5)).tolist()

    def clarity(self, images, prompts):
        return [0.2 + 0.6 * self.foresees] * len(images)


@pytest.fixture
def flat():
    """A renderer of plain greys; a preview is half noise, and its mean is informative."""
    return FakeRenderer(steps=8, draw=lambda prompt, seed: torch.full((8, 8, 3), (seed * 37 % 64) / 64))


def rows_of(result):
    return {row["name"]: row for row in result["rows"]}


def test_pruning_by_a_perfect_potential_costs_what_halving_costs(flat):
    found = compare(
        renderer=flat, reward=Brightness(), judge=Looking(), fitting_prompts=ASIDE, per_task=2, n=4, pool=16
    )
    rows = rows_of(found)
    (likely,) = (name for name in rows if name.startswith("looking below"))
    halved, stopped = rows["halving by brightness"], rows[likely]
    fitted_to, fitted = found["settings"]["rows_while_fitting"]
    assert fitted == pytest.approx(fitted_to, rel=0.15)
    assert rows["halving by looking"]["cost"] == halved["cost"] and "gain" not in halved
    assert halved["overall"][0] <= rows["none is stopped"]["overall"][0]
    assert stopped["overall"][0] > rows["one candidate"]["overall"][0]
    alike = rows["brightness stops as many"]
    assert stopped["gain"]["over"] == "brightness stops as many"
    assert alike["cost"]["denoiser_rows"] == pytest.approx(stopped["cost"]["denoiser_rows"], rel=0.05)
    json.dumps(found, allow_nan=False)


def test_a_judge_that_finds_no_preview_clear_stops_no_candidate(flat):
    found = compare(
        renderer=flat,
        reward=Brightness(),
        judge=Looking(False),
        fitting_prompts=ASIDE[:6],
        per_task=1,
        n=4,
        pool=8,
    )
    rows = rows_of(found)
    (likely,) = (name for name in rows if name.startswith("looking below"))
    assert rows[likely]["cost"] == rows["none is stopped"]["cost"]
    assert rows[likely]["overall"] == rows["none is stopped"]["overall"]
    assert rows["brightness stops as many"]["cost"] == rows[likely]["cost"]
    assert rows["halving by looking"]["gain"]["interval"][0] < 0, "it prefers the dark"


def test_a_judge_without_potential_is_refused(flat, capsys):
    with pytest.raises(Unsupported, match="'brightness' gives no probability"):
        compare(renderer=flat, reward=Brightness(), judge=Brightness(), fitting_prompts=ASIDE)
    for words, judged_previews in (
        (["--previews", "shapeword"], "did you mean 'shapeworld'?"),
        (["--previews", "shapeworld", "--sweep"], "without --sweep"),
        (["--previews", "shapeworld", "--best-of", "3"], "a multiple of --best-of"),
    ):
        assert run(["lab", "bench", "parm", *words]) == 2
        assert judged_previews in capsys.readouterr().err
