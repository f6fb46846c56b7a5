"""The command tree; rewrite, train, shapeworld, evaluate shapeworld, lab; and Ctrl-C for real."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reprise.backend.cli.stops import stopping_like_ctrl_c
from reprise.backend.shapeworld.prompts import TASKS, parse_prompt
from reprise.backend.shapeworld.styles import parse_style, preferred_style

from ...fake_comfyui import GRAPH, FakeComfyUI
from ...fake_endpoint import MODEL, refusal


def refused(result, part, code=2):
    assert (result.code, result.out) == (code, ""), result.err
    assert part in result.err and len(result.err.splitlines()) == 1, result.err


def test_unknown_commands_get_the_near_match(reprise):
    refused(reprise("rendr"), "Did you mean")
    assert reprise("--version").out.startswith("reprise ")
    assert "render" in reprise("--help").out


def test_rewrite_as_json_and_as_a_table(reprise):
    result = reprise(
        "rewrite", "a red circle", "two stars", "--rewriter", "template", "--variants", 2, "--json"
    )
    rows = json.loads(result.out)
    assert [row["prompt"] for row in rows] == ["a red circle", "two stars"]
    assert len(rows[0]["rewrites"]) == 2 and rows[0]["rewrites"][0]["prompt"].startswith("a red circle, ")
    assert "highly detailed" in reprise("rewrite", "a red circle", "--rewriter", "template").out


@pytest.mark.parametrize(
    "words,part",
    [
        (["a", "--rewriter", "templat"], "did you mean 'template'"),
        (["a", "--variants", "0"], "--variants"),
        (["a", "--seed", "-1"], "--seed"),
        (["  "], "empty"),
        ([], "no prompt given"),
    ],
)
def test_rewrite_refuses(reprise, words, part):
    refused(reprise("rewrite", *words), part)


def test_rewrite_by_an_endpoint(reprise, endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    asked = ("rewrite", "a cat", "--variants", 2, "--json", "--rewriter", f"chat:{MODEL}@{endpoint.url}")
    result = reprise(*asked)
    [row] = json.loads(result.out)
    assert [r["prompt"] for r in row["rewrites"]] == ["a grey cat on a red sofa"] * 2
    assert endpoint.requests[0].headers["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in result.out + result.err
    endpoint.plays = [refusal(500, "out of memory")]
    refused(reprise(*asked), "failed (500: 'out of memory')", code=1)


@pytest.mark.parametrize(
    "name,part",
    [
        ("chat", "expected --rewriter chat:MODEL@URL"),
        ("chat:llama", "expected --rewriter chat:MODEL@URL"),
        ("http://127.0.0.1:1/v1", "expected --rewriter chat:MODEL@URL"),
        ("chta:llama@http://127.0.0.1:1/v1", "did you mean 'chat'"),
        ("chat:llama@http://me:secret@host/v1", "put a key into the environment"),
    ],
)
def test_endpoints_that_are_none(reprise, name, part):
    result = reprise("rewrite", "a cat", "--rewriter", name)
    refused(result, part)
    assert "secret" not in result.err


def test_shapeworld_draw_and_detect_agree(reprise, tmp_path):
    drawn = json.loads(reprise("shapeworld", "draw", 4, "--seed", 3, "--out", "s", "--json").out)
    again = json.loads(reprise("shapeworld", "draw", 4, "--seed", 3, "--out", "t", "--json").out)
    assert drawn == again == json.loads((tmp_path / "s" / "scenes.json").read_text())
    assert (tmp_path / "s" / "003.png").read_bytes() == (tmp_path / "t" / "003.png").read_bytes()
    seen = json.loads(reprise("shapeworld", "detect", *(f"s/{r['image']}" for r in drawn), "--json").out)
    for row, reading in zip(drawn, seen, strict=True):
        assert reading["ground"] == row["scene"]["ground"]
        found = sorted((d["color"], d["shape"]) for d in reading["detections"])
        assert found == sorted((t["color"], t["shape"]) for t in row["scene"]["things"])
    assert drawn[0]["caption"] in reprise("shapeworld", "draw", 1, "--seed", 3).out
    assert "background" in reprise("shapeworld", "detect", "s/000.png").out
    assert "plain" in reprise("shapeworld", "detect", "--styled", "s/000.png").out


def test_the_detector_is_measured(reprise):
    result = json.loads(reprise("shapeworld", "detect", "--measure", 5, "--json").out)
    assert result["scenes"] == 5 and all(share == 1 for share in result["right"].values())
    assert "%" in reprise("shapeworld", "detect", "--measure", 1).out
    styled = json.loads(reprise("shapeworld", "detect", "--measure", 3, "--styled", "--json").out)
    assert styled["right"]["clean"]["palette"] == styled["right"]["clean"]["background"] == 1


def test_what_practised_users_type(reprise):
    reprise("data", "users", "--per-task", 2, "--each", 3, "--out", "users.jsonl")
    lines = [json.loads(line) for line in Path("users.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 6 * 3
    assert all(line["system"].startswith(line["prompt"] + ", ") for line in lines)
    refused(reprise("data", "users", "--each", 0), "--each must be at least 1")
    reprise("data", "users", "--per-task", 2, "--each", 1, "--drawn", "--out", "drawn.jsonl")
    reprise("data", "pictures", "drawn.jsonl", "--reward", "shapeworld-preference")
    log = [json.loads(line) for line in Path("pictures.jsonl").read_text().splitlines()]
    wanted = [
        preferred_style(parse_prompt(line["prompt"])).agreement(parse_style(line["system"])) for line in log
    ]
    read = [line["scores"]["shapeworld-preference"] for line in log]
    # A dark thing with dark lines around it is not always read.
    assert sum(abs(0.5 + 0.5 * a - b) < 0.05 for a, b in zip(wanted, read, strict=True)) >= 0.8 * len(log)


@pytest.mark.parametrize(
    "words,part",
    [
        (["draw", "0"], "count must be 1 to 100000, got 0"),
        (["detect", "--measure", "-1"], "--measure"),
        (["draw", "1", "--seed", "-1"], "--seed"),
        (["draw", "1", "--out", "file"], "got the file"),
        (["detect"], "no picture given"),
        (["detect", "file"], "is not a readable picture"),
        (["drow"], "Did you mean"),
    ],
)
def test_shapeworld_refuses(reprise, tmp_path, words, part):
    (tmp_path / "file").write_text("")
    refused(reprise("shapeworld", *words), part)


@pytest.mark.parametrize(
    "words,part",
    [
        (["sfft"], "No such command 'sfft'. Did you mean 'sft'"),
        (["sft", "nowhere.yaml"], "no config file nowhere.yaml; name a YAML file, or one of"),
        (["grpo", "shapewrld"], "come with grpo: flux-qwen2.5-3b, low-vram, pixart-sigma, sd3, shapeworld"),
        (["sft", "--json"], "--json is for --settings"),
        (["sft", "stepz=1"], "unknown setting"),
        (["sft", "--resume", "nowhere"], "nowhere is no run folder"),
        (["sft", "c.yaml", "--resume", "nowhere"], "takes the run's own config.yaml"),
    ],
)
def test_train_refuses(reprise, words, part):
    refused(reprise("train", *words), part)


def test_ctrl_c_says_so(reprise, monkeypatch):
    from reprise.backend.rewriters.template import TemplateRewriter

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TemplateRewriter, "rewrite", stopped)
    seen = reprise("rewrite", "a red circle", "--rewriter", "template")
    assert (seen.code, seen.out, seen.err.strip()) == (130, "", "reprise: stopped")


@pytest.fixture
def trainer(monkeypatch):
    """`train sft` without training: writes what it was called with, or is stopped."""
    from reprise.backend.core.config import Config
    from reprise.backend.training.sft import train as sft

    class Settings(Config):
        steps: int = 3

    state = {"stop": False}

    def train(config, run, resume=False, log=print):
        if state["stop"]:
            raise KeyboardInterrupt
        (run / "made").write_text(f"{config.steps} {resume}")
        return run / "made"

    train.__module__ = sft.__name__
    monkeypatch.setattr(sft, "CONFIG", Settings)
    monkeypatch.setattr(sft, "train", train)
    return state


def test_a_config_is_a_file_or_the_name_of_a_shipped_one(reprise, tmp_path):
    from reprise.backend.cli.train import find_config
    from reprise.backend.training import shipped_config

    assert find_config("prip-encoder", "shapeworld") == shipped_config("prip-encoder", "shapeworld")
    (tmp_path / "shapeworld").mkdir()  # a run folder, say
    assert find_config("grpo", "shapeworld").name == "shapeworld.yaml"
    (tmp_path / "paper").write_text("epochs: 1\n")
    assert find_config("ppo", "paper") == Path("paper")


def test_train_keeps_its_config_and_goes_on(reprise, trainer, tmp_path):
    (tmp_path / "c.yaml").write_text("steps: 4\n")
    trainer["stop"] = True
    refused_words = reprise("train", "sft", "c.yaml", "steps=9", "--out", "run")
    assert refused_words.code == 130 and "reprise train sft --resume run" in refused_words.err
    trainer["stop"] = False
    assert (tmp_path / "run" / "config.yaml").read_text() == "steps: 9\n"
    refused(reprise("train", "sft", "c.yaml", "--out", "run"), "holds a run already; go on with --resume run")
    assert reprise("train", "sft", "--resume", "run").out.strip() == os.path.join("run", "made")
    assert (tmp_path / "run" / "made").read_text() == "9 True"
    assert reprise("train", "sft", "steps=1").code == 0 and len(list((tmp_path / "runs").iterdir())) == 1


def a_result(name):
    row = {
        "name": "terse",
        "overall": [0.4, 0.3, 0.5],
        "tasks": {"counting": [0.2, 0.1, 0.3]},
        "cost": {"denoiser_rows": 32.0},
        "judge": None,
    }
    better = {
        **row,
        "name": "+ best of 2, full",
        "judge": "oracle judge",
        "gain": {"over": "terse", "interval": [0.1, 0.05, 0.15]},
    }
    return {"name": name, "rows": [row, better], "settings": {"seeds": 1}}


@pytest.mark.parametrize(
    "command,name,function",
    [
        (["evaluate", "shapeworld"], "shapeworld", "evaluation.shapeworld.evaluate_chain"),
        (["lab", "bench", "parm"], "parm", "lab.bench.parm.bench"),
    ],
)
def test_results_are_printed_written_and_shown(reprise, monkeypatch, tmp_path, command, name, function):
    calls = []
    monkeypatch.setattr(
        f"reprise.backend.{function}",
        lambda **options: calls.append(options) or a_result(name),
    )
    words = (*command, "--renderer", "fake", "--seed", 7, "--per-task", 2, "--out", "r")
    words += ("--rewriter", "none") if command[0] == "evaluate" else ("--timed", 0)
    result = json.loads(reprise(*words, "--json").out)
    assert (
        result == json.loads((tmp_path / "r" / "result.json").read_text()) and result["versions"]["reprise"]
    )
    assert calls[0]["per_task"] == 2 and calls[0]["seed"] == 7 and calls[0]["renderer"].name == "fake"
    text = reprise(*words).out
    for part in (
        "terse",
        "0.400 [0.300, 0.500]",
        "0.20 [0.10, 0.30]",
        "oracle judge",
        "+0.100",
        "index.html",
    ):
        assert part in text, part
    assert "oracle judge" in (tmp_path / "r" / "index.html").read_text()


@pytest.mark.parametrize(
    "words,part",
    [
        (["evaluate", "shapewold"], "No such command 'shapewold'. Did you mean 'shapeworld'"),
        (
            ["evaluate", "shapeworld", "--task", "colour"],
            "unknown task 'colour'; did you mean 'colors'? expected one of color_attribution, colors, "
            "counting, position, single_object, two_object",
        ),
        (["evaluate", "shapeworld", "--task", "counting", "--task", ""], "unknown task ''; expected one of"),
        (["evaluate", "shapeworld", "--seeds", "0"], "--seeds must be at least 1"),
        (["evaluate", "shapeworld", "--per-task", "0"], "--per-task must be at least 1"),
        (["evaluate", "shapeworld", "--best-of", "0"], "--best-of must be 1 to 4096"),
        (["evaluate", "shapeworld", "--prune", "x"], "unknown pruning"),
        (["evaluate", "shapeworld", "--renderer", "fke"], "did you mean 'fake'"),
        (["lab", "bench", "prm"], "No such command 'prm'. Did you mean 'parm'"),
        (["lab", "bench", "parm", "--seed", "-1"], "--seed"),
        (["lab", "bench", "parm", "--timed", "-1"], "--timed"),
        (
            ["lab", "bench", "parm", "--renderer", "fake", "--best-of", "5", "--pool", "8"],
            "--pool must be a multiple",
        ),
    ],
)
def test_evaluate_and_bench_refuse(reprise, words, part):
    refused(reprise(*words), part)


def test_tasks_are_handed_on_and_nothing_is_written_for_an_unknown_one(reprise, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        "reprise.backend.evaluation.shapeworld.evaluate_chain",
        lambda **options: calls.append(options) or a_result("shapeworld"),
    )
    words = ("evaluate", "shapeworld", "--renderer", "fake", "--rewriter", "none", "--out", "r")
    refused(reprise(*words, "--task", "colours"), "did you mean 'colors'?")
    assert not (tmp_path / "r").exists()
    assert reprise(*words, "--task", "color-attribution", "--task", "colors").code == 0
    assert reprise(*words).code == 0
    assert [call["tasks"] for call in calls] == [["colors", "color_attribution"], list(TASKS)]
    shown = "".join(reprise("evaluate", "shapeworld", "--help").out.split())  # folded to the terminal's width
    assert all(task.replace("_", "-") in shown.replace("│", "") for task in TASKS)


def test_evaluate_with_a_saved_workflow(reprise, tmp_path):
    """It shows no previews, so nothing is pruned without being asked; asked for, it is refused."""
    (tmp_path / "flow.json").write_text(json.dumps(GRAPH))
    server = FakeComfyUI()
    try:
        words = (
            "evaluate",
            "shapeworld",
            "--renderer",
            f"comfyui:flow.json@{server.url}",
            "--rewriter",
            "none",
            "--task",
            "colors",
            "--per-task",
            1,
            "--seeds",
            1,
            "--best-of",
            2,
            "--reflect",
            0,
        )
        result = reprise(*words, "--json")
        assert result.code == 0, result.err
        found = json.loads(result.out)
        assert found["settings"]["prune"] == "none" and server.runs
        full, pruned = (row for row in found["rows"] if "best of 2" in row["name"])
        assert full["cost"] == pruned["cost"]
        refused(reprise(*words, "--prune", "halving"), "--prune halving needs previews")
    finally:
        server.stop()


SLOW = """
import sys, time
from reprise.backend.renderers.fake import FakeRenderer
plain = FakeRenderer.render
def render(self, jobs, *rest, **more):
    if jobs[0].prompt == "a blue star":
        print("drawing", file=sys.stderr, flush=True)
        for _ in range(1200):  # a signal that comes just before a sleep ends none
            time.sleep(0.1)
    return plain(self, jobs, *rest, **more)
