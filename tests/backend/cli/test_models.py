"""`reprise models`: what is found, counted from the headers alone; damaged files are said to be."""

import json

import pytest
import torch
from safetensors.torch import save_file

from reprise.backend.cli import models
from reprise.backend.cli.models import count_parameters
from reprise.backend.core import model_files as loading
from reprise.backend.core.errors import CheckpointError
from reprise.backend.core.model_files import find_model


@pytest.fixture
def rewriter(tmp_path):
    folder = tmp_path / "models" / "reprise" / "rewriters" / "mine"
    folder.mkdir(parents=True)
    save_file(
        {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.float16)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def test_lists_what_is_installed(reprise, rewriter):
    found = json.loads(reprise("models", "--json").out)
    mine = next(model for model in found["models"] if model["name"] == "mine")
    assert (mine["kind"], mine["parameters"], mine["fault"]) == ("rewriters", 22, None) and mine[
        "fits"
    ] is not False
    assert "shapeworld" in found["names"]["renderers"] and found["device"]["name"]
    table = reprise("models")
    assert table.code == 0 and "mine" in table.out and "looked for in" in table.out


def test_embedded_weights_are_named_by_their_folders(monkeypatch, tmp_path):
    for module in (models, loading):
        monkeypatch.setattr(module, "EMBEDDED_WEIGHTS", tmp_path)
    for folder in ("renderer", "renderer-sd"):
        (tmp_path / folder).mkdir()
        save_file({"a": torch.zeros(3)}, tmp_path / folder / "model.safetensors")
    found = [(model.kind, model.name, model.parameters) for model in models.find_all()[:2]]
    assert found == [("renderers", "embedded", 3), ("renderers", "embedded-sd", 3)]
    assert find_model("renderers", "embedded-sd") == tmp_path / "renderer-sd"
    assert (
        "embedded-sd" in loading.installed_models("renderers")
        and find_model("renderers", "embedded-xl") is None
    )


def test_looks_in_reprise_models_too(reprise, rewriter, monkeypatch, tmp_path):
    monkeypatch.setenv("REPRISE_MODELS", str(tmp_path / "models" / "reprise"))
    monkeypatch.chdir(rewriter)
    assert find_model("rewriters", "mine") == rewriter and find_model("rewriters", "../mine") is None


def test_a_rewriter_is_found_by_its_name(reprise, rewriter):
    near = reprise("rewrite", "a", "--rewriter", "mime")
    assert near.code == 2 and "did you mean 'mine'" in near.err


def test_damaged_weights_are_said_to_be(reprise, rewriter):
    path = rewriter / "model.safetensors"
    data = path.read_bytes()
    for broken in (data[:-3], data + b"xx", data[:20], b"", b"\xff" * 100, data[:9] + b"?" + data[10:]):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="model.safetensors"):
            count_parameters(path)
    assert "mine" in reprise("models").out
    path.unlink()
    mine = next(m for m in json.loads(reprise("models", "--json").out)["models"] if m["name"] == "mine")
    assert mine["fault"] == "no .safetensors file in it"
