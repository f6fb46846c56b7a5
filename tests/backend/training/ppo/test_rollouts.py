"""What PPO rolls out: both sides from the same seeds, judged by the user's words, as a node would write."""

import json

import pytest
import torch

from reprise.backend.core.errors import RewardFailed
from reprise.backend.rewards.text import Length
from reprise.backend.rewriters.decoding import Completion
from reprise.backend.rewriters.prip.rewriter import PripRewriter
from reprise.backend.storage.cache import Cache
from reprise.backend.training.common.offload import StageTimer
from reprise.backend.training.ppo.config import PpoConfig
from reprise.backend.training.ppo.policy import WarmPivots, pivots_of, tokens_of
from reprise.backend.training.ppo.rollouts import PpoRollouts, lines_of
from reprise.backend.training.rollouts.prompts import PromptStream, read_prompts
from reprise.backend.training.rollouts.scoring import PictureScorer

from ...rewriters.prip.tiny_prip import tiny
from ..world import Blueness, FailsAlways, FailsOnGreen, Redness, WordRenderer


@pytest.fixture(scope="module")
def refiner():
    torch.set_num_threads(1)
    return PripRewriter(tiny(), max_new_tokens=5, temperature=1.0)


def rollouts(refiner, prompts, folder, rewards=(Redness,), held_out=(), weights=None, **changes):
    config = PpoConfig(
        **{
            "init": "none",
            "prompts": str(prompts),
            "rewards": weights or {r.spec.name: 1.0 for r in rewards},
            "held_out": [r.spec.name for r in held_out],
            "prompts_per_step": 4,
            "rewrites": 3,
            **changes,
        }
    )
    made = {reward.spec.name: reward() for reward in (*rewards, *held_out)}
    looking = {name: one for name, one in made.items() if one.spec.reads == "images"}
    scorer = PictureScorer(WordRenderer(), looking, Cache(folder), StageTimer())
    return PpoRollouts(
        refiner,
        scorer,
        {n: one for n, one in made.items() if n not in looking},
        PromptStream(read_prompts(str(prompts)), 0),
        config,
    )


def says(monkeypatch, texts):
    """The refiner adds these, in turn."""
    turns = iter(texts)

    def generate(self, pivots, begun, keys, *rest):
        found = []
        for text in (next(turns) for _ in begun):
            ids = self.model.decoder_ids(text)
            found.append(Completion(text, ids, [0.0] * len(ids), truncated=text.endswith("…")))
        return found

    monkeypatch.setattr(PripRewriter, "generate", generate)


def test_refinements_are_scored_as_the_user_sees_them(refiner, prompts, tmp_path, monkeypatch):
    says(monkeypatch, [", red", ", blue", ""] * 4)
    made = rollouts(refiner, prompts, tmp_path, held_out=(Blueness,), pictures=2)
    batch = made.collect()
    assert [one.variant for _, one in batch.rows] == [0, 1, 2] * 4
    prompts_drawn = {job.prompt for call in made.scorer.renderer.calls for job in call}
    assert prompts_drawn == {
        text
        for prompt in (group.source.prompt for group in batch.groups)
        for text in (prompt, prompt + ", red", prompt + ", blue")
    }
    for group, sample in batch.rows:
        assert len(group.seeds) == len(sample.pictures) == 2
        expected = sample.scores["redness"] - group.original.scores["redness"]
        assert sample.gain == sample.gains["redness"] == pytest.approx(expected)
        if sample.variant == 0:
            assert sample.gain == pytest.approx(0.8, abs=0.01)  # the same noise on both sides
        if sample.variant == 2:
            assert sample.gain == 0 and sample.rewrite.fallback == "the refiner added nothing"
    figures = batch.figures
    assert figures["gain"] == pytest.approx(0.8 / 3, abs=0.01) and figures["better"] == pytest.approx(1 / 3)
    assert figures["unchanged"] == pytest.approx(1 / 3) and "original/blueness" in figures
    # Judged by the user's words, or those that the file says.
    lines = [json.loads(line) for line in lines_of(7, batch)]
    assert len(lines) == 4 * 4 and [line["variant"] for line in lines[:4]] == ["original", 0, 1, 2]
    assert {line["judged_as"] for line in lines if line["prompt"] == "a heart"} == {"love"}


def test_a_truncated_text_is_scored_without_its_last_phrase(refiner, prompts, tmp_path, monkeypatch):
    cut = Completion(", red, on a", refiner.model.decoder_ids(", red, on a"), [0.0] * 6, truncated=True)
    monkeypatch.setattr(PripRewriter, "generate", lambda self, pivots, begun, keys, *rest: [cut] * len(begun))
    batch = rollouts(refiner, prompts, tmp_path, rewrites=1).collect()
    assert all(one.rewrite.prompt == group.source.prompt + ", red" for group, one in batch.rows)
    assert batch.figures["cut_off"] == 1
    [line] = [json.loads(line) for line in lines_of(1, batch) if '"cut"' in line][:1]
    assert line["text"] == ", red, on a" and line["rewrite"].endswith(", red")