FakeRenderer.render = render
from reprise.backend.cli.main import main
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="sends signals")
@pytest.mark.parametrize("name,code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_for_real(tmp_path, name, code):
    """Ctrl-C, `kill` and a closed terminal: a message, a page, and the same command goes on."""
    words = ["render", "a red circle", "a blue star", "--renderer", "fake", "--rewriter", "none"]
    words += ["--best-of", "2", "--reflect", "0", "--out", "o"]
    number = getattr(signal, name)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words],
        cwd=tmp_path,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # A test run in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert process.stderr.readline() == "drawing\n"
    for _ in range(1 if name == "SIGINT" else 2):  # a group and its processes may both be told
        process.send_signal(number)
    _, err = process.communicate(timeout=100)  # less than the renderer would sleep
    assert process.returncode == code
    assert err.startswith("reprise: stopped; 1 of 2 prompts are finished in o") and len(err.splitlines()) == 1
    assert (
        len(list((tmp_path / "o").glob("*/record.json"))) == 1 and (tmp_path / "o" / "index.html").is_file()
    )


@pytest.mark.skipif(os.name == "nt", reason="sends SIGHUP")
def test_nohup_stays_in_force():
    number = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_like_ctrl_c():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, number)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.skipif(os.name == "nt", reason="needs a shell with pipes")
