"""`reprise render`: pictures, records, the page; what is finished stays, what is wrong is one line."""

import errno
import json
import math
import os
from pathlib import Path

import pytest

from ...fake_comfyui import GRAPH, STEPS, FakeComfyUI
from ..renderers.conftest import build
from .rendering import FAST, one_line


def without_times(record):
    return {**record, "cost": {**record["cost"], "seconds": None}}


def test_one_prompt_lies_in_the_folder_itself(reprise, drawn, tmp_path):
    result = reprise("render", "a red circle", *FAST, "--out", "o")
    assert result.code == 0 and "a red circle" in result.out and "index.html" in result.out
    record = json.loads((tmp_path / "o" / "record.json").read_text(encoding="utf-8"))
    assert record["prompt"] == "a red circle" and record["candidates"][record["best"]]["score"] > 0.5
    assert (tmp_path / "o" / "best.png").is_file() and (tmp_path / "o" / "index.html").is_file()
    for candidate in record["candidates"]:
        assert (candidate["image"] is None) == (candidate["pruned_at"] is not None)
        shown = candidate["image"] or candidate["preview"]
        assert (tmp_path / "o" / shown).is_file()
        assert (candidate["preview"] is None) == (candidate["pruned_at"] is None)
    assert record["settings"]["best_of"] == 4 and record["settings"]["renderer_fingerprint"]


def test_json_is_the_record_and_nothing_else(reprise, drawn, tmp_path):
    result = reprise("render", "a red circle", *FAST, "--out", "o", "--json")
    assert json.loads(result.out) == json.loads((tmp_path / "o" / "record.json").read_text())


def test_json_of_several_is_an_array_in_their_order(reprise, drawn, tmp_path):
    result = reprise("render", "a red circle", "two blue squares", *FAST, "--out", "o", "--json")
    assert [record["prompt"] for record in json.loads(result.out)] == ["a red circle", "two blue squares"]
    assert len([p for p in (tmp_path / "o").iterdir() if (p / "record.json").is_file()]) == 2
    (tmp_path / "p.txt").write_text("a red circle\n")
    assert isinstance(json.loads(reprise("render", "--prompts", "p.txt", *FAST, "--json").out), list)


def test_libraries_that_print_do_not_spoil_json(reprise, drawn, monkeypatch):
    plain = drawn.render
    monkeypatch.setattr(drawn, "render", lambda *a, **k: (print("loading 100%"), plain(*a, **k))[1])
    result = reprise("render", "a red circle", *FAST, "--json")
    assert json.loads(result.out) and "loading 100%" in result.err


def test_the_same_call_gives_the_same_record_and_pixels(reprise, drawn, tmp_path):
    records = []
    for out in ("o", "p"):
        result = reprise("render", "a green heart", "--seed", 5, *FAST, "--out", out, "--json")
        records.append(without_times(json.loads(result.out)))
    assert records[0] == records[1]
    for candidate in records[0]["candidates"]:
        if candidate["image"]:
            name = candidate["image"]
            assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "p" / name).read_bytes()


def test_without_out_another_try_replaces_nothing(reprise, drawn, tmp_path):
    for seed in (0, 2):
        assert reprise("render", "a red circle", *FAST, "--seed", seed).code == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_prompt_files_skip_empty_lines_and_draw_duplicates_once(reprise, drawn, tmp_path):
    (tmp_path / "p.txt").write_bytes(
        "\ufeffa red circle\r\n\r\n  \r\na blue star\r\na red circle\r\n".encode()
    )
    result = reprise("render", "--prompts", "p.txt", *FAST, "--out", "o", "--json")
    assert [r["prompt"] for r in json.loads(result.out)] == ["a red circle", "a blue star"]
    assert "2 empty lines skipped" in result.err and "1 duplicate prompt left out" in result.err


def test_a_prompt_that_cannot_be_judged_does_not_hold_up_the_others(reprise, drawn, tmp_path):
    result = reprise("render", "a red circle", "a cat", "a blue star", *FAST, "--out", "o")
    one_line(result, 2, "1 of 3 prompts could not be judged", "'a cat'")
    page = (tmp_path / "o" / "index.html").read_text(encoding="utf-8")
    assert "a blue star" in page and "Passed over: a cat: " in page and 'id="prompt-3"' not in page
    one_line(reprise("render", "a cat", *FAST, "--out", "q"), 2, "name one of its shapes")


