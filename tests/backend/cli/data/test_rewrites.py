"""`reprise data rewrites`: a file of prompts and a chat model in, examples that `train sft` reads out."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from reprise.backend.net import http
from reprise.backend.rewriters.prompting import build_messages
from reprise.backend.training.sft.data import RewriteExample, read_examples

from ....fake_comfyui import GRAPH, FakeComfyUI
from ....fake_endpoint import MODEL, Play, answer, playing, refusal

PROMPTS = [f"a {color} {shape}" for color in ("red", "blue", "green") for shape in ("circle", "star")]


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(http, "FIRST_RETRY_SECONDS", 0.01)
    for name in ("REPRISE_ENDPOINT_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    others = [{"prompt": "a ring", "judged_as": "a circle"}, {"prompt": PROMPTS[0], "judged_as": "a disc"}]
    path.write_text("\n".join([*PROMPTS, *map(json.dumps, others)]))
    return path


def asked(body) -> str:
    return body["messages"][-1]["content"]


def good(body, size="large"):
    """A rewrite of what was asked, another one for each seed."""
    kind = asked(body).removeprefix("a ")
    return answer(f"<reason>One {kind}.</reason><prompt>a {size} {kind}, {body['seed']}</prompt>")


def chat(server) -> tuple[str, str]:
    return "--rewriter", f"chat:{MODEL}@{server.url}"


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked_of(server) -> list[tuple[str, int, float]]:
    """Every request: the prompt, its seed and temperature. Equal ones would be asked twice."""
    return sorted((asked(r.body), r.body["seed"], r.body["temperature"]) for r in server.requests)


def test_examples_of_a_chat_model(reprise, endpoint, prompts, tmp_path):
    endpoint.plays = [good]
    done = reprise(
        "data", "rewrites", prompts, *chat(endpoint), "--variants", 2, "--out", "d/data.jsonl", "--json"
    )
    assert done.code == 0 and "1 of 8 prompts are repeated" in done.err, done.err
    assert json.loads(done.out) == {
        "prompts": 7,
        "answers": 14,
        "unusable": {},
        "duplicates": 0,
        "train": {"file": os.path.join("d", "data.jsonl"), "prompts": 7, "examples": 14},
    }
    rows = lines(tmp_path / "d" / "data.jsonl")
    assert [row["prompt"] for row in rows] == [p for p in [*PROMPTS, "a ring"] for _ in range(2)]
    assert all(row.keys() == {"prompt", "reason", "rewrite"} for row in rows)
    assert len(read_examples(tmp_path / "d" / "data.jsonl")) == 14
    assert endpoint.requests[0].body["messages"] == build_messages(asked(endpoint.requests[0].body))
    again = reprise("data", "rewrites", prompts, *chat(endpoint), "--variants", 2, "--out", "d/data.jsonl")
    assert again.code == 0 and "14 examples of 7 prompts" in again.out and len(endpoint.requests) == 14
    assert "14 answers to 7 prompts" in again.err


def test_no_prompt_is_in_both_files(reprise, endpoint, prompts, tmp_path):
    endpoint.plays = [good]
    call = (
        "data",
        "rewrites",
        prompts,
        *chat(endpoint),
        "--variants",
        3,
        "--eval-share",
        0.3,
        "--out",
        "a.jsonl",
    )
    done = reprise(*call)
    assert done.code == 0 and "a.eval.jsonl" in done.out, done.err
    train, aside = ({row["prompt"] for row in lines(tmp_path / name)} for name in ("a.jsonl", "a.eval.jsonl"))
    assert train and aside and not train & aside and train | aside == {*PROMPTS, "a ring"}
    more = reprise(*call, "--eval-out", "other.jsonl")
    assert more.code == 0 and lines(tmp_path / "other.jsonl") == lines(tmp_path / "a.eval.jsonl")


def test_what_cannot_be_read_is_asked_for_again_and_told(reprise, prompts, tmp_path):
    def play(body):
        if body["temperature"] == 0 and "star" in asked(body):
            return answer("A lovely star!")
        return refusal(400, "unsafe") if asked(body) == "a ring" else good(body)

    with playing(play) as server:
        done = reprise("data", "rewrites", prompts, *chat(server), "--out", "data.jsonl", "--json")
        result = json.loads(done.out)
        assert len(asked_of(server)) == len(set(asked_of(server))) == 10
    assert result["answers"] == 10 and result["train"]["examples"] == 6
    assert result["unusable"].pop("the answer has no <prompt>") == 3
    [(why, count)] = result["unusable"].items()
    assert "refused the request (400: 'unsafe')" in why and count == 1
    rows = lines(tmp_path / "data.jsonl")
    assert all("large" in row["rewrite"] for row in rows) and "lovely" not in json.dumps(rows)


def test_a_server_that_fails_loses_nothing(reprise, prompts, tmp_path):
    with playing(good) as server:
        whole = reprise("data", "rewrites", prompts, *chat(server), "--variants", 3, "--out", "whole.jsonl")
        assert whole.code == 0
        wanted = {row[:2] for row in asked_of(server)}
        server.requests.clear()
        answered = threading.Semaphore(7)
        gone = Play({"error": {"message": "gone"}}, 503, delay=0.3)  # the good ones under way come first
        server.plays = [lambda body: good(body) if answered.acquire(blocking=False) else gone]
        call = ("data", "rewrites", prompts, *chat(server), "--variants", 3, "--out", "data.jsonl")
        broken = reprise(*call)
        assert broken.code == 1 and "503: 'gone'" in broken.err.splitlines()[-1]
        kept = lines(tmp_path / "data.jsonl.answers" / "answers.jsonl")
        assert len(kept) == 7 and "7 answers are kept in data.jsonl.answers" in broken.err
        assert not (tmp_path / "data.jsonl").exists()
        server.requests.clear()
        server.plays = [good]
        assert reprise(*call).code == 0
        had = {(row["prompt"], int(row["rewrite"].split()[-1])) for row in kept}
        assert {row[:2] for row in asked_of(server)} == wanted - had and len(had) == 7
    assert (tmp_path / "data.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_says_how_to_go_on(reprise, prompts, tmp_path):
    """In a process of its own: answers of the first three prompts come, then it is stopped."""
    stopped = threading.Event()

    def play(body):
        if asked(body) not in PROMPTS[:3]:
            stopped.wait(60)
        return good(body)

    with playing(play) as server:
        words = ["data", "rewrites", str(prompts), *chat(server), "--out", "data.jsonl"]
        process = subprocess.Popen(
            [sys.executable, "-m", "reprise", *words],
            cwd=tmp_path,
            text=True,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        kept = tmp_path / "data.jsonl.answers" / "answers.jsonl"
        for _ in range(600):
            if kept.exists() and len(kept.read_text().splitlines()) == 3:
                break
            threading.Event().wait(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        stopped.set()
        assert process.returncode == 130
        assert "stopped; 3 answers are kept in data.jsonl.answers, the same command goes on" in err
        server.requests.clear()
        assert reprise(*words).code == 0
        assert {asked(r.body) for r in server.requests} == {*PROMPTS[3:], "a ring"}
    assert len(lines(tmp_path / "data.jsonl")) == 7


@pytest.fixture
def large_is_drawn(monkeypatch):
    """`--renderer fake` draws a large thing as it should be, any other as another."""
    import random

    import torch

    from reprise.backend.renderers.fake import FakeRenderer
    from reprise.backend.shapeworld import drawing, scenes
    from reprise.backend.shapeworld.prompts import parse_prompt, sample_layout

    def draw(self, prompt, seed):
        rng, plain = random.Random(f"{prompt} {seed}"), prompt.split(",")[0].replace("large ", "")
        scene = sample_layout(parse_prompt(plain), rng) if "large" in prompt else scenes.random_scene(rng)
        return torch.from_numpy(drawing.draw(scene).copy()).float() / 255

    monkeypatch.setattr(FakeRenderer, "_squares", draw)


def test_keep_best_by_the_pictures(reprise, tmp_path, large_is_drawn):
    (tmp_path / "prompts.txt").write_text("a red circle\na large blue star\n")

    def play(body):
        if asked(body) == "a red circle" and body["temperature"]:
            return good(body)
        return answer(f"<reason>r</reason><prompt>{asked(body).replace('large', 'tiny')}</prompt>")

    with playing(play) as server:
        call = (
            "data",
            "rewrites",
            "prompts.txt",
            *chat(server),
            "--variants",
            2,
            "--keep-best",
            "--renderer",
            "fake",
            "--images",
            2,
            "--out",
            "data.jsonl",
        )
        done = reprise(*call, "--json")
        assert done.code == 0, done.err
        result = json.loads(done.out)
    assert (result["not_better"], result["not_judged"]) == (1, 0)
    [row] = lines(tmp_path / "data.jsonl")
    assert row["prompt"] == "a red circle" and "large" in row["rewrite"]
    chosen = lines(tmp_path / "data.jsonl.answers" / "pictures.jsonl")
    assert [one["best"] for one in chosen] == [row["rewrite"], None]
    assert len(list((tmp_path / "data.jsonl.answers" / "pictures").glob("*/*.png"))) == 4 * 2
    strict = reprise(*call, "--reward", "shapeworld-strict")
    assert strict.code == 0 and "1 prompts left out: no rewrite's pictures are as good" in strict.err


def test_keep_best_by_a_workflows_pictures(reprise, tmp_path, monkeypatch):
    """Each picture is kept as it comes: those drawn before a server's fault are not drawn again."""
    from reprise.backend.renderers.comfyui import pool
    from reprise.backend.rewards.shapeworld import ShapeWorldSoft

    monkeypatch.setattr(ShapeWorldSoft, "score", lambda self, images, _: images.mean((1, 2, 3)).tolist())
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.02)
    (tmp_path / "flow.json").write_text(json.dumps(GRAPH))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    server = FakeComfyUI()
    try:
        with playing(good) as writer:
            call = (
                "data",
                "rewrites",
                "prompts.txt",
                *chat(writer),
                "--out",
                "data.jsonl",
                "--keep-best",
                "--renderer",
                f"comfyui:flow.json@{server.url}",
                "--reward",
                "shapeworld",
            )
            server.at_run[5] = lambda: [
                (
                    "execution_error",
                    {"node_id": "5", "exception_type": "RuntimeError", "exception_message": "boom"},
                )
            ]
            failed = reprise(*call)
            assert failed.code == 1 and "boom" in failed.err, failed.err
            drawn = {name.stem for name in tmp_path.glob("data.jsonl.answers/pictures/*/*.png")}
            server.runs.clear(), server.at_run.clear()
            assert reprise(*call).code == 0
        assert 0 < len(drawn) and len(server.runs) == 2 * len(PROMPTS) - len(drawn)
    finally:
        server.stop()
    assert lines(tmp_path / "data.jsonl.answers" / "pictures.jsonl")