def test_the_users_own_pictures_are_drawn_once(refiner, prompts, tmp_path):
    made = rollouts(refiner, prompts, tmp_path)
    first = made.collect()
    made.scorer.renderer.calls.clear()
    second = made.collect()
    own = {one.source.prompt: one for one in first.groups}
    drawn = {job.prompt for call in made.scorer.renderer.calls for job in call}
    assert not drawn & own.keys()
    assert all(one.seeds == own[one.source.prompt].seeds and one.position >= 4 for one in second.groups)
    # What is written is another draw: its noise is the place's.
    one, other = (
        {(g.source.prompt, s.variant): s.written.ids for g, s in batch.rows} for batch in (first, second)
    )
    assert one != other


def test_rollouts_do_not_depend_on_the_write_batch(refiner, prompts, tmp_path):
    runs = [rollouts(refiner, prompts, tmp_path / str(size), write_batch=size).collect() for size in (64, 1)]
    one, other = ([(g.position, s.written.ids, s.gain) for g, s in run.rows] for run in runs)
    assert one == other


def test_rewards_are_weighted_on_one_scale(refiner, prompts, tmp_path, monkeypatch):
    says(monkeypatch, [", red and some more words so that it is long enough for anyone", ", blue"] * 4)
    made = rollouts(
        refiner,
        prompts,
        tmp_path,
        rewards=(Redness, Length),
        rewrites=2,
        weights={"redness": 2.0, "length": 0.5},
    )
    for group, sample in made.collect().rows:
        red = sample.scores["redness"] - group.original.scores["redness"]
        long = 0.5 * (sample.variant == 0)  # from 0 to 1, of a range from -1 to 1
        assert sample.gains == pytest.approx({"redness": red, "length": long})
        assert sample.gain == pytest.approx(2 * red + 0.5 * long)


def test_a_failing_reward_drops_samples_up_to_the_limit(refiner, prompts, tmp_path, monkeypatch):
    says(monkeypatch, [", red", ", green", ", blue"] * 4)
    made = rollouts(refiner, prompts, tmp_path / "a", rewards=(FailsOnGreen,), max_dropped=0.5)
    batch = made.collect()
    assert [one.dropped is not None for _, one in batch.rows] == [False, True, False] * 4
    assert batch.figures["dropped"] == 4 and len(batch.valid) == 8
    says(monkeypatch, [", red", ", green", ", blue"] * 4)
    with pytest.raises(RewardFailed, match="'fails-on-green'.*4 of 12 samples .*max_dropped=0.25"):
        rollouts(refiner, prompts, tmp_path / "b", rewards=(FailsOnGreen,)).collect()
    says(monkeypatch, [", red"] * 24)
    batch = rollouts(refiner, prompts, tmp_path / "c", held_out=(FailsAlways,)).collect()
    assert batch.figures["dropped"] == 0 and "reward/fails-always" not in batch.figures


def test_refinements_are_dropped_where_the_original_has_no_score(refiner, tmp_path, monkeypatch):
    path = tmp_path / "prompts.txt"
    path.write_text("a green star\na ring\na cross\na heart\n")
    says(monkeypatch, [", big"] * 8)
    made = rollouts(refiner, path, tmp_path / "a", rewards=(FailsOnGreen,), rewrites=2)
    batch = made.collect()
    assert {group.source.prompt for group, one in batch.rows if one.dropped} == {"a green star"}
    assert [one.source.prompt for one in batch.groups if one.original.dropped] == ["a green star"]


# The policy


def test_log_probabilities_are_those_of_sampling(refiner, prompts, tmp_path):
    for temperature in (1.0, 0.6):
        hot = PripRewriter(refiner.model, max_new_tokens=5, temperature=temperature)
        batch = rollouts(hot, prompts, tmp_path / str(temperature)).collect()
        with torch.no_grad():
            pivots = pivots_of(hot.model, batch.rows)
            found = tokens_of(hot.model, batch.rows, pivots, temperature)
        expected = [logp for _, sample in batch.rows for logp in sample.written.logps]
        assert found.logps.tolist() == pytest.approx(expected, abs=1e-4)
        assert sum(found.lengths) == len(expected) == len(found.states) and (found.entropy > 0).all()
        for i, row in enumerate(batch.rows):  # whatever the batch
            with torch.no_grad():
                alone = tokens_of(hot.model, [row], pivots_of(hot.model, [row]), temperature)
            start = sum(found.lengths[:i])
            torch.testing.assert_close(
                alone.logps, found.logps[start : start + found.lengths[i]], rtol=1e-5, atol=2e-5
            )


def test_first_pivots_do_not_change(prompts, tmp_path):
    refiner = PripRewriter(tiny(), max_new_tokens=5)
    texts = ["a star", "a ring", "a star"]
    ids, _ = refiner.encode_prompts(texts)
    with torch.no_grad():
        expected = refiner.model.encode([ids[text] for text in texts])
    warm = WarmPivots(tmp_path / "warm", texts, refiner)
    with torch.no_grad():
        refiner.model.encoder.head.bias.add_(1)
    again = WarmPivots(tmp_path / "warm", texts, refiner)
    for one in (warm, again):
        torch.testing.assert_close(one.of(texts, torch.device("cpu")), expected, rtol=0, atol=1e-5)
