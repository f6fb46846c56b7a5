"""`reprise preferences`, as a user calls it."""

import csv
import json

from PIL import Image

FAKE = (
    "--renderer",
    "fake",
    "--judge",
    "shapeworld",
    "--prune",
    "none",
    "--reflect",
    0,
    "--rewriter",
    "none",
)


def test_from_a_render_to_a_struck_pair(reprise, drawn, tmp_path):
    done = reprise(
        "render",
        "a photo of a red circle",
        "a photo of a blue star",
        *FAKE,
        "--best-of",
        6,
        "--variants",
        1,
        "--out",
        "out/a",
    )
    assert done.code == 0, done.err
    done = reprise("preferences", "mine", "out", "--store", "liked")
    assert done.code == 0 and "2 pairs of pictures and 0 of rewrites" in done.out, done.out + done.err
    assert "2 were there already" in reprise("preferences", "mine", "out", "--store", "liked").out

    found = json.loads(reprise("preferences", "show", "--store", "liked", "--json").out)
    assert found["pairs"]["usable"] == 2 and found["images"] == {"named": 4, "gone": 0}
    assert found["pairs"]["rewards"]["shapeworld"]["chosen"] > 0.5
    done = reprise("preferences", "show", "--store", "liked")
    assert done.code == 0 and "shapeworld" in done.out and "usable" in done.out

    assert "2 pairs" in reprise("preferences", "page", "--store", "liked").out
    assert (tmp_path / "liked" / "pairs.html").read_text().count("data-pair=") == 2
    pair = json.loads((tmp_path / "liked" / "pairs.jsonl").read_text().splitlines()[0])
    assert pair["prompt"] == pair["condition"] and pair["chosen"]["seed"] % 2 == 0

    from reprise.backend.preferences.store import Store

    bad = Store(tmp_path / "liked").pairs()[0].id
    (tmp_path / "strikes.json").write_text(json.dumps({"format": 1, "struck": [bad]}))
    done = reprise("preferences", "strike", "strikes.json", "--store", "liked")
    assert done.out.strip() == "1 pairs struck, 0 back in, 1 left to learn from"


def test_from_what_a_judges_data_was_made_of_and_on_into_another_store(reprise, drawn, tmp_path):
    (tmp_path / "p.txt").write_text("a photo of a red circle\na photo of a blue star\n")
    done = reprise("data", "judge", "p.txt", "--renderer", "fake", "--renders", 6, "--out", "j.jsonl")
    assert done.code == 0, done.err
    done = reprise("preferences", "mine", "j.jsonl.rollouts.jsonl", "--store", "liked")
    assert done.code == 0 and "2 pairs of pictures" in done.out, done.err
    pairs = [json.loads(line) for line in (tmp_path / "liked" / "pairs.jsonl").read_text().splitlines()]
    assert {(pair["source"], pair["reward"], pair["renderer"]) for pair in pairs} == {
        ("data judge", "shapeworld", "fake")
    }
    assert all(pair["chosen"]["score"] > pair["rejected"]["score"] for pair in pairs)
    done = reprise("preferences", "mine", ".", "--store", "found", "--reward", "image-reward")
    assert done.code == 2 and "expected shapeworld" in done.err
    assert "2 pairs of pictures" in reprise("preferences", "mine", "liked", "--store", "more").out
    assert (
        "2 were there already"
        in reprise("preferences", "mine", "j.jsonl.rollouts.jsonl", "--store", "more").out
    )
    done = reprise("preferences", "mine", "liked", "--by", "prompt")
    assert done.code == 2 and "are made already; leave --by and --pairs out" in done.err
    (tmp_path / "j.jsonl.rollouts.json").unlink()
    done = reprise("preferences", "mine", "j.jsonl.rollouts.jsonl")
    assert done.code == 2 and "does not tell what scored" in done.err and done.err.count("\n") == 1