def refused(result, part, code=2):
    assert (result.code, result.out) == (code, ""), result.err
    assert part in result.err.splitlines()[-1], result.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nowhere.txt"], "cannot read the prompts nowhere.txt"),
        (["p.txt", "--rewriter", "none"], "gives no reasons to learn"),
        (["p.txt", "--rewriter", "reprmpt"], "did you mean 'reprompt'"),
        (["p.txt", "--variants", "0"], "--variants must be 1 to 256"),
        (["p.txt", "--retries", "-1"], "--retries must be 0"),
        (["p.txt", "--seed", "-1"], "--seed"),
        (["p.txt", "--eval-share", "1"], "--eval-share must be 0 or more and below 1"),
        (["p.txt", "--eval-share", "nan"], "--eval-share must be"),
        (["p.txt", "--eval-out", "e.jsonl"], "add --eval-share"),
        (["p.txt", "--eval-share", ".1", "--eval-out", "./d.jsonl"], "are both"),
        (["p.txt", "--filter", "lenght"], "did you mean 'length'"),
        (["p.txt", "--filter", "shapeworld"], "reward 'shapeworld' reads pictures, not rewrites"),
        (["p.txt", "--filter", "vlm"], "the judge vlm names no model"),
        (["p.txt", "--renderer", "fake"], "add --keep-best"),
        (["p.txt", "--steps", "2"], "add --keep-best"),
        (["p.txt", "--keep-best", "--renderer", "fke"], "did you mean 'fake'"),
        (["p.txt", "--keep-best", "--renderer", "owner/model"], "needs a --reward"),
        (["p.txt", "--keep-best", "--reward", "shapewrld"], "did you mean 'shapeworld'"),
        (["p.txt", "--keep-best", "--images", "0"], "--images must be 1 to 64"),
        (["p.txt", "--out", "p.txt"], "p.txt was not made by this command"),
        (["long.txt"], "the limit is 512"),
    ],
)
def test_it_refuses(reprise, tmp_path, words, part):
    (tmp_path / "p.txt").write_text("a cat\n")
    (tmp_path / "long.txt").write_text("word " * 600)
    rewriter = () if "--rewriter" in words else ("--rewriter", f"chat:{MODEL}@http://127.0.0.1:1/v1")
    refused(reprise("data", "rewrites", "--out", "d.jsonl", *words, *rewriter), part)
    assert not (tmp_path / "d.jsonl.answers").exists() and (tmp_path / "p.txt").read_text() == "a cat\n"


