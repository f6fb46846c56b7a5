"""The judges' benchmark: its arithmetic by hand, its random files, our side at tiny size, bad options."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from PIL import Image

from reprise.backend.core.errors import BadInput, RepriseError
from reprise.backend.core.registry import REWARDS, resolve
from reprise.backend.lab.bench import rewards
from reprise.backend.lab.bench.rewards import PACKAGES, bench, packages_of, published_shapes, rows_of
from reprise.backend.rewards.published import image_reward
from reprise.backend.storage.images import from_pil

from ...cli.conftest import reprise  # noqa: F401
from ...rewards.conftest import golden, installed, keys, published  # noqa: F401  fixtures

VERSIONS = {"image-reward": "1.5", "hpsv2": "1.2.0"}


@pytest.fixture(scope="module")
def script():
    """The measuring script, as a module."""
    spec = spec_from_file_location("bench_judge", rewards.SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calls(*seconds, reading=0.0, scores=(0.5, 0.25)):
    return [
        {"seconds": s, "reading": reading, "scores": [*scores], "peak": 2 * 10**9, "gpu_peak": 0}
        for s in seconds
    ]


def test_ratios_equal_those_computed_by_hand():
    ours, theirs = calls(1.0, 1.0), calls(3.0, 3.0, reading=1.0, scores=(0.5, 0.2502))
    whole, steady = rows_of("hps-v2.1", 2, ours, theirs, packages=VERSIONS)
    assert whole["overall"] == [3.0, 3.0, 3.0] and steady["overall"] == [2.0, 2.0, 2.0]
    assert whole["name"] == "hps-v2.1, 2 a call, over hpsv2 1.2.0" and "without reading" in steady["name"]
    assert whole["cost"] == {
        "images_per_second": 2.0,
        "peak_gb": 2.0,
        "reference_images_per_second": 0.6667,
        "reference_peak_gb": 2.0,
    }
    assert steady["cost"]["reference_images_per_second"] == 1.0
    assert whole["score_difference"] == pytest.approx(2e-4) and whole["score_spread"] == pytest.approx(0.25)
    assert len(rows_of("image-reward", 2, ours, calls(3.0, 3.0), packages=VERSIONS)) == 1
    (alone,) = rows_of("image-reward", 2, calls(1.0, 3.0), packages={})
    assert alone["overall"][0] == alone["cost"]["images_per_second"] == 1.0


@pytest.mark.parametrize("scores", [(0.5, 0.3), (0.5, float("nan"))])
def test_sides_with_different_scores_are_not_compared(scores):
    with pytest.raises(RepriseError, match="they compute different functions"):
        rows_of("hps-v2.1", 2, calls(1.0), calls(3.0, scores=scores), packages=VERSIONS)


def test_random_files_have_the_published_names_and_shapes(keys):  # noqa: F811
    assert published_shapes("hps-v2.1") == keys["hps"]
    shapes, all_of_it = published_shapes("image-reward"), keys["image-reward"]
    assert {key: all_of_it[key] for key in shapes} == shapes
    assert all(image_reward.unused(key) for key in all_of_it.keys() - shapes.keys())


@pytest.mark.parametrize("name", PACKAGES)
def test_our_side_scores_at_tiny_size(installed, script, tmp_path, name):  # noqa: F811
    rewards.write_published(name, tmp_path, seed=1)
    pictures = [str(path) for path in rewards.draw_pictures(tmp_path, 3, 64, seed=1)]
    answer = script.answer(script.ours(name, tmp_path), pictures, rewards.PROMPT)
    judge = resolve("reward", REWARDS, name)(tmp_path)
    alone = [judge.score(from_pil(Image.open(path))[None], [rewards.PROMPT])[0] for path in pictures]
    assert answer["scores"] == pytest.approx(alone, abs=1e-5) and len({round(s, 4) for s in alone}) == 3
    assert answer["seconds"] > 0 and answer["reading"] == 0 and answer["peak"] > 10**7


def test_the_same_seed_gives_the_same_weights():
    shapes = {"a.weight": [4, 3], "b.bias": [2], "scale": []}
    one, two, other = (rewards.random_weights(shapes, seed, torch.float16) for seed in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in shapes) and list(one["a.weight"].shape) == [4, 3]
    assert not torch.equal(one["a.weight"], other["a.weight"])


def test_both_sides_take_turns_and_the_first_call_is_not_counted(monkeypatch):
    asked = []

    class Fake:
        def __init__(self, python, kind, name, folder):
            self.kind, self.count = kind, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            asked.append(f"end {self.kind}")

        def read_answer(self):
            return {"device": "cpu", "threads": 1}

        def score(self, pictures):
            asked.append(self.kind)
            self.count += 1
            return calls(100.0 if self.count == 1 else 1.0, scores=[0.1] * len(pictures))[0]

    monkeypatch.setattr(rewards, "JudgeProcess", Fake)
    monkeypatch.setattr(rewards, "write_published", lambda *_: None)
    monkeypatch.setattr(rewards, "packages_of", lambda *_: VERSIONS)
    result = bench(judges=["image-reward"], reference="python", images=1, pairs=2, size=32)
    assert asked[2:] == ["ours", "reference", "reference", "ours", "end reference", "end ours"]
    assert [row["overall"] for row in result["rows"]] == [[1.0, 1.0, 1.0]]
    assert result["settings"]["sides"]["reference"]["threads"] == 1 and json.dumps(result)
    monkeypatch.undo()
    monkeypatch.setattr(rewards, "JudgeProcess", Fake)
    monkeypatch.setattr(rewards, "write_published", lambda *_: None)
    alone = bench(images=2, pairs=1, size=32)["rows"]
    assert [row["name"].split(":")[0] for row in alone] == [
        f"{name}, {count} a call" for name in PACKAGES for count in (1, 2)
    ]


def test_a_failed_side_is_reported_with_its_error(tmp_path):
    (tmp_path / "vocab.txt").write_text("")
    (tmp_path / "ImageReward.pt").write_bytes(b"rubbish")
    with rewards.JudgeProcess(sys.executable, "ours", "image-reward", tmp_path) as side:
        with pytest.raises(RepriseError, match="measuring ours failed: .*vocab.txt"):
            side.read_answer()


def test_an_environment_without_the_packages_is_refused(tmp_path):
    with pytest.raises(BadInput, match="has no image-reward and no hpsv2; install image-reward 1.5 and"):
        packages_of(sys.executable, [*PACKAGES])
    rubbish = tmp_path / "python"
    rubbish.write_text("#!/bin/sh\necho hello\n")
    rubbish.chmod(0o755)
    for python in (rubbish, tmp_path / "nothing"):
        with pytest.raises(BadInput, match="--reference must be a Python interpreter, got"):
            packages_of(python, ["image-reward"])


@pytest.mark.parametrize(
    "words,part",
    [
        (["--reference", "nothing"], "--reference must be a Python interpreter, got nothing; give the one"),
        (["--reference", sys.executable], "install image-reward 1.5 and hpsv2 1.2.0"),
        (["--reward", "hps"], "unknown judge to measure 'hps'; did you mean 'hps-v2.1'"),
        (["--images", "0"], "--images must be at least 1"),
        (["--pairs", "0"], "--pairs must be at least 1"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(reprise, tmp_path, words, part):  # noqa: F811
    done = reprise("lab", "bench", "rewards", *words, "--out", "r")
    assert done.code == 2 and done.out == "" and part in " ".join(done.err.split())
    assert not (tmp_path / "r").exists()
