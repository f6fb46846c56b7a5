import json
import threading
from dataclasses import replace

import pytest

from reprise.backend.core.errors import Interrupted, RewardFailed
from reprise.backend.core.seeds import seed_of
from reprise.backend.core.types import Job
from reprise.backend.rewards.text import Length, Structure
from reprise.backend.rewriters.reprompt import RePromptRewriter
from reprise.backend.storage.cache import Cache
from reprise.backend.training.common.offload import StageTimer
from reprise.backend.training.grpo.config import GrpoConfig
from reprise.backend.training.grpo.rollouts import GrpoRollouts
from reprise.backend.training.rollouts.prompts import PromptStream, read_prompts
from reprise.backend.training.rollouts.scoring import PictureScorer

from ..world import COLORS, Blueness, FailsAlways, FailsOnGreen, Redness, WordRenderer


@pytest.fixture(scope="module")
def rewriter(taught):
    return RePromptRewriter(taught, device="cpu", temperature=1.0, max_new_tokens=32)


def made(rewriter, prompts, folder, looking=None, position=0, **changes):
    looking = looking or {"redness": Redness()}
    config = GrpoConfig(
        **{
            "model": "m",
            "prompts": str(prompts),
            "prompts_per_step": 2,
            "rewrites": 6,
            "batch_size": 4,
            "rewards": {**{name: 1.0 for name in looking}, "structure": 0.5},
            "resample": 0,
            **changes,
        }
    )
    rewards = {**looking, **({"blueness": Blueness()} if config.held_out else {})}
    text = {"structure": Structure(), **({"length": Length()} if "length" in config.rewards else {})}
    scorer = PictureScorer(WordRenderer(), rewards, Cache(folder), StageTimer(), batch=5)
    stream = PromptStream(read_prompts(str(prompts)), config.seed, position)
    return GrpoRollouts(rewriter, scorer, text, stream, config)


def rows(batch):
    return [json.loads(line) for line in batch.lines]


def test_a_batch(rewriter, prompts, tmp_path):
    rollouts = made(rewriter, prompts, tmp_path, held_out=["blueness"])
    batch = rollouts.collect(1)
    assert len(batch.rows) == 12 and batch.figures["dropped"] == 0
    for group in batch.groups:
        assert group.seeds == [seed_of(0, "draw", group.position, 0)]  # one noise for all of a group
    reds = [s.advantage for _, s in batch.rows if s.scores.get("redness", 0) > 0.8]
    others = [s.advantage for _, s in batch.rows if s.scores.get("redness", 0) < 0.8]
    assert reds and others and min(reds) > max(others)
    assert {"reward/redness", "reward/blueness", "reward/structure"} <= batch.figures.keys()
    lines = rows(batch)
    assert len(lines) == 12
    assert all((tmp_path / key[:2] / f"{key}.png").is_file() for line in lines for key in line["pictures"])
    assert {r["step"] for r in lines} == {1}


def test_it_depends_on_seed_and_position_alone(rewriter, prompts, tmp_path):
    first = made(rewriter, prompts, tmp_path / "a")
    first.collect(1)
    again = made(rewriter, prompts, tmp_path / "b", position=first.stream.position)
    assert again.collect(2).lines == first.collect(2).lines
    other = made(rewriter, prompts, tmp_path / "c", position=2, seed=1)
    assert [s.rewrite for _, s in other.collect(2).rows] != [s.rewrite for _, s in again.collect(2).rows]


def test_rewrites_do_not_depend_on_the_write_batch(rewriter, prompts, tmp_path):
    few, many = (made(rewriter, prompts, tmp_path, write_batch=n).collect(1) for n in (3, 64))
    assert [s.rewrite for _, s in few.rows] == [s.rewrite for _, s in many.rows]


def test_nothing_is_drawn_or_scored_twice(rewriter, prompts, tmp_path):
    rollouts = made(rewriter, prompts, tmp_path)
    batch = rollouts.collect(1)
    drawn = [job for call in rollouts.scorer.renderer.calls for job in call]
    jobs = {Job(s.rewrite.prompt, g.seeds[0]) for g, s in batch.rows if s.drawn}
    assert len(drawn) == len(jobs) == rollouts.scorer.drawn and set(drawn) == jobs
    assert max(map(len, rollouts.scorer.renderer.calls)) <= 5
    # A second run with the same cache, as after a kill: neither renderer nor judge is asked.
    again = made(rewriter, prompts, tmp_path)
    again.scorer.rewards["redness"].score = None
    assert again.collect(1).lines == batch.lines and again.scorer.renderer.calls == []
    assert again.scorer.reused == len(jobs)


