"""PRIP's benchmark: its arithmetic by hand, and one small run."""

import json

import pytest
import torch

from reprise.backend.core.config import load_config
from reprise.backend.core.errors import RepriseError
from reprise.backend.lab.bench.prip import bench, result_of
from reprise.backend.training import shipped_config
from reprise.backend.training.ppo.config import PpoConfig

from ....fake_comfyui import GRAPH
from ...cli.conftest import reprise  # noqa: F401
from ...rewriters.prip.tiny_prip import save

SHIPPED = shipped_config("ppo", "shapeworld")


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    torch.set_num_threads(1)
    return save(tmp_path_factory.mktemp("prip") / "tiny", max_new_tokens=4)


def rounds(seconds, rows=4, tokens=8):
    return [{"seconds": seconds, "rows": rows, "tokens": tokens}] * 2


def step(seconds):
    return {
        "seconds": seconds,
        "seconds/write": 0.5,
        "seconds/render": 1.0,
        "seconds/score": 0.25,
        "seconds/update": 1.0,
        "tokens": 6.0,
        "pictures": 12,
        "pictures_reused": 4,
    }


def test_the_result_equals_that_computed_by_hand():
    speeds = {
        "ours": rounds(2.0),
        "ours, pivots": rounds(1.25),
        "generate": rounds(1.0),
        "ours, drawn": rounds(2.0, tokens=8),
        "generate, drawn": rounds(2.0, tokens=4),
    }
    floor = {"write": 0.25, "render": 0.75, "update": 0.5}
    result = result_of(speeds, [step(3.0), step(3.0)], [floor, floor])
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["refinements per second, from prompts"]["overall"] == [0.5, 0.5, 0.5]
    assert rows["refinements per second, from prompts"]["cost"] == {"ours": 2.0, "generate": 4.0}
    assert rows["refinements per second, from pivots"]["overall"] == [0.8, 0.8, 0.8]
    assert rows["tokens per second, drawn, from pivots"]["overall"] == [2.0, 2.0, 2.0]
    assert rows["share of a step that the networks alone take"]["overall"] == [0.5, 0.5, 0.5]
    timer, did, tokens = result["tables"]
    assert timer["rows"][0] == ["writing", 0.5, 0.25, 0.5]
    assert timer["rows"][2] == ["judging", 0.25, None, None]
    assert timer["rows"][4][:2] == ["records, logs", 0.25] and timer["rows"][5] == ["all", 3.0, 1.5, 0.5]
    assert ["pictures drawn", 12.0] in did["rows"] and tokens["rows"][1] == ["drawn", 2.0, 1.0]


def test_a_small_benchmark_runs_to_the_end(refiner):
    words = (
        f"init={refiner}",
        "prompts_per_step=2",
        "rewrites=1",
        "group_baseline=false",
        "minibatches=1",
        "renderer.steps=1",
        "max_new_tokens=4",
        "prompts=shapeworld:1",
    )
    calls = []
    settings = load_config(PpoConfig, SHIPPED, words).model_dump(mode="json")
    result = bench(settings, pairs=1, refined=4, progress=lambda *words: calls.append(words))
    assert calls == [(what, turn, 1) for what in ("refinements", "steps") for turn in (0, 1)]
    assert json.dumps(result, allow_nan=False) and all(row["overall"][0] > 0 for row in result["rows"])
    timer, did, tokens = result["tables"]
    *parts, whole = [row[1] for row in timer["rows"]]
    assert sum(parts) == pytest.approx(whole, abs=0.01) and min(parts) >= 0
    counts = {row[0]: row[1] for row in did["rows"]}
    assert counts["pictures drawn"] <= 4 and counts["tokens of a refinement"] <= 4
    assert {row[0] for row in tokens["rows"]} == {"greedy", "drawn"}
    assert result["settings"]["refined"] == 4 and result["settings"]["max_steps"] == 2


def test_a_failed_process_is_reported_with_its_error(tmp_path):
    words = (f"init={tmp_path}", "prompts=shapeworld:1")
    settings = load_config(PpoConfig, SHIPPED, words).model_dump(mode="json")
    with pytest.raises(RepriseError, match="measuring prip failed: .*no refiner at"):
        bench(settings, pairs=1)


def test_the_command_passes_its_settings_on(reprise, monkeypatch, tmp_path):  # noqa: F811
    asked, floor = [], {"write": 0.25, "render": 0.75, "update": 0.5}

    def fake(settings, **options):
        asked.append((PpoConfig(**settings), options["pairs"]))
        ways = ("ours", "ours, pivots", "generate", "ours, drawn", "generate, drawn")
        return {**result_of({way: rounds(1.0) for way in ways}, [step(3.0)], [floor]), "settings": {}}

    monkeypatch.setattr("reprise.backend.lab.bench.prip.bench", fake)
    words = ("lab", "bench", "prip", "--out", "r")
    done = reprise(
        *words,
        "--refiner",
        "mine",
        "--prompts-per-step",
        3,
        "--rewrites",
        1,
        "--steps",
        5,
        "--pairs",
        2,
        "--seed",
        7,
    )
    assert done.code == 0 and "refinements per second" in done.out and "judging" in done.out
    assert "Seconds of a step of ppo" in (tmp_path / "r" / "index.html").read_text()
    config, pairs = asked[0]
    assert (config.init, config.prompts_per_step, config.renderer.steps, config.seed) == ("mine", 3, 5, 7)
    assert config.minibatches == 1 and pairs == 2  # 3 rows are no two minibatches
    assert reprise(*words).code == 0
    assert asked[1] == (load_config(PpoConfig, SHIPPED, ["init=shapeworld"]), 5)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--prompts-per-step", "0"], "prompts_per_step: input should be greater than 0"),
        (["--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--config", "servers.yaml"], "a ComfyUI server has none; give a config whose renderer has one"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(reprise, tmp_path, words, part):  # noqa: F811
    drawn = "{name: 'comfyui:a.json@http://localhost:1'}"
    (tmp_path / "a.json").write_text(json.dumps(GRAPH))
    (tmp_path / "servers.yaml").write_text(f"init: x\nprompts: shapeworld\nrenderer: {drawn}\n")
    done = reprise("lab", "bench", "prip", *words, "--out", "r")
    assert done.code == 2 and done.out == "" and part in " ".join(done.err.split()), done.err
    assert not (tmp_path / "r").exists()
