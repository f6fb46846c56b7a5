"""A refiner inside ComfyUI: found in its folders, managed by it, refines prompts and describes pictures."""

import shutil

import pytest
import torch

from ..backend.rewriters.prip import tiny_prip

pytestmark = pytest.mark.comfyui


def test_a_refiner_is_loaded_managed_refines_and_describes(in_comfyui, tmp_path):
    from reprise.backend.rewriters.prip.rewriter import PripRewriter

    refiners = tmp_path / "reprise" / "refiners"
    tiny_prip.save(refiners / "tiny")
    shutil.copytree(refiners / "tiny", refiners / "blind", ignore=shutil.ignore_patterns("image"))
    shutil.copytree(refiners / "tiny" / "decoder", refiners / "baseline")
    found = in_comfyui("inside_refiner.py", str(tmp_path))
    own = [name for name in found["choices"] if "embedded" not in name]
    assert own == ["baseline", "blind", "tiny"]  # and no parts of models
    alone = PripRewriter(refiners / "tiny", device="cpu")
    assert found["refined"] == [one.prompt for one in alone.rewrite(["a red circle."], 3, 5)[0]]
    assert all(text.startswith("a red circle") for text in found["refined"])
    image = torch.linspace(0, 1, 2 * 40 * 30 * 3).reshape(2, 40, 30, 3)
    described = [one.prompt for variants in alone.describe(image, 2, 5) for one in variants]
    assert found["described"] == described and len(described) == 4
    # Only describing loads the vision tower. Both models are unloaded when a sampler needs memory, and
    # reload.
    assert found["loaded"] == [True, False, True, True, False, False]
    assert found["again"] == found["refined"]
    assert found["promptist"] == ["promptist", 2]
    assert found["no vision"].startswith("Unsupported: this refiner cannot read pictures")
    assert found["no tower"].startswith("CheckpointError: no vision tower at")
