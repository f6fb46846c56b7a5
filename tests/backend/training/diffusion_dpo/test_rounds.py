"""Rounds of Diffusion-DPO with a tiny FLUX and a judge that likes red."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.core.errors import BadInput, RewardFailed, TrainingFailed
from reprise.backend.core.types import RewardSpec
from reprise.backend.preferences.mining import read_runs
from reprise.backend.preferences.pairing import PairMiner
from reprise.backend.preferences.store import Store
from reprise.backend.renderers.diffusers.lora import apply_lora
from reprise.backend.training import rounds
from reprise.backend.training.diffusion_dpo import rounds as diffusion_dpo_rounds
from reprise.backend.training.diffusion_dpo.config import DiffusionDpoConfig
from reprise.backend.training.diffusion_dpo.loop import DiffusionDpoLoop
from reprise.backend.training.diffusion_dpo.train import train

from ...renderers.conftest import build
from ..rounds_world import killed_at
from ..world import Blueness, Redness


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def changed(values, rounds=None, **changes):
    return DiffusionDpoConfig(**{**values, **changes, "rounds": {**values["rounds"], **(rounds or {})}})


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def quiet(line):
    pass


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    run, said = tmp_path_factory.mktemp("runs") / "whole", []
    assert train(DiffusionDpoConfig(**values), run, log=said.append) == run / "final"
    return run, said


def test_two_rounds(finished, model, values):
    run, said = finished
    drawn = [rows(run / "rounds" / n / "rollouts.jsonl") for n in "12"]
    assert [len(one) for one in drawn] == [4, 4]
    assert all(len(set(row["pictures"])) == len(row["scores"]) == 4 for one in drawn for row in one)
    assert not {s for row in drawn[0] for s in row["seeds"]} & {s for row in drawn[1] for s in row["seeds"]}
    for number in "12":
        store = Store(run / "rounds" / number / "preferences")
        pairs = store.pairs()
        assert 2 <= len(pairs) <= 4 and all(pair.margin >= 0.001 for pair in pairs)
        assert {pair.condition for pair in pairs} <= {"a cat", "a dog", "an owl", "a fox"}
        for pair in pairs:  # best against worst
            row = next(row for row in drawn[int(number) - 1] if row["prompt"] == pair.condition)
            scores = [one["redness"] for one in row["scores"]]
            assert (pair.chosen.score, pair.rejected.score) == (max(scores), min(scores))
        begun = rows(run / "rounds" / number / "metrics.jsonl")[0]
        assert begun["margin"] == 0.0, "it begins at its reference"
    steps = rows(run / "metrics.jsonl")
    assert [(row["step"], row["round"]) for row in steps] == [(i + 1, 1 + i // 3) for i in range(6)]
    looks = rows(run / "evaluations.jsonl")
    assert [(row["round"], row["step"]) for row in looks] == [(0, 0), (1, 3), (2, 6)]
    assert len({row["held-out/redness"] for row in looks}) == 3, "every round drew with another LoRA"
    assert all({"held-out/redness", "held-out/blueness"} <= row.keys() for row in looks)
    final, last = (load_file(run / name / "lora.safetensors") for name in ("final", "rounds/2/final"))
    assert all(torch.equal(final[key], last[key]) for key in last) and "saved" in said[-1]
    page = (run / "report.html").read_text()
    assert "6 of 6" in page and "Rounds" in page and "held-out" in page


def test_its_rounds_can_be_mined(finished, tmp_path):
    """The pairs that the rounds had, and by another reward others; pictures that the cache lost are there."""
    run = shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(run / rounds.PICTURES)
    had = [pair for n in "12" for pair in Store(run / "rounds" / n / "preferences").all_pairs()]
    found = PairMiner(Store(tmp_path / "store", create=True), margin=0.001)
    for group in read_runs(run, None, quiet):
        found.add_group(group)
    assert {pair.id for pair in found.pairs} == {pair.id for pair in had} and not found.counts["gone"]
    assert {(pair.source, pair.reward, pair.run) for pair in found.pairs} == {("round", "redness", str(run))}
    other = PairMiner(Store(tmp_path / "other", create=True), margin=0.001)
    for group in read_runs(finished[0], "blueness", quiet):
        other.add_group(group)
    assert {pair.id for pair in other.pairs} - {pair.id for pair in had}
    with pytest.raises(BadInput, match="no scores of 'pick-score'; expected one of blueness, redness"):
        list(read_runs(run, "pick-score", quiet))


def test_a_round_draws_with_the_lora_of_the_one_before(finished, model):
    """Its first picture, drawn again by a plain renderer with that file."""
    from reprise.backend.core.types import Job
    from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer
    from reprise.backend.storage.cache import Cache

    run, _ = finished
    settings = {"steps": 2, "size": 64, "guidance": 3.5, "max_sequence_length": 20, "device": "cpu"}
    with_lora = DiffusersRenderer(model, lora=run / "rounds/1/final/lora.safetensors", **settings)
    row = rows(run / "rounds/2/rollouts.jsonl")[0]
    image = with_lora.render([Job(row["prompt"], row["seeds"][0])]).images[0]
    kept, _ = Cache(run / "rollouts/pictures").get_image(row["pictures"][0])
    assert (image - kept).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("draw", 3),
        ("draw", 7),
        ("draw", 26),
        ("judge", 22),
        ("learn", 2),
        ("learn", 6),
    ],
)
def test_killed_and_resumed_equals_never_killed(where, count, values, finished, tmp_path):
    """SIGKILL while it draws (evaluation, round), judges, or learns, in either round; bit for bit."""
    whole, _ = finished
    run = tmp_path / "run"
    killed_at(where, count, lambda: train(DiffusionDpoConfig(**values), run, log=quiet))
    assert not (run / "final").exists()
    for path in run.glob("rounds/*/rollouts.jsonl"):
        if not path.with_name("mined.json").exists():  # a line that was being written
            with path.open("a") as file:
                file.write('{"prompt": "a c')
    train(DiffusionDpoConfig(**values), run, resume=True, log=quiet)
    for name in ("rounds/1/final", "rounds/2/final", "final", "best"):
        if (whole / name).exists():
            one, other = (load_file(path / name / "lora.safetensors") for path in (run, whole))
            assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name
    for name in ("rounds/1/rollouts.jsonl", "rounds/2/rollouts.jsonl", "evaluations.jsonl"):
        assert rows(run / name) == rows(whole / name)


def test_a_finished_run_takes_another_round(values, finished, tmp_path):
    """As if it had been asked for at once, bit for bit."""
    whole, run = finished[0], tmp_path / "run"
    train(changed(values, {"count": 1}), run, log=quiet)
    assert not (run / "rounds/2").exists()
    killed_at("learn", 2, lambda: train(changed(values), run, resume=True, log=quiet))
    assert train(changed(values), run, resume=True, log=quiet) == run / "final"
    for name in ("rounds/2/rollouts.jsonl", "evaluations.jsonl"):
        assert rows(run / name) == rows(whole / name)
    for name in ("rounds/1/final", "final"):
        one, other = (load_file(path / name / "lora.safetensors") for path in (run, whole))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name


def files_of(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_refused_resume_leaves_a_finished_run_as_it_was(values, finished, tmp_path):
    run, prompts = shutil.copytree(finished[0], tmp_path / "run"), Path(values["rounds"]["prompts"])
    before = files_of(run)
    gone = prompts.rename(prompts.with_suffix(".gone"))
    try:
        with pytest.raises(BadInput, match="train.txt"):
            train(changed(values, {"count": 3}), run, resume=True, log=quiet)
    finally:
        gone.rename(prompts)
    with pytest.raises(BadInput, match="has done 2 rounds, and rounds.count=1 are fewer; set 2 or more"):
        train(changed(values, {"count": 1}), run, resume=True, log=quiet)
    assert files_of(run) == before


def test_a_round_of_ties_stops_the_run_with_the_reason(values, tmp_path):
    with pytest.raises(BadInput, match="round 1 has 0 pairs of 4 prompts: 4 were ties.*lower margin"):
        train(changed(values, margin=0.9), tmp_path / "ties", log=quiet)


def same(one, other):
    one, other = (load_file(path / "final" / "lora.safetensors") for path in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_cache_that_deletes_pictures_loses_no_pair(values, finished, tmp_path):
    """It has room for what is drawn at once, eight pictures, and not for a round's sixteen."""
    pictures = list((finished[0] / rounds.PICTURES).rglob("*.png"))
    size = max(path.stat().st_size for path in pictures)
    train(changed(values, {"keep_gb": 10 * size / 2**30}), tmp_path / "run", log=quiet)
    assert len(list((tmp_path / "run" / rounds.PICTURES).rglob("*.png"))) < len(pictures) / 2
    assert same(tmp_path / "run", finished[0])
    with pytest.raises(BadInput, match="the pictures of . are gone: .* takes more than keep_gb"):
        train(changed(values, {"keep_gb": 2 * size / 2**30}), tmp_path / "less", log=quiet)
    train(DiffusionDpoConfig(**values), tmp_path / "less", resume=True, log=quiet)
    assert same(tmp_path / "less", finished[0])


