"""`evaluate search`: a small table of a file's rows, and what is refused."""

import json


def refused(result, part):
    assert (result.code, result.out) == (2, ""), result.err
    assert part in result.err and len(result.err.splitlines()) == 1, result.err


def test_rows_of_a_file(reprise, tmp_path):
    (tmp_path / "rows.yaml").write_text("base: {}\nPARM: {best_of: 4, prune: halving}\n")
    words = [
        "evaluate",
        "search",
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
    refused(reprise(*words, "--best-of", 3), "No such option: --best-of")
    refused(reprise("evaluate", "search"), "expected reprise evaluate search FILE.yaml")
    (tmp_path / "rows.yaml").write_text("base: {lora: nowhere.safetensors}\n")
    refused(reprise(*words), "there is no LoRA nowhere.safetensors")
    (tmp_path / "rows.yaml").write_text("base: {rewriter: nobody}\n")
    refused(reprise(*words), "nobody")
    (tmp_path / "rows.yaml").write_text("base: {best_off: 3}\n")
    refused(reprise(*words), "did you mean 'best_of'")


def test_the_settings_of_a_row(reprise):
    found = json.loads(reprise("evaluate", "search", "--settings", "--json").out)
    best_of = next(one for one in found["settings"] if one["name"] == "best_of")
    assert (best_of["type"], best_of["default"], best_of["required"]) == ("whole number, above 0", 1, False)
    assert best_of["description"] == "Candidates of a search."
    assert "Candidates of a search." in reprise("evaluate", "search", "--settings").out