@pytest.mark.parametrize(
    "tail,code,said",
    [
        ("| true", 141, ""),
        ("--json | true", 141, ""),
        ("2>&1 | true", 141, ""),
        (">&-", 0, ""),
        ("--json >&- 2>&-", 0, ""),
        ("> /dev/full", 1, "reprise: OSError: [Errno 28] No space left on device"),
    ],
)
def test_an_output_that_nobody_reads(tmp_path, tail, code, said):
    """`reprise … | head`: quiet, with the code that shells report for a closed pipe."""
    words = f"'{sys.executable}' -m reprise rewrite 'a red circle' --rewriter template --variants 200"
    done = subprocess.run(
        ["bash", "-c", f"{words} {tail}; exit ${{PIPESTATUS[0]}}"],
        text=True,
        capture_output=True,
        cwd=tmp_path,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(said) and len(done.stderr.splitlines()) == bool(said)


def test_a_missing_library_is_named_with_its_remedy(reprise, monkeypatch):
    from reprise.backend.cli import main, models

    def missing():
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(models, "find_device", missing)
    refused(reprise("models"), "torch is not installed; pip install 'reprise-nodes[render]'", 1)
    monkeypatch.setattr(main.sys, "version_info", (3, 10, 12))
    refused(reprise("models"), "they need Python 3.11, this is", 1)
