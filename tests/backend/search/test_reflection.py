"""Reflection and the whole chain: critique in, best so far kept, stops when satisfied."""

import pytest
import torch

from reprise.backend.core.errors import BadInput, Interrupted, RewardFailed, UnknownName, Unsupported
from reprise.backend.core.types import RendererCapabilities, RewardSpec
from reprise.backend.renderers.fake import FakeRenderer
from reprise.backend.rewards.base import BaseReward
from reprise.backend.rewards.vlm.judge import VLMCritic
from reprise.backend.rewards.vlm.local import VlmAnswer
from reprise.backend.rewriters.template import KeepPrompt
from reprise.backend.search.chain import Chain
from reprise.backend.search.reflection import critique_warning


def grey(values):
    """A renderer whose brightness is looked up by a piece of the prompt."""

    def draw(prompt, seed):
        value = next(v for piece, v in values.items() if piece in prompt)
        return torch.full((8, 8, 3), value)

    return FakeRenderer(draw=draw)


def chain(renderer, judge, rewriter, **settings):
    defaults = {"best_of": 2, "prune": "none", "reflect": 3, "variants": 1}
    return Chain(rewriter, renderer, judge, **{**defaults, **settings})


def test_stops_at_once_when_satisfied(brightness, echo):
    outcome = chain(grey({"": 0.9}), brightness, echo).run("p")
    assert [(r.round, r.verdict, r.critique) for r in outcome.reflection] == [(0, "yes", "")]
    assert len(outcome.candidates) == 2 and echo.critiques == [None]


def test_the_critique_reaches_the_rewriter_and_the_corrected_picture_wins(brightness, echo):
    outcome = chain(grey({"too dark": 0.8, "": 0.2}), brightness, echo).run("p")
    assert echo.critiques == [None, ["too dark"]]
    assert [(r.verdict, r.candidate) for r in outcome.reflection] == [("no", 0), ("yes", 2)]
    assert outcome.best == 2 and outcome.candidates[2].round == 1
    assert outcome.rewrites[-1].prompt == outcome.reflection[-1].prompt


def test_a_corrector_corrects_another_rewriters_prompts(brightness, echo):
    """The first pictures are drawn from the unchanged prompt, those of a round from the corrected one."""
    outcome = chain(grey({"too dark": 0.8, "": 0.2}), brightness, KeepPrompt(), corrector=echo).run("p")
    assert [c.prompt for c in outcome.candidates[:2]] == ["p", "p"] and echo.critiques == [["too dark"]]
    assert outcome.best == 2 and "too dark" in outcome.candidates[2].prompt
    assert critique_warning(KeepPrompt()) and critique_warning(echo) is None
    same = chain(grey({"too dark": 0.8, "": 0.2}), brightness, KeepPrompt()).run("p")
    assert {c.prompt for c in same.candidates} == {"p"}, "whoever does not read it has no other words"


def test_the_best_so_far_is_never_lost(brightness, echo):
    outcome = chain(grey({"too dark": 0.1, "": 0.4}), brightness, echo).run("p")
    assert outcome.best == 0
    assert [r.verdict for r in outcome.reflection] == ["no"] * 4  # the search, then all three rounds
    assert [r.score for r in outcome.reflection] == pytest.approx([0.4, 0.1, 0.1, 0.1], abs=0.01)


def test_indices_seeds_and_costs_continue_across_rounds(brightness, echo):
    outcome = chain(grey({"": 0.1}), brightness, echo, seed=10).run("p")
    assert [c.index for c in outcome.candidates] == list(range(8))
    assert [c.seed for c in outcome.candidates] == list(range(10, 18))
    assert [c.round for c in outcome.candidates] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert outcome.cost.denoiser_rows == outcome.cost.denoiser_rows_full == 8 * 8
    assert {"rewrite", "render", "judge", "total"} <= set(outcome.cost.seconds)


def test_pruning_without_previews_is_refused(brightness, echo):
    blind = grey({"": 0.9})
    blind.capabilities = RendererCapabilities(previews=False)
    assert chain(blind, brightness, echo).run("p").best == 0
    with pytest.raises(Unsupported, match="'halving' needs previews, which renderer 'fake' does not give"):
        chain(blind, brightness, echo, prune="halving")


def test_corrections_are_drawn_over_the_best_so_far(brightness, echo):
    renderer = grey({"too dark": 0.4, "": 0.2})
    outcome = chain(renderer, brightness, echo, correction="image to image", strength=0.5).run("p")
    over = [jobs[0].init for jobs in renderer.calls]
    assert over[0] is None and all(init.strength == 0.5 for init in over[1:])
    first, second, third = (float(init.image.mean()) for init in over[1:])
    assert (first, second, third) == pytest.approx((0.2, 0.3, 0.35), abs=0.01)  # each half of the way to .4
    assert [c.round for c in outcome.candidates] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert outcome.cost.denoiser_rows == 2 * 8 + 3 * 2 * 4