@pytest.mark.parametrize(
    "words,parts",
    [
        ([], ["no prompt given"]),
        ([""], ["the prompt is empty"]),
        (["   \t\n"], ["the prompt is empty"]),
        (["word " * 10_000], ["10,000 words", "the limit is 512"]),
        (["x" * 9000], ["9,000 characters", "the limit is 8,000"]),
        (["a\udcffb"], ["not UTF-8"]),
        (["--prompts", "nowhere.txt"], ["cannot read", "nowhere.txt"]),
        (["a", "--best-of", "0"], ["--best-of must be 1 to", "got 0"]),
        (["a", "--best-of", "-3"], ["--best-of", "got -3"]),
        (["a", "--best-of", "many"], ["--best-of", "integer"]),
        (["a", "--variants", "0"], ["--variants"]),
        (["a", "--steps", "0"], ["--steps must be 1"]),
        (["a", "--reflect", "-1"], ["--reflect must be 0"]),
        (["a", "--correction", "redraw"], ["unknown correction 'redraw'", "did you mean 'draw-again'"]),
        (["a", "--correction", "image-to-image", "--strength", "1.5"], ["of 0.12", "to 1, got 1.5"]),
        (["a", "--seed", "-1"], ["--seed must be 0 to", "got -1"]),
        (["a", "--seed", str(2**63)], ["--seed must be 0 to", "got 9223372036854775808"]),
        (["a", "--seed", str(2**63 - 1)], ["--seed must be at most", "for 16 candidates"]),
        (["a", "--seed", "1.5"], ["--seed"]),
        (["a", "--prune", "halve"], ["unknown pruning 'halve'", "did you mean 'halving'"]),
        (["a", "--renderer", "shapewrld"], ["unknown renderer 'shapewrld'", "did you mean 'shapeworld'"]),
        (["a", "--renderer", "comfyui"], ["expected comfyui:WORKFLOW.json@URL"]),
        (["a", "--renderer", "comfyui:w.json"], ["expected comfyui:WORKFLOW.json@URL", "got comfyui:w.json"]),
        (["a", "--renderer", "comfyui:w.json@http://localhost"], ["cannot read the workflow w.json"]),
        (
            ["a", "--renderer", "comfyui:w.json,promt=6@http://localhost"],
            ["'promt'", "did you mean 'prompt'"],
        ),
        (["a", "--renderer", "diffusers"], ["names no model"]),
        (["a", "--rewriter", "repromt"], ["unknown rewriter 'repromt'", "did you mean 'reprompt'"]),
        (["a", "--judge", "shapworld"], ["unknown reward 'shapworld'", "did you mean 'shapeworld'"]),
        (["a", "--judge", "length"], ["'length' reads rewrites, not pictures"]),
        (["a", "--previews", "shapworld"], ["unknown reward 'shapworld'", "did you mean 'shapeworld'"]),
        (
            ["a", "--previews", "shapeworld", "--prune", "none"],
            ["--previews has no use where nothing is pruned"],
        ),
        (["a", "--prune", "potential:2"], ["potential:THRESHOLD with a probability of 0 to 1"]),
        (["a", "--prune", "potential:0.5"], ["'shapeworld' gives none; take --prune potential"]),
        (["a", "--judge", "vlm:nowhere"], ["there is no folder nowhere"]),
        (["a", "--reward", "shapworld=1"], ["unknown reward 'shapworld'", "did you mean"]),
        (["a", "--reward", "shapeworld=much"], ["expected NAME=WEIGHT"]),
        (["a", "--reward", "shapeworld=0"], ["a weight above 0"]),
        (["a", "--reward", "shapeworld=nan"], ["a weight above 0"]),
        (["a", "--reward", "shapeworld=1", "--reward", "shapeworld=2"], ["given twice"]),
        (["a", "--out", ""], ["got an empty name"]),
        (["a", "--out", "x" * 300], ["File name too long", "--out"]),
        (["a", "--prompts", "x" * 300], ["File name too long"]),
        (["a", "--lora", "x" * 300, "--renderer", "shapeworld"], ["there is no LoRA xxx"]),
        (["a", "--out", "file"], ["got the file", "--out"]),
        (["a", "--out", "file/below"], ["cannot write", "--out"]),
        (["a", "--out", "/proc/nowhere"], ["cannot write", "--out"]),
        (["a", "--seeed", "3"], ["--seeed", "--seed"]),
    ],
)
def test_bad_input_is_one_line_and_2(reprise, tmp_path, words, parts):
    (tmp_path / "file").write_text("")
    words = words if "--renderer" in words or "--judge" in words else [*words, "--renderer", "fake"]
    one_line(
        reprise("render", *words, "--rewriter", "none")
        if "--rewriter" not in words
        else reprise("render", *words),
        2,
        *parts,
    )
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("record.json"))


