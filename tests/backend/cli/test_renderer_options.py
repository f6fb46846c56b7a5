"""The options that say how a renderer draws: the same on every command that draws, and passed on as typed."""

from __future__ import annotations

import pytest

from reprise.backend.renderers.settings import RendererSettings, sides

from .conftest import reprise  # noqa: F401

OPTIONS = (
    "--size --guidance --true-cfg --negative --max-tokens --scheduler --dtype --quantize --device --offload "
    "--chunk --vae-tiling --lora --comfyui --base --part"
).split()


def commands(group, path=()):
    """(words, command) of all commands, whatever their depth."""
    for name, command in group.commands.items():
        if name == "lab":  # measures, with settings of its own
            continue
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_that_takes_a_renderer_has_all_of_them():
    import typer

    from reprise.backend.cli.main import app

    drawing = {}
    for words, command in commands(typer.main.get_command(app)):
        names = {option for one in command.params for option in one.opts}
        if "--renderer" in names:
            drawing[" ".join(words)] = [one for one in OPTIONS if one not in names]
    assert not any(drawing.values()), drawing
    assert {
        "render",
        "evaluate search",
        "evaluate rewriters",
        "data pictures",
        "data judge",
    } <= drawing.keys()


def test_each_of_them_is_a_setting_of_a_trainings_renderer():
    from reprise.backend.cli.renderer_options import _OPTIONS

    fields = {field for field, *_ in _OPTIONS.values()}
    assert fields | {"name", "steps", "batch"} == RendererSettings.model_fields.keys()


@pytest.mark.parametrize(
    "options, says",
    [
        (["--size", "9x"], "WIDTHxHEIGHT like 1024x768, got '9x'"),
        (["--size", "96"], "draws with size=128 alone, got 96"),
        (["--dtype", "int"], "'auto', 'float32', 'bfloat16' or 'float16', got 'int'"),
        (["--scheduler", "Nope"], "no scheduler 'Nope'; for this pipeline there are FlowMatchEuler"),
        (["--device", "gpu"], "device is 'auto', 'cpu', 'cuda'"),
        (["--renderer", "fake", "--guidance", "2"], "'fake' does not take guidance"),
        (["--renderer", "fake", "--quantize", "int8"], "'fake' does not take quantize"),
        (["--quantize", "int3"], "'nf4', 'int8' or 'fp8', got 'int3'"),
        (["--comfyui", ""], "got an empty name"),
        (["--part", "vae"], "--part vae: expected NAME=FILE"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, says, reprise):  # noqa: F811
    result = reprise("render", "a red circle", "--rewriter", "none", *options)
    assert result.code == 2 and says in result.err


def test_they_reach_the_renderer_and_the_record(reprise, tmp_path):  # noqa: F811
    import json

    words = "--rewriter none --best-of 1 --reflect 0 --steps 2".split()
    records = []
    for options in ([], ["--negative", "blue", "--true-cfg", "2", "--quantize", "int8"]):
        out = tmp_path / str(len(records))
        reprise("render", "a red circle", *words, "--out", out, *options)
        records.append(json.loads((out / "record.json").read_text()))
    plain, told = (record["settings"] for record in records)
    assert (told["negative_prompt"], told["true_cfg"]) == ("blue", 2.0) and "true_cfg" not in plain
    assert told["quantize"] == "int8"
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
