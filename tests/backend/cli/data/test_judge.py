"""`reprise data judge`."""

import json

import pytest

from reprise.backend.cli.main import run


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"a photo of a {shape}\n" for shape in ("circle", "ring", "heart")))
    return path


def test_bad_input(tmp_path, prompts, capsys):
    out = tmp_path / "judge.jsonl"
    known = ["data", "judge", str(prompts), "--out", str(out), "--renderer", "fake"]
    for more, said in (
        (["--renders", "0"], "--renders must be 1 to 256, got 0"),
        (["--test-share", "2"], "--test-share must be 0 to 1"),
        (["--test-share", "0.6", "--calibration-share", "0.6"], "more than 1 together"),
        (["--reward", "structure"], "reads rewrites, not pictures"),
        (["--look", "8"], "previews are seen after steps 1 to 7; got 8"),
        (["--look", "0", "--look", "2"], "previews are seen after steps 1 to 7; got 0"),
        (["--out", str(prompts)], "are both"),
    ):
        assert run([*known, *more]) == 2, more
        caught = capsys.readouterr().err
        assert said in caught.splitlines()[-1] and "Traceback" not in caught, more
        assert not list(tmp_path.glob("judge.jsonl*")) and "goes on" not in caught, more
    assert run(["data", "judge", str(tmp_path / "none.txt")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_pictures_all_wrong(tmp_path, prompts, capsys):
    """The fake renderer draws no shape: nothing is right, and what is wrong in words is left."""
    out = tmp_path / "judge.jsonl"
    words = [
        "data",
        "judge",
        str(prompts),
        "--out",
        str(out),
        "--renderer",
        "fake",
        "--renders",
        "2",
        "--json",
    ]
    assert run(words) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["right"] == 0 and made["pictures"] == 6
    taught = {name.split("/")[1] for name in made["examples"] if name.startswith("train/")}
    assert taught <= {"critique", "clarity"} and made["examples"]
    assert run(words) == 0 and json.loads(capsys.readouterr().out)["drawn_or_judged"] == 0


def test_pictures_of_runs(tmp_path, capsys):
    """Their finished candidates; what drew them is known, so --renderer has no say."""
    runs, out = tmp_path / "runs", tmp_path / "judge.jsonl"
    assert (
        run(
            [
                "render",
                "a photo of a ring",
                "--renderer",
                "fake",
                "--rewriter",
                "none",
                "--best-of",
                "3",
                "--reflect",
                "0",
                "--prune",
                "none",
                "--out",
                str(runs),
            ]
        )
        == 0
    )
    capsys.readouterr()
    words = ["data", "judge", str(runs), "--out", str(out)]
    assert run([*words, "--renderer", "fake"]) == 2 and "is drawn already" in capsys.readouterr().err
    assert run([*words, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["pictures"], made["prompts"]) == (3, 1)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    said = [row["text"] for row in rows if row["question"] == "critique"]
    assert said == ["there is no ring"] * 3 and not any(row.get("label") for row in rows)


def test_ctrl_c_keeps_what_was_drawn(tmp_path, prompts, capsys, monkeypatch):
    from reprise.backend.renderers.fake import FakeRenderer

    out = tmp_path / "judge.jsonl"

    def stop(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeRenderer, "render", stop)
    assert run(["data", "judge", str(prompts), "--out", str(out), "--renderer", "fake"]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"what was drawn is kept in {out}.pictures, the same command goes on")
    assert not out.exists()