def test_a_model_of_ones_own_needs_a_rewriter_and_a_judge(reprise, tmp_path):
    words = ("render", "a", "--renderer", "some/model")
    one_line(reprise(*words, "--rewriter", "none"), 2, "needs a --judge")
    one_line(reprise(*words, "--judge", "clip-score"), 2, "needs a --rewriter")


def test_a_round_may_draw_over_the_best_so_far(reprise, drawn, tmp_path):
    words = [
        "render",
        "a red circle",
        "--renderer",
        "fake",
        "--rewriter",
        "none",
        "--best-of",
        1,
        "--seed",
        1,
        "--reflect",
        2,
        "--out",
        "o",
    ]
    over = json.loads(reprise(*words, "--correction", "image-to-image", "--strength", "0.5", "--json").out)
    assert over["settings"]["correction"] == "image-to-image" and over["settings"]["strength"] == 0.5
    assert [candidate["round"] for candidate in over["candidates"]][:2] == [0, 1]
    assert "--correction image-to-image --strength 0.5" in (tmp_path / "o" / "index.html").read_text()
    again = json.loads(reprise(*words[:-1], "p", "--json").out)
    assert "correction" not in again["settings"]
    assert over["cost"]["denoiser_rows"] < again["cost"]["denoiser_rows"]  # half of a mended picture's steps


def test_who_mends_may_be_another_than_who_writes(reprise, drawn, tmp_path):
    words = [
        "render",
        "a red circle",
        "--renderer",
        "fake",
        "--rewriter",
        "none",
        "--best-of",
        1,
        "--seed",
        1,
        "--reflect",
        1,
    ]
    deaf = reprise(*words, "--out", "o")
    assert "does not read what the judge finds wrong" in deaf.err and "--corrector" in deaf.err
    told = reprise(*words, "--corrector", "reprompt", "--out", "p", "--json")
    found = json.loads(told.out)
    assert "does not read" not in told.err and found["settings"]["corrector"] == "reprompt"
    assert [r["rewriter"] for r in found["rewrites"]] == ["none", "reprompt"]
    assert found["candidates"][0]["prompt"] == "a red circle" != found["candidates"][1]["prompt"]
    assert "--corrector reprompt" in (tmp_path / "p" / "index.html").read_text()
    one_line(reprise(*words[:-1], 0, "--corrector", "reprompt"), 2, "--corrector has no use without rounds")
    one_line(reprise(*words, "--corrector", "repromt"), 2, "repromt")


def test_a_judge_that_only_scores_mends_nothing(reprise, drawn, monkeypatch):
    """Without --reflect there are no rounds then; asked for, they are refused before anything is drawn."""
    from reprise.backend.rewards.shapeworld import ShapeWorldSoft

    monkeypatch.delattr(ShapeWorldSoft, "criticize")
    words = ("render", "a red circle", "--renderer", "fake", "--rewriter", "none", "--best-of", 2)
    assert json.loads(reprise(*words, "--json").out)["reflection"] == []
    one_line(reprise(*words, "--reflect", 1, "--out", "o"), 2, "reflection needs a judge")
    assert not Path("o").exists()