def test_nothing_but_ties_or_single_pictures(reprise, drawn, tmp_path):
    assert reprise("render", "a photo of a red circle", "--best-of", 1, *FAKE, "--out", "one").code == 0
    done = reprise("preferences", "mine", "one")
    assert done.code == 2 and done.err == (
        "reprise: no pair among 1 prompts: 1 with one picture alone; `reprise render --prune none` finishes "
        "more pictures of a prompt\n"
    ), "--by prompt would find none, either"
    assert not (tmp_path / "preferences").exists(), "nothing half-written"
    assert reprise("render", "a photo of a red circle", "--best-of", 4, *FAKE, "--out", "two").code == 0
    done = reprise("preferences", "mine", "two", "--margin", 5)
    assert done.code == 2 and "1 ties; lower --margin" in done.err
    for i in range(2):
        Image.new("RGB", (8, 8), (90 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "t.csv").write_text("image,prompt,score,drawn_as\n0.png,a cat,0,large\n1.png,a cat,1,low\n")
    done = reprise("preferences", "import", "t.csv")
    assert done.code == 2 and done.err.endswith(
        "alone; --by prompt compares pictures of different rewrites, too\n"
    )
    assert reprise("preferences", "import", "t.csv", "--by", "prompt").code == 0


def test_import(reprise, tmp_path):
    with (tmp_path / "scores.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "prompt", "score"])
        for i in range(4):
            Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
            rows.writerow([f"{i}.png", "a cat", i / 4])
    done = reprise("preferences", "import", "scores.csv", "--reward", "taste", "--pairs", 2)
    assert done.code == 0 and "2 pairs of pictures" in done.out, done.err
    lines = map(json.loads, (tmp_path / "preferences" / "pairs.jsonl").read_text().splitlines())
    found = [(line["chosen"]["score"], line["rejected"]["score"]) for line in lines]
    assert found == [(0.75, 0.0), (0.5, 0.25)]
    assert reprise("preferences", "import", "scores.csv", "--lower-is-better", "--store", "low").code == 0
    low = json.loads((tmp_path / "low" / "pairs.jsonl").read_text())
    assert low["chosen"]["score"] == 0.0 and low["source"] == "table"


def test_where_something_cannot_be_read_nothing_is_written(reprise, drawn, tmp_path):
    done = reprise("render", "a photo of a red circle", *FAKE, "--best-of", 4, "--out", "good")
    assert done.code == 0, done.err
    assert reprise("preferences", "mine", "good", "--store", "other").code == 0
    (tmp_path / "file").write_text("mine")
    (tmp_path / "bad").mkdir()
    for name, text in (("pairs.jsonl", "{"), ("strikes.json", "{")):
        (tmp_path / "bad" / name).write_text(text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "b.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:41])
    (tmp_path / "t.csv").write_text("image,prompt,score\na.png,a cat,0\nb.png,a cat,1\nhalf.png,a dog,1\n")
    before = sorted(tmp_path.rglob("*"))
    for words, message in (
        (("mine", "good", "nowhere"), "there is no folder nowhere"),
        (("mine", "good", "bad"), "line 1"),
        (("mine", "good", "--store", "bad"), "bad/pairs.jsonl, line 1"),
        (("mine", "good", "--store", "file"), "expected a folder of preferences, got the file file"),
        (("mine", "good", "--store", "file/sub"), "expected a folder of preferences, got the file file"),
        (("import", "t.csv"), "t.csv, line 4: half.png is damaged"),
        (("import", "t.csv", "--store", "file"), "expected a folder of preferences, got the file file"),
    ):
        done = reprise("preferences", *words)
        assert done.code == 2 and message in done.err and done.err.count("\n") == 1, (words, done.err)
        assert sorted(tmp_path.rglob("*")) == before, words


def test_bad_calls(reprise, tmp_path):
    (tmp_path / "empty").mkdir()
    for words, message in (
        (("mine", "nowhere"), "there is no folder"),
        (("mine", "empty"), "holds no run"),
        (("mine", "empty", "--by", "seed"), "unknown --by"),
        (("mine", "empty", "--margin", "nan"), "--margin"),
        (("mine", "empty", "--pairs", 0), "--pairs"),
        (("show",), "holds no preferences"),
        (("mine", "comfyui:ftp://x"), "address"),
        (("page", "--most", 0), "--most"),
        (("mine", "comfyui:http://127.0.0.1:9"), "cannot reach the ComfyUI server"),
        (("mine", "comfyui:http://127.0.0.1:9", "--reward", "x"), "leave --reward out"),
        (("strike", "none.json"), "holds no preferences"),
        (("import", "none.csv"), "cannot read the table"),
    ):
        done = reprise("preferences", *words)
        assert done.code == 2 and message in done.err and done.err.count("\n") == 1, (words, done.err)
    assert not (tmp_path / "preferences").exists()


def test_render_with_a_lora(reprise, drawn, tmp_path):
    """What cannot take one says so before anything is drawn."""
    done = reprise("render", "a red circle", *FAKE, "--lora", "x.safetensors")
    assert done.code == 2 and "renderer 'fake' does not take lora" in done.err
    done = reprise("render", "a photo of a red circle", "--lora", "x.safetensors")
    assert done.code == 2 and "there is no LoRA x.safetensors" in done.err
