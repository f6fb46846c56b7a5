"""`evaluate rewriters`: one small run with the embedded weights, and what is refused."""

import json

import pytest

from reprise.backend.shapeworld.prompts import TASKS


def refused(result, part):
    assert (result.code, result.out) == (2, ""), result.err
    assert part in result.err and len(result.err.splitlines()) == 1, result.err


def test_the_embedded_models_compared(reprise, tmp_path):
    words = [
        "evaluate",
        "rewriters",
        "embedded=reprompt",
        "again = reprompt",
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
    words = ("--renderer", "fake", "--per-task", 1, "--seeds", 1)
    chain = ("--rewriter", "none", "--best-of", 2, "--reflect", 0, "--variants", 1)
    assert reprise("evaluate", "shapeworld", *words, *chain).code == 0
    assert reprise("evaluate", "rewriters", "pasted=template", *words).code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "evaluate-rewriters",
        "evaluate-shapeworld",
    ]


def test_stopped_it_says_where_to_go_on(reprise, tmp_path, monkeypatch, drawn):
    words = (
        "evaluate",
        "rewriters",
        "pasted=template",
        "--renderer",
        "fake",
        "--seeds",
        1,
        "--per-task",
        1,
        "--out",
        "o",
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
        (["template"], "'template': expected NAME=REWRITER"),
        (["=template"], "expected NAME=REWRITER"),
        (["a=template,"], "expected NAME=REWRITER"),
        (["a=template", "a=none"], "'a' is given twice"),
        (["a=tmplate"], "unknown rewriter 'tmplate'; did you mean 'template'"),
        (["as typed=none"], "always in the table"),
        (["a=template,template"], "the same weights twice, template and template"),
        (["a=template", "--baseline", "b"], "unknown baseline 'b'"),
        ([], "Missing argument 'NAME=REWRITER"),
        (["a=template", "--best-of", "8"], "No such option: --best-of"),
        (["a=template", "--seeds", "0"], "--seeds must be at least 1"),
        (["a=template", "--judge", "structure"], "reads rewrites, not pictures"),
    ],
)
def test_refused(reprise, words, part):
    refused(reprise("evaluate", "rewriters", "--renderer", "fake", *words), part)


def test_a_folder_that_is_no_rewriter_costs_no_work(reprise, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ("evaluate", "rewriters", "--renderer", "fake", "--out", "o", "a=template")
    refused(reprise(*words, "b=empty"), "empty is no rewriter: it holds no config.json")
    for nowhere in ("./nowhere", "runs/nowhere/final"):
        refused(reprise(*words, f"b={nowhere}"), f"no rewriter at {nowhere}")
    assert not (tmp_path / "o").exists()
