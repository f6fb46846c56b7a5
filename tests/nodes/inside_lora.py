"""Runs inside ComfyUI's Python: what the core's LoRA loader makes of our LoRA files.

Usage: inside_lora.py COMFYUI_FOLDER PACK_FOLDER FILES; prints one line of JSON.

FILES holds a folder for each family: `lora.safetensors` and, for a transformer, the denoiser's weights before
(`base.safetensors`) and after (`merged.safetensors`); for a UNet its config (`config.json`).
"""

import json
import sys
from pathlib import Path

from boot import start  # of backend/lab/bench/inside

COMFYUI, _, FILES = sys.argv[1:4]
start(COMFYUI)

import comfy.lora  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def patches(model, lora: dict) -> dict:
    """What the loader finds in a file, and what it leaves."""
    keys = comfy.lora.model_lora_keys_unet(model, {})
    found = comfy.lora.load_lora(lora, keys, log_missing=False)
    loaded = {key for patch in found.values() for key in patch.loaded_keys}
    alphas = {key for key in lora if key.endswith(".alpha")}
    shapes = {key: tuple(weight.shape) for key, weight in model.state_dict().items()}
    misfits = []
    for target, patch in found.items():
        name, offset = (target, None) if isinstance(target, str) else target[:2]
        rows, *columns = shapes[name]
        rows = rows if offset is None else offset[2]
        columns = int(torch.tensor(columns).prod())
        if (patch.weights[0].shape[0], patch.weights[1].shape[1]) != (rows, columns):
            misfits.append(name)
    return {"found": len(found), "left": sorted(set(lora) - loaded - alphas), "misfits": misfits}


def transformer(folder: Path) -> dict:
    """The core's model with the file loaded against the core's model of the merged weights."""
    lora = load_file(next(folder.glob("*lora*.safetensors")))

    def load(name: str):
        torch.manual_seed(0)  # of what a checkpoint of diffusers lacks: PixArt's embedding of no text
        return comfy.sd.load_diffusion_model_state_dict(load_file(folder / f"{name}.safetensors"))

    base, merged = load("base"), load("merged")
    result = {"model": type(base.model).__name__, **patches(base.model, lora)}
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    patched, _ = comfy.sd.load_lora_for_models(base, None, lora, 1.0, 0.0)
    patched.patch_model(device_to=torch.device("cpu"))
    after, expected = patched.model.state_dict(), merged.model.state_dict()
    assert after.keys() == expected.keys()

    def apart(one: dict, other: dict) -> dict[str, float]:
        return {key: (one[key].float() - other[key].float()).abs().max().item() for key in one}

    result["wrong"] = {key: error for key, error in apart(after, expected).items() if error > 1e-6}
    result["change"] = max(apart(after, before).values())
    return result


def unet(folder: Path) -> dict:
    """The core's UNet at full size, without its weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        theirs = UNet2DConditionModel(**json.loads((folder / "config.json").read_text())).state_dict()
    config = comfy.model_detection.model_config_from_diffusers_unet(theirs)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("meta"))
    result = patches(model, load_file(folder / "lora.safetensors"))
    return {"model": type(config).__name__, **result}


found = {}
for folder in sorted(Path(FILES).iterdir()):
    found[folder.name] = (unet if (folder / "config.json").exists() else transformer)(folder)
print(json.dumps(found))
