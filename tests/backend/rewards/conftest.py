"""The published files of all judges at tiny random size, where the judges look for them; tiny VLMs."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprise.backend.rewards.published.clip import open_clip_source
from reprise.backend.rewards.published.clip_score import ClipScore
from reprise.backend.rewards.published.hps import HPSv21
from reprise.backend.rewards.published.image_reward import ImageReward
from reprise.backend.rewards.published.pick_score import PickScore
from reprise.backend.rewards.vlm.local import LocalVLM

from ...data.rewards import tiny
from .vlm import tiny_vlm

DATA = tiny.HERE


@pytest.fixture(scope="session")
def golden():
    """What the reference implementations made of tiny.py (see tests/data/rewards/README.md)."""
    return json.loads((DATA / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def golden_pixels():
    return load_file(DATA / "pixels.safetensors")


@pytest.fixture(scope="session")
def keys():
    """Names and shapes of the published files at full size."""
    return json.loads((DATA / "keys.json").read_text(encoding="utf-8"))


def tensors(shapes):
    return {name: torch.from_numpy(value.copy()) for name, value in tiny.weights(shapes).items()}


def clip_folder(folder, state, config):
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", **config}))


@pytest.fixture(scope="session")
def published(golden, tmp_path_factory):
    """A models folder with tiny files under the published names."""
    root = tmp_path_factory.mktemp("models")
    judges = root / "judges"
    for name in ("image-reward", "hps-v2.1", "hps-v2", "aesthetic"):
        (judges / name).mkdir(parents=True)
    torch.save(tensors(golden["image_reward"]["shapes"]), judges / "image-reward" / "ImageReward.pt")
    (judges / "image-reward" / "vocab.txt").write_text("\n".join(tiny.BERT_WORDS) + "\n", encoding="utf-8")
    state = {"epoch": 3, "state_dict": tensors(golden["hps"]["shapes"])}
    torch.save(state, judges / "hps-v2.1" / "HPS_v2.1_compressed.pt")
    torch.save(state, judges / "hps-v2" / "HPS_v2_compressed.pt")
    clip_folder(judges / "pick-score", tensors(golden["pick_score"]["shapes"]), tiny.PICK)
    head = tensors(golden["openai_clip"]["head"])
    torch.save(head, judges / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth")
    clip_folder(judges / "clip-vit-large-patch14", *openai_layout(golden["openai_clip"]["shapes"]))
    return root


def openai_layout(shapes):
    """openai's own names -> (weights, config) in Hugging Face's layout, as their repository has them."""
    import transformers

    sides = {"num_hidden_layers": 2, "projection_dim": 48}
    config = {
        "projection_dim": 48,
        "text_config": {
            **sides,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_attention_heads": 1,
            "eos_token_id": 2,
        },
        "vision_config": {
            **sides,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_attention_heads": 2,
            "patch_size": 14,
            "image_size": 224,
        },
    }
    with torch.device("meta"):
        names = transformers.CLIPModel(transformers.CLIPConfig(**config)).state_dict()
    theirs, state = tensors(shapes), {}
    for name in names:
        key, pick = open_clip_source(name)
        state[name] = pick(theirs[key])
    # Older files in this layout hold these too.
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(257)[None]
    return state, config


@pytest.fixture
def installed(published, monkeypatch):
    """The tiny files are found, and the judges whose sizes are fixed have theirs."""
    monkeypatch.setenv("REPRISE_MODELS", str(published))
    v, t, words = tiny.VISION, tiny.TEXT, len(tiny.BERT_WORDS)
    monkeypatch.setattr(
        ImageReward,
        "vision",
        ImageReward.vision
        | {
            "hidden_size": v["width"],
            "intermediate_size": v["mlp"],
            "num_hidden_layers": v["layers"],
            "num_attention_heads": v["heads"],
        },
    )
    monkeypatch.setattr(
        ImageReward,
        "text",
        ImageReward.text
        | {
            "hidden_size": t["width"],
            "intermediate_size": t["mlp"],
            "num_hidden_layers": t["layers"],
            "num_attention_heads": t["heads"],
            "encoder_hidden_size": v["width"],
            "vocab_size": words + 2,
        },
    )
    monkeypatch.setattr(PickScore, "vision", (160, 2))
    monkeypatch.setattr(ClipScore, "vision", (128, 2))
    full = HPSv21.config
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 48}
    monkeypatch.setattr(
        HPSv21,
        "config",
        {
            "projection_dim": 48,
            "vision_config": full["vision_config"] | small | {"hidden_size": 160, "intermediate_size": 640},
            "text_config": full["text_config"] | small | {"hidden_size": 64, "intermediate_size": 256},
        },
    )
    return published / "judges"


@pytest.fixture(scope="session")
def pictures():
    """{"640x480": (1, H, W, 3) in 0..1, …}: the pictures that the references saw."""
    return {f"{w}x{h}": torch.from_numpy(tiny.picture(w, h)).float()[None] / 255 for w, h in tiny.SIZES}


@pytest.fixture(scope="session")
def vlm_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vlms")
    for name, build in tiny_vlm.BUILDERS.items():
        build(root / name)
    return root


@pytest.fixture(scope="session")
def loaded_vlms(vlm_folders):
    return {name: LocalVLM(vlm_folders / name, device="cpu") for name in tiny_vlm.BUILDERS}


@pytest.fixture(params=tiny_vlm.BUILDERS)
def vlm(request, loaded_vlms):
    return loaded_vlms[request.param]


@pytest.fixture
def llava(vlm_folders, tmp_path):
    """A copy of one of them, to damage."""
    return shutil.copytree(vlm_folders / "llava", tmp_path / "copy")
