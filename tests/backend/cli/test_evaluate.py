"""`evaluate shapeworld --compare`: one small run with the embedded weights, and what is refused."""

import json

import pytest

from reprise.backend.shapeworld.prompts import TASKS


def refused(result, part):
    assert (result.code, result.out) == (2, ""), result.err
    assert part in result.err and len(result.err.splitlines()) == 1, result.err


def test_the_embedded_models_compared(reprise, tmp_path):
    words = [
        "evaluate",
        "shapeworld",
        "--compare",
        "embedded=reprompt",
        "--compare",
        "again = reprompt",
        "--compare",
        "pasted=template,none",
        "--per-task",
        1,
        "--seeds",
        1,
        "--steps",
        2,
        "--task",
        "counting",
        "--task",
        "position",
        "--baseline",
        "embedded",
        "--out",
        "o",
    ]
    first = reprise(*words, "--json")
    result = json.loads(first.out)
    assert result == json.loads((tmp_path / "o" / "result.json").read_text()) and result["versions"]["torch"]
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["as typed", "embedded", "again", "pasted", "spelled-out oracle"]
    assert rows["again"]["gain"] == {
        "over": "embedded",
        "interval": [0.0] * 3,
        "tasks": {"counting": [0.0] * 3, "position": [0.0] * 3},
    }
    assert rows["embedded"]["rewrites"]["unreadable"] == 0 and rows["embedded"]["rewrites"]["words"] > 10
    assert [one["rewriter"] for one in rows["pasted"]["trainings"]] == ["template", "none"]
    assert rows["pasted"]["cost"] == {"denoiser_rows": 4}  # two steps, guided
    assert (tmp_path / "o" / "scores.jsonl").read_text().count("\n") == 8, "two rows are drawn as typed"
    assert result["settings"]["steps"] == 2 and result["settings"]["judge"] == "shapeworld-strict"
    text = reprise(*words).out
    for part in ("pasted", "gain, paired", "+0.000 [+0.000, +0.000]", "unreadable", "training seeds"):
        assert part in text, part
    page = (tmp_path / "o" / "index.html").read_text()
    assert page.count("<u style") == 4 and "Training seeds" in page
    assert rows["again"]["trainings"][0]["fingerprint"] in page


def test_without_an_out_the_chains_results_are_left_alone(reprise, tmp_path, drawn):
    words = ("evaluate", "shapeworld", "--renderer", "fake", "--per-task", 1, "--seeds", 1)
    assert reprise(*words, "--rewriter", "none", "--best-of", 2, "--reflect", 0, "--variants", 1).code == 0
    assert reprise(*words, "--compare", "pasted=template").code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare-shapeworld",
        "evaluate-shapeworld",
    ]


def test_stopped_it_says_where_to_go_on(reprise, tmp_path, monkeypatch, drawn):
    words = (
        "evaluate",
        "shapeworld",
        "--renderer",
        "fake",
        "--seeds",
        1,
        "--per-task",
        1,
        "--out",
        "o",
        "--compare",
        "pasted=template",
        "--json",
    )
    with monkeypatch.context() as patched:

        def stopped(*_, **__):
            raise KeyboardInterrupt

        patched.setattr(drawn, "render", stopped)
        seen = reprise(*words)
    assert (seen.code, seen.out) == (130, "") and "kept in o, the same command goes on" in seen.err
    assert (tmp_path / "o" / "rewrites.jsonl").read_text().count("\n") == len(TASKS)
    assert len(json.loads(reprise(*words).out)["rows"]) == 3


@pytest.mark.parametrize(
    "words,part",
    [
        (["--compare", "template"], "'template': expected NAME=REWRITER"),
        (["--compare", "=template"], "expected NAME=REWRITER"),
        (["--compare", "a=template,"], "expected NAME=REWRITER"),
        (["--compare", "a=template", "--compare", "a=none"], "'a' is given twice"),
        (["--compare", "a=tmplate"], "unknown rewriter 'tmplate'; did you mean 'template'"),
        (["--compare", "as typed=none"], "always in the table"),
        (["--compare", "a=template,template"], "the same weights twice, template and template"),
        (["--compare", "a=template", "--baseline", "b"], "unknown baseline 'b'"),
        (["--baseline", "b"], "--baseline is of --compare"),
        (["--judge", "shapeworld"], "--judge is of --compare"),
        (["--compare", "a=template", "--best-of", "8"], "--best-of has no use with --compare"),
        (["--compare", "a=template", "--rewriter", "none"], "--rewriter has no use with --compare"),
        (["--compare", "a=template", "--seeds", "0"], "--seeds must be at least 1"),
    ],
)
def test_refused(reprise, words, part):
    refused(reprise("evaluate", "shapeworld", "--renderer", "fake", *words), part)


def test_a_folder_that_is_no_rewriter_costs_no_work(reprise, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ("evaluate", "shapeworld", "--renderer", "fake", "--out", "o", "--compare", "a=template")
    refused(reprise(*words, "--compare", "b=empty"), "empty is no rewriter: it holds no config.json")
    for nowhere in ("./nowhere", "runs/nowhere/final"):
        refused(reprise(*words, "--compare", f"b={nowhere}"), f"no rewriter at {nowhere}")
    assert not list((tmp_path / "o").iterdir())


def test_rows_of_a_file(reprise, tmp_path):
    (tmp_path / "rows.yaml").write_text("base: {}\nPARM: {best_of: 4, prune: halving}\n")
    words = [
        "evaluate",
        "shapeworld",
        "--rows",
        "rows.yaml",
        "--per-task",
        1,
        "--seeds",
        1,
        "--steps",
        4,
        "--task",
        "counting",
        "--out",
        "o",
    ]
    result = json.loads(reprise(*words, "--json").out)
    base, parm = result["rows"]
    assert base["cost"] == {"denoiser_rows": 8, "judge_calls": 0}
    assert 8 < parm["cost"]["denoiser_rows"] < 32 and parm["gain"]["over"] == "base"
    assert "PARM" in reprise(*words).out and "PARM" in (tmp_path / "o" / "index.html").read_text()
    refused(reprise(*words, "--best-of", 3), "--best-of has no use with --rows")
    refused(reprise(*words, "--compare", "a=none"), "two tables")
    (tmp_path / "rows.yaml").write_text("base: {lora: nowhere.safetensors}\n")
    refused(reprise(*words), "there is no LoRA nowhere.safetensors")
    (tmp_path / "rows.yaml").write_text("base: {rewriter: nobody}\n")
    refused(reprise(*words), "nobody")