def test_image_to_image_rounds_are_pruned_over_the_steps_they_draw(brightness, echo):
    """Of 8 steps the last 4 are drawn, and halving looks after their first and second."""
    settings = {"prune": "halving", "best_of": 8, "reflect": 1}
    outcome = chain(
        grey({"": 0.2}), brightness, echo, correction="image to image", strength=0.5, **settings
    ).run("p")
    first, mended = ([c for c in outcome.candidates if c.round == number] for number in (0, 1))
    assert {c.pruned_at for c in first} == {1, 2, 4, None}
    assert {c.pruned_at for c in mended} == {5, 6, None} and sum(c.image is not None for c in mended) == 1


def test_image_to_image_is_refused_for_unsuitable_renderers_and_settings(brightness, echo):
    blind = grey({"": 0.1})
    blind.capabilities = RendererCapabilities(image_to_image=False)
    with pytest.raises(Unsupported, match="'fake' cannot draw over a picture; correct by 'draw again'"):
        chain(blind, brightness, echo, correction="image to image")
    assert chain(blind, brightness, echo, correction="image to image", reflect=0).run("p").best == 0
    with pytest.raises(BadInput, match=r"a strength of 0.12 \(one of 8 steps\) to 1, got 0.1"):
        chain(grey({"": 0.1}), brightness, echo, correction="image to image", strength=0.1)
    with pytest.raises(UnknownName, match="unknown correction 'image'"):
        chain(grey({"": 0.1}), brightness, echo, correction="image")


def test_equal_calls_give_equal_outcomes(brightness, echo):
    settings = {"prune": "halving", "best_of": 8}
    one, two = (chain(FakeRenderer(), brightness, echo, **settings).run("p") for _ in range(2))
    assert [(c.seed, c.prompt, c.score, c.pruned_at, c.preview_scores) for c in one.candidates] == [
        (c.seed, c.prompt, c.score, c.pruned_at, c.preview_scores) for c in two.candidates
    ]
    assert one.best == two.best and one.reflection == two.reflection


def test_a_judge_that_cannot_say_what_is_wrong_is_refused(brightness, echo):
    class Mute(BaseReward):
        spec = RewardSpec("mute", 0, 1)

        def score(self, images, prompts):
            return [0.0] * len(prompts)

    with pytest.raises(BadInput, match="'mute' only scores"):
        chain(FakeRenderer(), Mute(), echo).run("p")


def test_an_interrupt_stops_within_a_step(brightness, echo):
    seen = []

    def progress(stage, done, total):
        seen.append((stage, done))
        if (stage, done) == ("render", 3):
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        chain(FakeRenderer(), brightness, echo).run("p", progress)
    assert seen[-1] == ("render", 3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"best_of": 0}, "best-of must be at least 1"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**63 - 3}, "seed must be"),  # the reflection rounds need seeds too
        ({"reflect": -1}, "reflect must be 0"),
        ({"variants": 0}, "variants must be"),
        ({"prune": "half"}, "unknown pruning 'half'"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(brightness, echo, settings, message):
    renderer = FakeRenderer()
    with pytest.raises(BadInput, match=message):
        chain(renderer, brightness, echo, **settings)
    assert not renderer.calls


class Played:
    """A VLM that accepts only pictures drawn after its critique, and also scores previews."""

    name, model, fingerprint = "played", None, "played 1"

    def __init__(self):
        self.questions = []

    def yes_probabilities(self, pictures, questions):
        self.questions += questions
        return [0.9 if picture.getpixel((0, 0))[0] > 128 else 0.2 for picture in pictures]

    def generate(self, questions, pictures, limit):
        assert all(question.startswith("This picture was drawn") for question in questions)
        return [VlmAnswer("it is too dark ; there is no star", False)] * len(questions)


def test_a_tuned_judges_critique_reaches_the_rewriter(echo):
    """`match` finds the picture wrong, the model says why in its own words, and previews are scored by PARM's
    questions."""
    played = Played()
    judge = VLMCritic(played, "critique")
    outcome = chain(grey({"too dark": 0.8, "": 0.2}), judge, echo, best_of=4, prune="potential").run("p")
    assert echo.critiques == [None, ["it is too dark ; there is no star"]]
    assert [(one.verdict, one.score) for one in outcome.reflection] == [("no", 0.2), ("yes", 0.9)]
    asked = {question.split(".")[0].split("?")[0][:23] for question in played.questions}
    assert asked == {"This picture is a previ", "Does this figure show "[:23] + '"'}


def test_a_critic_that_fails_is_named(brightness, echo, monkeypatch):
    def broken(images, prompts):
        raise RuntimeError("CUDA error: boom")

    monkeypatch.setattr(brightness, "criticize", broken)
    with pytest.raises(RewardFailed, match="brightness.*RuntimeError: CUDA error: boom"):
        chain(grey({"": 0.2}), brightness, echo).run("p")
