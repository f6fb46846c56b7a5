"""The options that say how a renderer draws: the same on every command that draws, and passed on as typed."""

from __future__ import annotations

import pytest

from reprise.backend.renderers.settings import RendererSettings, sides

from .conftest import reprise  # noqa: F401

COMMANDS = [
    ("render",),
    *[("evaluate", name) for name in ("search", "shapeworld", "rewriters")],
    *[("data", name) for name in ("pictures", "rewrites", "judge")],
]
OPTIONS = (
    "--size --guidance --true-cfg --negative --max-tokens --scheduler --dtype --device --offload --chunk "
    "--vae-tiling"
).split()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_that_draws_has_them(command, reprise):  # noqa: F811
    said = reprise(*command, "--help").out
    assert all(option in said for option in OPTIONS)


@pytest.mark.parametrize(
    "options, says",
    [
        (["--size", "9x"], "WIDTHxHEIGHT like 1024x768, got '9x'"),
        (["--size", "96"], "draws with size=128 alone, got 96"),
        (["--dtype", "int"], "'auto', 'float32', 'bfloat16' or 'float16', got 'int'"),
        (["--scheduler", "Nope"], "no scheduler 'Nope'; for this pipeline there are FlowMatchEuler"),
        (["--device", "gpu"], "device is 'auto', 'cpu', 'cuda'"),
        (["--renderer", "fake", "--guidance", "2"], "'fake' does not take guidance"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, says, reprise):  # noqa: F811
    result = reprise("render", "a red circle", "--rewriter", "none", *options)
    assert result.code == 2 and says in result.err


def test_they_reach_the_renderer_and_the_record(reprise, tmp_path):  # noqa: F811
    import json

    words = "--rewriter none --best-of 1 --reflect 0 --steps 2".split()
    records = []
    for options in ([], ["--negative", "blue", "--true-cfg", "2"]):
        out = tmp_path / str(len(records))
        reprise("render", "a red circle", *words, "--out", out, *options)
        records.append(json.loads((out / "record.json").read_text()))
    plain, told = (record["settings"] for record in records)
    assert (told["negative_prompt"], told["true_cfg"]) == ("blue", 2.0) and "true_cfg" not in plain
    assert plain["renderer_fingerprint"] != told["renderer_fingerprint"]


def test_pruning_by_default_falls_back_where_x0_is_unknown(reprise, tmp_path):  # noqa: F811
    import json

    from ..renderers.conftest import build

    build("sd1").save_pretrained(tmp_path / "model")
    words = ["render", "a red circle", "--renderer", tmp_path / "model", "--scheduler", "EDMEulerScheduler"]
    words += "--rewriter none --judge shapeworld --best-of 2 --reflect 0 --steps 2 --size 64".split()
    result = reprise(*words, "--out", tmp_path / "o")
    assert result.code == 0, result.err
    told = " ".join(result.err.split())
    assert "Nothing is pruned: the clean picture that EDMEulerScheduler predicts" in told
    assert "comfyui:WORKFLOW.json@URL" in told
    assert json.loads((tmp_path / "o" / "record.json").read_text())["settings"]["prune"] == "none"
    result = reprise(*words, "--prune", "halving", "--out", tmp_path / "p")
    assert result.code == 2 and "--prune halving needs previews, and the clean picture" in result.err
    assert "EDMEulerScheduler" in result.err and not (tmp_path / "p").exists()


def test_sizes_are_sides_or_width_and_height():
    assert sides(None) is None and sides("512") == sides(512) == 512 and sides("1024x768") == (1024, 768)
    assert RendererSettings(size="512").size == 512
    for wrong in ("x", "512x", "1x2x3", "63", "-512", "512*512"):
        with pytest.raises(ValueError, match="expected a side of 64 pixels"):
            sides(wrong)