def test_unreadable_answers_are_never_drawn_and_count_as_worst(rewriter, prompts, tmp_path, monkeypatch):
    rollouts = made(rewriter, prompts, tmp_path)
    generate = rewriter.generate

    def cut(asked, keys, *rest):
        found = generate(asked, keys, *rest)
        return [replace(one, text="no tags") if i % 6 == 1 else one for i, one in enumerate(found)]

    monkeypatch.setattr(rewriter, "generate", cut)
    batch = rollouts.collect(1)
    unread = [s for _, s in batch.rows if not s.drawn]
    assert len(unread) >= 2 and batch.figures["unparsable"] == pytest.approx(len(unread) / 12)
    for group in batch.groups:
        bad = [s.advantage for s in group.samples if not s.drawn]
        assert max(bad) < min(s.advantage for s in group.samples if s.drawn)
    assert all("a star" != job.prompt for call in rollouts.scorer.renderer.calls for job in call)
    for line in rows(batch):
        assert ("unparsable" in line) == ("rewrite" not in line) == (line["pictures"] == [])
        assert line["scores"]["structure"] == (-1.0 if "unparsable" in line else 1.0)


def test_groups_without_signal_are_replaced_up_to_a_cap(rewriter, prompts, tmp_path):
    rollouts = made(
        rewriter,
        prompts,
        tmp_path,
        looking={"redness": Flat()},
        resample=3,
        rewards={"redness": 1.0, "structure": 1e-9},
        std_floor=0.9,
    )
    batch = rollouts.collect(1)
    assert rollouts.stream.position == 2 + 3 * 2 and batch.figures["zero_variance"] == 1.0
    assert batch.figures["replaced"] == 6 and len(batch.rows) == 12 and len(rows(batch)) == 48
    assert {s.advantage for _, s in batch.rows} == {0.0}


class Flat(Redness):
    """Says .5 of everything."""

    def score(self, images, prompts):
        return [0.5] * len(prompts)


def test_a_replaced_group_leaves_its_place_to_one_with_signal(rewriter, prompts, tmp_path):
    class FlatForStars(Redness):
        def score(self, images, prompts):
            return [0.5 if p == "a star" else s for s, p in zip(super().score(images, prompts), prompts)]

    rollouts = made(
        rewriter,
        prompts,
        tmp_path,
        looking={"redness": FlatForStars()},
        resample=2,
        rewards={"redness": 1.0, "structure": 0.5},
        std_floor=0.3,
        prompts_per_step=4,
        batch_size=8,
    )
    batch = rollouts.collect(1)
    assert [g.source.prompt for g in batch.groups if g.replaced] == ["a star"]
    assert len(batch.rows) == 24 and rollouts.stream.position == 5
    replaced = [r for r in rows(batch) if r["replaced"]]
    assert len(replaced) == 6 and all("advantage" not in r for r in replaced)


def test_a_failing_reward_drops_only_its_samples(rewriter, prompts, tmp_path):
    options = {"looking": {"fails-on-green": FailsOnGreen()}, "prompts_per_step": 4, "batch_size": 8}
    rollouts = made(rewriter, prompts, tmp_path, max_dropped=0.9, **options)
    batch = rollouts.collect(1)
    green = [s for _, s in batch.rows if "green" in s.rewrite.prompt and s.drawn]
    assert 0 < len(green) < 24 and batch.figures["dropped"] == len(green)
    assert all(s.dropped and "green" in s.dropped and s.advantage is None for s in green)
    assert all(s.advantage is not None for _, s in batch.rows if s not in green)
    strict = made(rewriter, prompts, tmp_path, max_dropped=0.0, **options)
    with pytest.raises(RewardFailed, match=r"'fails-on-green' failed: \d+ of 24 samples .*max_dropped=0"):
        strict.collect(1)


def test_one_failure_of_64_drops_one_sample(rewriter, prompts, tmp_path):
    class FailsOnce(Redness):
        def score(self, images, prompts):
            found = super().score(images, prompts)
            if any(abs(score - target[0]) < 1e-6 for score in found):
                raise RuntimeError("out of luck")
            return found

    target = [9.0]
    first = made(rewriter, prompts, tmp_path / "a", prompts_per_step=8, rewrites=8).collect(1)
    once = {}
    for _, sample in first.rows:
        once.setdefault(sample.scores.get("redness"), []).append(sample)
    target[0] = next(score for score, found in once.items() if score is not None and len(found) == 1)
    rollouts = made(
        rewriter, prompts, tmp_path / "b", looking={"redness": FailsOnce()}, prompts_per_step=8, rewrites=8
    )
    batch = rollouts.collect(1)
    assert len(batch.rows) == 64 and batch.figures["dropped"] == 1
    assert sum(sample.advantage is None for _, sample in batch.rows) == 1


