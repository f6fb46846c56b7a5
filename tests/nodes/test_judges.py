"""Judges with weights inside ComfyUI: found in its folders, managed by it, or refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ..backend.rewards.vlm import tiny_vlm
from ..data.rewards import tiny

pytestmark = pytest.mark.comfyui


def test_a_judge_is_loaded_managed_and_scores(in_comfyui, tmp_path, monkeypatch):
    from reprise.backend.rewards.published.pick_score import PickScore

    folder = tmp_path / "reprise" / "judges" / "pick-score"
    folder.mkdir(parents=True)
    golden = json.loads((tiny.HERE / "golden.json").read_text(encoding="utf-8"))
    values = tiny.weights(golden["pick_score"]["shapes"])
    weights = {name: torch.from_numpy(value.copy()) for name, value in values.items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", **tiny.PICK}))
    monkeypatch.delenv("REPRISE_MODELS", raising=False)

    tiny_vlm.qwen2_5_vl(tmp_path / "reprise" / "judges" / "tiny" / "qwen")
    found = in_comfyui("inside_judges.py", str(tmp_path))
    assert {"shapeworld", "image-reward", "hps-v2.1", "pick-score"} <= set(found["choices"])
    assert [name for name in found["choices"] if name.startswith("vlm")] == [
        f"vlm: {name}#{mode}"
        for name in ("embedded", "embedded-base", "tiny/qwen")
        for mode in ("match", "clarity", "potential", "critique", "checklist", "score")
    ]
    assert found["missing"].startswith("CheckpointError: image-reward is not installed: put ImageReward.pt")
    assert found["gone"].startswith("CheckpointError: there is no judge 'gone' in models/reprise/judges")
    monkeypatch.setattr(PickScore, "vision", (160, 2))
    images = torch.linspace(0, 1, 2 * 40 * 30 * 3).reshape(2, 40, 30, 3)
    alone = [PickScore(folder, device="cpu").score(image[None], ["a red circle"])[0] for image in images]
    for name, want in (("pick-score", alone), ("vlm", found["alone"])):
        seen = found[name]
        assert seen["managed"] == [True, False, True] and seen["back"] == seen["scores"], name
        assert seen["scores"] == pytest.approx(want, abs=1e-4), name
        assert seen["half"] == pytest.approx(want, abs=0.1) and seen["kept"] == "torch.float16", name
    assert found["critique"] in ("", "it does not show a red circle")