def test_deleted_pictures_are_drawn_again(values, finished, tmp_path, monkeypatch):
    """A run is stopped in its first round; the pictures of the first two prompts' pairs are deleted."""
    record, run = rounds.Rounds.record, tmp_path / "run"

    def stop(self, number, found, replace=False):
        if (self.round_folder(number) / rounds.DRAWN).read_text():
            raise KeyboardInterrupt
        record(self, number, found, replace)

    with monkeypatch.context() as patch:
        patch.setattr(rounds.Rounds, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            train(DiffusionDpoConfig(**values), run, log=quiet)
    kept = shutil.copytree(run, tmp_path / "kept")
    shutil.rmtree(kept / rounds.PICTURES)
    shutil.rmtree(run / rounds.PICTURES)
    shutil.rmtree(run / "rounds/1/preferences/images")
    for path, again in ((run, True), (kept, False)):  # what the store has is not drawn again
        said = []
        train(DiffusionDpoConfig(**values), path, resume=True, log=said.append)
        assert any("2 of them again" in line for line in said) is again
        assert same(path, finished[0])
        assert rows(path / "rounds/1/rollouts.jsonl") == rows(finished[0] / "rounds/1/rollouts.jsonl")


@pytest.mark.parametrize("full", ["rollouts/pictures", "preferences/images"])
def test_a_full_disk_says_so(full, values, finished, tmp_path, monkeypatch):
    from reprise.backend.storage.cache import Cache

    write, run = Cache._write, tmp_path / "run"

    def refused(self, path, content):
        if full in str(path) and (run / "rounds/1").exists():
            self.writable = False
            return
        write(self, path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "_write", refused)
        with pytest.raises(
            TrainingFailed, match=f"cannot be written to .*{full}: .*; make room, .*--resume .* from"
        ):
            train(DiffusionDpoConfig(**values), run, log=quiet)
    train(DiffusionDpoConfig(**values), run, resume=True, log=quiet)
    assert same(run, finished[0])


def test_a_later_round_of_ties_ends_the_run_with_the_round_before(values, tmp_path, monkeypatch):
    said, mixed = [], rounds.Rounds.mixed_reward

    def tied(self, scores):
        return 0.5 if self.round_folder(1).joinpath("final").is_dir() else mixed(self, scores)

    monkeypatch.setattr(rounds.Rounds, "mixed_reward", tied)
    run = tmp_path / "run"
    final = train(DiffusionDpoConfig(**values), run, log=said.append)
    assert any("stopped: round 2 has 0 pairs of 4 prompts: 4 were ties" in line for line in said)
    one, other = (load_file(path / "lora.safetensors") for path in (final, run / "rounds/1/final"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert "4 were ties" in (run / "report.html").read_text()


def test_a_later_round_without_usable_pairs_ends_the_run_with_the_round_before(values, tmp_path, monkeypatch):
    """The judge that weighs pairs agrees in the first round, and then says the same of all pictures."""
    run, said = tmp_path / "run", []

    def score(self, images, prompts):
        learned = (run / "rounds/1/final").is_dir()
        return [0.5] * len(prompts) if learned else Redness.score(self, images, prompts)

    monkeypatch.setattr(Blueness, "score", score)
    config = changed(values, {"count": 3, "per_round": 2, "eval_prompts": None}, weigh_by="blueness")
    final = train(config, run, log=said.append)
    assert any("stopped: round 2 teaches nothing: weigh_by='blueness'" in line for line in said)
    assert "round 2 teaches nothing" in (run / "report.html").read_text()
    assert same(run, run / "rounds/1") and not (run / "rounds/3").exists()
    shutil.rmtree(final)
    assert train(config, run, resume=True, log=quiet) == final and same(run, run / "rounds/1")


def test_a_round_with_too_few_prompts_holds_none_out(values, tmp_path):
    said = []
    asked = {"count": 1, "per_round": 1, "eval_prompts": None}
    train(changed(values, asked, eval_share=0.5, max_steps=1), tmp_path / "run", log=said.append)
    assert any(
        "eval_share=0.5 of 1 prompts leaves none to train on: nothing is held out" in line for line in said
    )
    assert rows(tmp_path / "run/metrics.jsonl") and (tmp_path / "run/final").is_dir()


def test_a_round_that_moved_nothing_is_followed_by_another(values, tmp_path, monkeypatch):
    """As after one step at a rate that rises from zero: the next round draws as the first did."""
    export = DiffusionDpoLoop.export

    def unmoved(self, *given):
        with torch.no_grad():
            for name, weight in self.weights.items():
                if "lora_B" in name:
                    weight.zero_()
        return export(self, *given)

    monkeypatch.setattr(DiffusionDpoLoop, "export", unmoved)
    train(changed(values, max_steps=1), tmp_path / "run", log=quiet)
    (file,) = (tmp_path / "run/rounds/1/final").glob("*.safetensors")
    assert not any(weight.any() for name, weight in load_file(file).items() if "lora_B" in name)
    assert (tmp_path / "run/final").is_dir()


def test_rounds_without_improvement_stop(values, tmp_path, monkeypatch):

    looks = iter([0.5, 0.6, 0.4, 0.3, 0.2])

    def worse(self, newest):
        return {"held-out/blueness": next(looks)}, []

    monkeypatch.setattr(diffusion_dpo_rounds.DiffusionDpoRounds, "evaluate", worse)
    said, run = [], tmp_path / "run"
    config = changed(values, {"count": 6, "patience": 2}, max_steps=1)
    train(config, run, log=said.append)
    assert any(
        "stopped after round 3: 2 rounds brought no better held-out/blueness than round 1" in line
        for line in said
    )
    best, first = (load_file(path / "lora.safetensors") for path in (run / "best", run / "rounds/1/final"))
    assert all(torch.equal(best[key], first[key]) for key in first)
    assert train(config, run, resume=True, log=said.append) == run / "final"
    assert not (run / "rounds/4").exists()


class Fails(Redness):
    spec = RewardSpec("redness", 0.0, 1.0)

    def score(self, images, prompts):
        if "a dog" in prompts:
            raise ConnectionError("the judge is down")
        return super().score(images, prompts)


def test_a_judge_that_fails_stops_the_run_and_it_goes_on(values, finished, tmp_path, monkeypatch):
    from reprise.backend.core.registry import REWARDS

    monkeypatch.setitem(REWARDS, "redness", f"{__name__}:Fails")
    run = tmp_path / "run"
    with pytest.raises(RewardFailed, match="redness.*the judge is down.*--resume"):
        train(DiffusionDpoConfig(**values), run, log=quiet)
    monkeypatch.undo()
    from ..world import NAMES

    for table, name, where in NAMES:
        table[name] = where
    train(DiffusionDpoConfig(**values), run, resume=True, log=quiet)
    one, other = (load_file(path / "final" / "lora.safetensors") for path in (run, finished[0]))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_starting_from_an_adapter(finished, values, model, tmp_path):
    """The file is the reference and the beginning; the result holds both, at the same rank."""
    run, _ = finished
    file = run / "rounds/1/final/lora.safetensors"
    config = DiffusionDpoConfig(
        **{**values, "rounds": None, "start": file, "preferences": run / "rounds/2/preferences"}
    )
    loop = DiffusionDpoLoop(config, tmp_path, False, quiet)
    noise, u = loop._noise([0, 1])
    losses, figures = loop._losses(loop.pairs[:2], noise, u)
    assert figures["margin"] == 0.0 and figures["chosen"] == 0.0
    condition = loop.encoded.condition(loop.pairs[0].condition)
    with torch.no_grad():
        said = loop.denoiser(noise[:1], loop.noising.at(u[:1])[2], condition)
        plain = build("flux")
        apply_lora(file, plain.transformer)
        loop.denoiser.module = plain.transformer
        torch.testing.assert_close(
            said, loop.denoiser(noise[:1], loop.noising.at(u[:1])[2], condition), rtol=1e-3, atol=1e-4
        )
    for changes in ({"lora": {"r": 3, "targets": "blocks"}}, {"lora": {"r": 2, "targets": "attention"}}):
        with pytest.raises(BadInput, match="is an adapter of rank 2 on .* modules, and lora asks for rank"):
            DiffusionDpoLoop(DiffusionDpoConfig(**{**config.model_dump(), **changes}), tmp_path, False, quiet)