def test_a_reward_that_is_down_stops_the_run_and_is_not_called_for_each_picture(rewriter, prompts, tmp_path):
    judge, calls = FailsAlways(), []
    score = judge.score
    judge.score = lambda images, words: (calls.append(len(words)), score(images, words))
    rollouts = made(
        rewriter, prompts, tmp_path, looking={"fails-always": judge}, prompts_per_step=8, rewrites=8
    )
    rollouts.scorer.batch = 64
    with pytest.raises(RewardFailed, match="'fails-always' failed: .*the judge is down"):
        rollouts.collect(1)
    assert len(calls) == 1 + 8  # all at once, then one by one


def test_a_held_out_reward_that_fails_drops_nothing(rewriter, prompts, tmp_path):
    rollouts = made(rewriter, prompts, tmp_path, held_out=["blueness"])
    rollouts.scorer.rewards["blueness"] = FailsAlways()
    batch = rollouts.collect(1)
    assert batch.figures["dropped"] == 0 and "reward/blueness" not in batch.figures


def test_originals_are_drawn_once_and_not_trained_on(rewriter, prompts, tmp_path):
    rollouts = made(rewriter, prompts, tmp_path, originals=3)
    batch = rollouts.collect(1)
    assert len(batch.rows) == 12 and "original/redness" in batch.figures
    typed = [r for r in rows(batch) if r["variant"] == "original"]
    assert len(typed) == 2 and all("advantage" not in r and "structure" not in r["scores"] for r in typed)
    for group in batch.groups:
        assert len(group.sums) == 9  # three copies count
    # Their pictures hold no colour: a green rewrite is better than what was typed, and knows it.
    plain = made(rewriter, prompts, tmp_path).collect(1)
    assert [s.advantage for _, s in batch.rows] != [s.advantage for _, s in plain.rows]


def test_several_pictures_a_rewrite_are_averaged(rewriter, prompts, tmp_path):
    batch = made(rewriter, prompts, tmp_path, images=3).collect(1)
    for group, sample in batch.rows:
        assert len(group.seeds) == 3 and len(sample.pictures) == 3 * sample.drawn
    scorer = made(rewriter, prompts, tmp_path).scorer
    group, sample = next((g, s) for g, s in batch.rows if s.drawn)
    views = scorer.score(
        [Job(sample.rewrite.prompt, seed) for seed in group.seeds], [group.source.judge_prompt] * 3
    )
    assert sample.scores["redness"] == pytest.approx(sum(v.scores["redness"] for v in views) / 3)


def test_a_batch_is_judged_while_the_next_is_drawn(tmp_path):
    judging, drawing = threading.Event(), threading.Event()

    class Renderer(WordRenderer):
        def render(self, jobs, *rest):
            if len(self.calls) == 1:
                drawing.set()
                assert judging.wait(30)  # the first batch's judge is at work by now
            return super().render(jobs, *rest)

    class Judge(Redness):
        def score(self, images, prompts):
            judging.set()
            assert drawing.wait(30)
            return super().score(images, prompts)

    jobs = [Job(f"{color} {i}", i) for i, color in enumerate(COLORS * 4)]
    words = [job.prompt for job in jobs]
    plain = PictureScorer(
        WordRenderer(), {"redness": Redness()}, Cache(tmp_path / "a"), StageTimer(), batch=5
    )
    scorer = PictureScorer(
        Renderer(), {"redness": Judge()}, Cache(tmp_path / "b"), StageTimer(), batch=5, overlap=True
    )
    assert scorer.score(jobs, words) == plain.score(jobs, words)
    assert (scorer.drawn, scorer.reused) == (12, 0)
    assert scorer.score(jobs, words) == plain.score(jobs, words) and scorer.reused == 12


def test_an_error_while_scoring_comes_out_of_its_thread(tmp_path):
    judges = {"redness": Interrupts()}
    scorer = PictureScorer(WordRenderer(), judges, Cache(tmp_path), StageTimer(), batch=2, overlap=True)
    with pytest.raises(Interrupted):
        scorer.score([Job("red", 1), Job("red", 2), Job("red", 3)], ["red"] * 3)


class Interrupts(Redness):
    def score(self, images, prompts):
        raise Interrupted("enough")


def test_a_call_killed_while_it_draws_stores_nothing(tmp_path):
    class Dies(WordRenderer):
        def render(self, jobs, *rest):
            if self.calls:
                raise KeyboardInterrupt
            return super().render(jobs, *rest)

    scorer = PictureScorer(Dies(), {"redness": Redness()}, Cache(tmp_path), StageTimer(), batch=2)
    with pytest.raises(KeyboardInterrupt):
        scorer.score([Job("red", 1), Job("red", 2), Job("red", 3)], ["red"] * 3)
    assert not list(tmp_path.glob("*/*"))
