"""Runs inside ComfyUI's Python: what the core adds to each weight for a LoRA file.

Usage: inside_deltas.py COMFYUI_FOLDER PACK_FOLDER FILES; prints one line of JSON.

FILES holds a folder for each case: `lora.safetensors`, `model.json` with a class of supported_models and its
unet_config, or {"class": "clip"}, and, for a DoRA, the weights that it scales (`weights.safetensors`). The
changes are written to `deltas.safetensors`, for all weights of the model, in the core's names.
"""

import json
import logging
import sys
from pathlib import Path

from boot import start  # of backend/lab/bench/inside

COMFYUI, _, FILES = sys.argv[1:4]
start(COMFYUI)

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


class Warnings(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def model_of(given: dict) -> tuple[str, dict, dict]:
    """(the core's class, its weights as shells, {name in a LoRA file: weight})."""
    meta = torch.device("meta")
    if given["class"] == "clip":
        clip = comfy.sdxl_clip.SDXLClipModel(device=meta, dtype=torch.float32)
        return "SDXLClipModel", clip.state_dict(), comfy.lora.model_lora_keys_clip(clip, {})
    config = getattr(comfy.supported_models, given["class"])(given["unet_config"])
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=meta)
    return type(model).__name__, model.state_dict(), comfy.lora.model_lora_keys_unet(model, {})


def deltas(folder: Path) -> dict:
    given = json.loads((folder / "model.json").read_text())
    name, shells, keys = model_of(given)
    lora = load_file(folder / "lora.safetensors")
    own = load_file(folder / "weights.safetensors") if (folder / "weights.safetensors").exists() else {}
    log = Warnings()
    logging.getLogger().addHandler(log)
    found = comfy.lora.load_lora(comfy.lora_convert.convert_lora(lora), keys)
    patches: dict = {}
    for target, patch in found.items():
        key, *more = (target,) if isinstance(target, str) else target
        offset, function = [*more, None, None][:2]
        patches.setdefault(key, []).append((1.0, patch, 1.0, offset, function))
    made = {}
    for key, shell in shells.items():
        short = key.removeprefix("diffusion_model.")
        if given["class"] == "clip" and key not in patches:
            continue
        weight = own.get(short, torch.zeros(shell.shape))
        changed = comfy.lora.calculate_weight(patches[key], weight.clone(), key) if key in patches else weight
        made[short] = (changed - weight).contiguous()
    save_file(made, folder / "deltas.safetensors")
    logging.getLogger().removeHandler(log)
    return {"model": name, "patches": len(found), "warnings": log.lines}


found = {folder.name: deltas(folder) for folder in sorted(Path(FILES).iterdir())}
print(json.dumps(found))