@pytest.mark.parametrize(
    "data,parts",
    [
        ("a red circle\nein grüner Stern\n".encode("latin-1"), ["p.txt, line 2", "UTF-8"]),
        ("a\nb".encode("utf-16"), ["p.txt, line 1", "UTF-8"]),
        (b"", ["holds no prompt"]),
        (b"\n \n", ["holds no prompt"]),
        (b"a\n" + b"word " * 600, ["p.txt, line 2", "600 words", "limit"]),
    ],
)
def test_bad_prompt_files(reprise, tmp_path, data, parts):
    (tmp_path / "p.txt").write_bytes(data)
    one_line(reprise("render", "--prompts", "p.txt", *FAST), 2, *parts)


def test_a_judge_that_raises_or_returns_no_number_is_named(reprise, drawn, monkeypatch, tmp_path):
    from reprise.backend.rewards.shapeworld import ShapeWorldSoft

    def raises(self, images, prompts):
        raise ZeroDivisionError("no pixels")

    for score, part in (
        (raises, "ZeroDivisionError: no pixels"),
        (lambda *a: [math.nan] * len(a[2]), "nan"),
        (lambda *a: [1.0], "expected"),
    ):
        monkeypatch.setattr(ShapeWorldSoft, "score", score)
        result = reprise("render", "a red circle", *FAST, "--out", "o")
        one_line(result, 1, "reward 'shapeworld' failed", part)
        assert not (tmp_path / "o" / "record.json").exists()


def test_a_full_disk_keeps_what_is_finished(reprise, drawn, monkeypatch, tmp_path):
    written, sync = [], os.fsync

    def full(handle):
        written.append(handle)
        if len(written) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        result = reprise(
            "render", "a red circle", "a blue star", *FAST, "--out", "o", "--prune", "none", "--reflect", 0
        )
        one_line(result, 1, "the disk is full")
    again = reprise(
        "render", "a red circle", "a blue star", *FAST, "--out", "o", "--prune", "none", "--reflect", 0
    )
    assert again.code == 0 and not list((tmp_path / "o").rglob("*.part"))


def test_many_prompts_print_a_summary_and_have_a_small_page(reprise, drawn, tmp_path):
    colours, shapes = ("red", "blue", "green", "yellow"), ("circle", "star", "heart", "ring")
    prompts = [f"a {colour} {shape}" for colour in colours for shape in shapes]
    (tmp_path / "p.txt").write_text("\n".join([*prompts[:5], "a cat", *prompts[5:]]))
    words = ("render", "--prompts", "p.txt", *FAST[:-1], 1, "--reflect", 0, "--out", "o")
    one_line(reprise(*words), 2, "1 of 17 prompts could not be judged", "'a cat'")
    (tmp_path / "p.txt").write_text("\n".join([*prompts, "a white cross"]))
    again = reprise(*words)
    lines = again.out.splitlines()
    assert again.code == 0 and len(lines) <= 4 and "17 prompts: 1 drawn, 16 kept" in lines[0]
    assert "mean score" in lines[1] and "the weakest, " in lines[2] and "index.html" in lines[3]
    assert again.err.splitlines()[-1] == "kept: 16 finished prompts"
    assert (tmp_path / "o" / "index.html").stat().st_size < 16_000
    assert len(list((tmp_path / "o" / "index_files").glob("*.webp"))) == 17
    listed = json.loads(reprise(*words, "--json").out)
    assert [record["prompt"] for record in listed] == [*prompts, "a white cross"]


