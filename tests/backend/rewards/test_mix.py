"""The mix: scales, weights, directions, refusals; and the checks around every reward."""

import pytest
import torch

from reprise.backend.core.errors import BadInput, RewardFailed
from reprise.backend.core.interfaces import Critic
from reprise.backend.core.scoring import image_scores
from reprise.backend.core.types import RewardSpec, Verdict
from reprise.backend.rewards.base import BaseReward
from reprise.backend.rewards.mix import MixPart, mix_rewards


class Fixed(BaseReward):
    def __init__(self, name, scores, low=0.0, high=1.0, higher=True):
        self.spec, self.scores = RewardSpec(name, low, high, higher), scores

    def score(self, images, prompts):
        return self.scores


class Raising(Fixed):
    def score(self, images, prompts):
        raise ConnectionError("judge is away")


IMAGES, PROMPTS = torch.zeros(2, 4, 4, 3), ["a", "b"]


def test_a_mix_equals_the_hand_calculation():
    mix = mix_rewards(
        [(Fixed("a", [-2.0, 2.0], -2, 2), 1.0), (Fixed("b", [1.0, 0.0], 0, 1, higher=False), 3.0)]
    )
    # a: 0, 1; b, turned round: 0, 1; weights 1/4 and 3/4
    assert mix.score(IMAGES, PROMPTS) == [0.0, 1.0]
    mix = mix_rewards([(Fixed("a", [0.0, 2.0], -2, 2), 1.0), (Fixed("b", [0.25, 0.5]), 3.0)])
    assert mix.score(IMAGES, PROMPTS) == pytest.approx([0.5 / 4 + 0.75 * 0.25, 1 / 4 + 0.75 * 0.5])
    assert mix.parts(IMAGES, PROMPTS) == {"a": [0.0, 2.0], "b": [0.25, 0.5]}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_or_infinite_score_is_an_error_that_names_the_reward(bad):
    with pytest.raises(RewardFailed, match="'broken'.*score 2 of 2"):
        mix_rewards([(Fixed("fine", [0.0, 0.0]), 1.0), (Fixed("broken", [0.1, bad]), 1.0)]).score(
            IMAGES, PROMPTS
        )


def test_a_raising_or_miscounting_reward_is_named():
    with pytest.raises(RewardFailed, match="'remote' failed: ConnectionError: judge is away"):
        image_scores(Raising("remote", []), IMAGES, PROMPTS)
    with pytest.raises(RewardFailed, match="expected 2 scores, got 1"):
        image_scores(Fixed("short", [1.0]), IMAGES, PROMPTS)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_must_be_above_zero(weight):
    with pytest.raises(BadInput, match="weight of reward 'a'"):
        mix_rewards([(Fixed("a", []), weight)])


def test_empty_and_doubled_mixes_are_refused():
    with pytest.raises(BadInput, match="at least one"):
        mix_rewards([])
    with pytest.raises(BadInput, match="named twice"):
        mix_rewards([(Fixed("a", []), 1.0), (Fixed("a", []), 1.0)])


def test_critique_comes_from_the_first_part_that_can_give_one():
    class Critical(Fixed):
        def criticize(self, images, prompts):
            return [Verdict(False, f"{self.spec.name} says no")] * len(prompts)

    mix = mix_rewards([(Fixed("mute", []), 1.0), (Critical("b", []), 1.0), (Critical("c", []), 1.0)])
    assert isinstance(mix, Critic) and mix.criticize(IMAGES, PROMPTS)[0].critique == "b says no"
    assert not isinstance(mix_rewards([(Fixed("mute", []), 1.0)]), Critic)


def test_a_held_out_part_is_scored_but_does_not_count():
    class Critical(Fixed):
        def criticize(self, images, prompts):
            return [Verdict(False, "no")] * len(prompts)

    counted, held = Fixed("counted", [0.25, 0.5]), Critical("held", [1.0, 0.0])
    mix = mix_rewards([(counted, 2.0), MixPart(held, held_out=True)])
    parts = mix.parts(IMAGES, PROMPTS)
    assert parts == {"counted": [0.25, 0.5], "held": [1.0, 0.0]}
    assert mix.combine(parts) == mix.score(IMAGES, PROMPTS) == [0.25, 0.5]
    assert mix.spec.name == "counted" and not isinstance(mix, Critic), "nor does it guide a reflection"
    away = mix_rewards([(counted, 1.0), MixPart(Raising("away", []), held_out=True)])
    assert away.score(IMAGES, PROMPTS) == [0.25, 0.5], "what only selects does not pay for it"
    with pytest.raises(RewardFailed, match="'away'"):
        away.parts(IMAGES, PROMPTS)
    with pytest.raises(BadInput, match="at least one reward that counts"):
        mix_rewards([MixPart(held, held_out=True)])
    with pytest.raises(BadInput, match="named twice"):
        mix_rewards([(counted, 1.0), MixPart(counted, held_out=True)])


def test_a_held_out_score_is_in_a_searchs_candidates():
    from reprise.backend.renderers.fake import FakeRenderer
    from reprise.backend.search.best_of_n import search

    mix = mix_rewards([(Fixed("a", [0.1, 0.9]), 1.0), MixPart(Fixed("b", [1.0, 0.0]), held_out=True)])
    found = search(FakeRenderer(), mix, "p", ["p"], n=2, seed=0)
    assert found.best == 1 and [c.score for c in found.candidates] == [0.1, 0.9]
    assert [c.scores for c in found.candidates] == [{"a": 0.1, "b": 1.0}, {"a": 0.9, "b": 0.0}]