def test_what_was_changed_by_hand_is_not_written_over(reprise, endpoint, prompts, tmp_path):
    endpoint.plays = [good]
    call = ("data", "rewrites", prompts, *chat(endpoint), "--out", "data.jsonl")
    assert reprise(*call).code == 0
    (tmp_path / "data.jsonl").write_text("mine\n")
    refused(reprise(*call, "--seed", 0, "--variants", 2), "or was changed since")
    refused(reprise(*call, "--seed", 1), "was begun with --seed 0, not 1")
    assert (tmp_path / "data.jsonl").read_text() == "mine\n"


def test_nothing_usable_is_a_failure_and_writes_no_data(reprise, endpoint, prompts, tmp_path):
    endpoint.plays = [answer("no")]
    done = reprise("data", "rewrites", prompts, *chat(endpoint), "--retries", 1, "--out", "data.jsonl")
    assert done.code == 1 and "14 cannot be used: the answer has no <prompt> (14)" in done.err
    assert not (tmp_path / "data.jsonl").exists()


def test_the_help_says_what_a_line_holds(reprise):
    shown = reprise("data", "rewrites", "--help").out
    assert all(f'"{name}"' in shown for name in RewriteExample.model_fields)


def test_from_prompts_to_a_trained_rewriter(reprise, tmp_path):
    """The embedded rewriter as the teacher, a tiny model that `train sft` teaches for two steps."""
    from reprise.backend.lab.weights.rewriter import untrained
    from reprise.backend.rewriters.reprompt import RePromptRewriter

    untrained(tmp_path / "start")
    made = reprise("data", "rewrites", "shapeworld:1", "--rewriter", "reprompt", "--eval-share", 0.2)
    assert made.code == 0, made.err
    trained = reprise(
        "train",
        "sft",
        "model=start",
        "data=sft.jsonl",
        "eval_data=sft.eval.jsonl",
        "system=Rewrite.",
        "max_steps=2",
        "batch_size=4",
        "max_length=384",
        "max_new_tokens=128",
        "device=cpu",
        "save_every=2",
        "log_every=1",
        "gradient_checkpointing=false",
        "--out",
        "run",
    )
    assert trained.code == 0, trained.err
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert any("eval_loss" in row for row in rows)
    assert RePromptRewriter(tmp_path / "run" / "final", device="cpu").system == "Rewrite."