def test_ctrl_c_keeps_finished_prompts_and_the_same_command_goes_on(reprise, drawn, monkeypatch, tmp_path):
    prompts = ("a red circle", "a blue star", "a green heart")
    plain, calls = drawn.render, []

    def stops(self, jobs, *rest, **more):
        calls.append(jobs[0].prompt)
        if jobs[0].prompt == "a blue star":
            raise KeyboardInterrupt
        return plain(self, jobs, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(drawn, "render", stops)
        stopped = reprise("render", *prompts, *FAST, "--out", "o", "--reflect", 0)
    one_line(stopped, 130, "1 of 3 prompts are finished in o", "--out o goes on")
    assert "a red circle" in (tmp_path / "o" / "index.html").read_text(encoding="utf-8")
    kept = next((tmp_path / "o").glob("a-red-circle-*/record.json"))
    before = kept.stat().st_mtime_ns
    finished = reprise("render", *prompts, *FAST, "--out", "o", "--reflect", 0, "--json")
    assert [r["prompt"] for r in json.loads(finished.out)] == list(prompts)
    assert kept.stat().st_mtime_ns == before and finished.err.count("kept: ") == 1


def test_a_bug_is_one_line_too(reprise, drawn, monkeypatch):
    def breaks(*a, **k):
        raise RuntimeError("something\nodd")

    monkeypatch.setattr(drawn, "render", breaks)
    one_line(reprise("render", "a red circle", *FAST), 1, "RuntimeError: something odd", "REPRISE_DEBUG=1")


def test_a_mix_of_rewards_is_recorded_by_its_parts(reprise, drawn):
    result = reprise(
        "render",
        "a red circle",
        *FAST,
        "--reward",
        "shapeworld=3",
        "--reward",
        "shapeworld-strict=1",
        "--json",
    )
    record = json.loads(result.out)
    best = record["candidates"][record["best"]]
    assert set(best["scores"]) == {"shapeworld", "shapeworld-strict"}
    expected = 0.75 * best["scores"]["shapeworld"] + 0.25 * best["scores"]["shapeworld-strict"]
    assert best["score"] == pytest.approx(expected)


def test_a_saved_workflow_draws(reprise, tmp_path):
    """Nothing is pruned without being asked, since it shows no previews; asked for, it is refused."""
    server = FakeComfyUI()
    try:
        Path("flow.json").write_text(json.dumps(GRAPH))
        words = (
            "render",
            "a red circle",
            "--renderer",
            f"comfyui:flow.json@{server.url}",
            "--judge",
            "shapeworld",
            "--rewriter",
            "none",
            "--best-of",
            3,
            "--reflect",
            0,
            "--seed",
            5,
        )
        result = reprise(*words, "--json", "--out", "o")
        assert result.code == 0, result.err
        record = json.loads(result.out)
        assert record["settings"]["prune"] == "none" and record["cost"]["denoiser_rows"] == 3 * 2 * STEPS
        assert sorted(server.runs) == [("a red circle", seed) for seed in (5, 6, 7)]
        one_line(reprise(*words, "--prune", "halving", "--out", "p"), 2, "--prune halving needs previews")
        reprise(*words, "--steps", 2, "--out", "q")
        assert server.graphs[-1]["5"]["inputs"]["steps"] == 2
        drawn = len(server.runs)
        reprise(*words, "--json", "--out", "o")
        assert len(server.runs) == drawn  # finished already
    finally:
        server.stop()
    one_line(reprise(*words, "--out", "r"), 1, "no ComfyUI server answers")


def test_masked_tokens_are_searched_as_latents_are(reprise, tmp_path):
    """aMUSEd from a folder: pruned on its step images, and the winner's seed alone is the same picture."""
    pipe = build("amused")
    pipe.transformer.register_to_config(sample_size=64)  # 128 pixels, what the judge reads
    pipe.save_pretrained(tmp_path / "amused")
    words = (
        "render",
        "a red circle",
        "--renderer",
        "./amused",
        "--rewriter",
        "none",
        "--judge",
        "shapeworld",
        "--steps",
        4,
        "--reflect",
        0,
        "--json",
    )
    pruned = reprise(*words, "--best-of", 4, "--prune", "halving", "--out", "o")
    assert pruned.code == 0, pruned.err
    record = json.loads(pruned.out)
    stopped = [candidate for candidate in record["candidates"] if candidate["pruned_at"]]
    assert len(stopped) == 3
    assert all(candidate["preview"] and not candidate["image"] for candidate in stopped)
    rows = 2 * sum(candidate["pruned_at"] or 4 for candidate in record["candidates"])
    assert record["cost"]["denoiser_rows"] == rows < record["cost"]["denoiser_rows_full"] == 2 * 4 * 4
    winner = record["candidates"][record["best"]]
    alone = reprise(*words, "--best-of", 1, "--seed", winner["seed"], "--out", "p")
    score = json.loads(alone.out)["candidates"][0]["score"]
    assert alone.code == 0 and score == pytest.approx(winner["score"], abs=1e-3)
