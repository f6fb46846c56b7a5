"""Runs inside ComfyUI's Python: Load Judge with tiny published files, under the memory manager.

Usage: inside_judges.py COMFYUI_FOLDER PACK_FOLDER MODELS_FOLDER; prints one line of JSON.
"""

import json
import sys
from functools import partial

from boot import module, start  # of backend/lab/bench/inside

COMFYUI, PACK, MODELS = sys.argv[1:4]
start(COMFYUI)
pack = partial(module, PACK)  # a module of the pack

import comfy.model_management as management  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402

folder_paths.models_dir = MODELS
pack("backend.rewards.published.pick_score").PickScore.vision = (160, 2)
loaders, scorer = pack("nodes.loaders"), pack("nodes.scorer")
found = {"choices": loaders.LoadJudge.define_schema().inputs[0].options}


def used(name: str) -> dict:
    """A judge's scores: after loading, after it was unloaded and reloaded, and in half precision."""
    (judge,) = loaders.LoadJudge.execute(name).args

    def loaded() -> bool:
        return judge.patcher in [entry.model for entry in management.current_loaded_models]

    def scores() -> list[float]:
        return scorer.RewardScorer.execute(images, "a red circle", judge).args[2]

    seen: dict = {"scores": scores(), "managed": [loaded()]}
    # As a sampler that needs more memory than there is, so that all other models are unloaded.
    management.free_memory(1e30, management.text_encoder_device())
    seen["managed"].append(loaded())
    seen["back"] = scores()
    seen["managed"].append(loaded())
    judge.model.half()  # as published ones are on a GPU, and this one was just moved off it
    seen["half"] = scores()
    seen["kept"] = str(next(judge.model.parameters()).dtype)
    return seen


with torch.inference_mode():
    images = torch.linspace(0, 1, 2 * 40 * 30 * 3).reshape(2, 40, 30, 3)
    found["pick-score"] = used("pick-score")
    found["vlm"] = used("vlm: tiny/qwen#match")
    alone = pack("backend.rewards.vlm.judge").vlm_judge(f"{MODELS}/reprise/judges/tiny/qwen", device="cpu")
    found["alone"] = [alone.score(image[None], ["a red circle"])[0] for image in images]
    (critic,) = loaders.LoadJudge.execute("vlm: tiny/qwen#checklist").args
    found["critique"] = critic.criticize(images[:1], ["a red circle"])[0].critique
try:
    loaders.LoadJudge.execute("image-reward")
except Exception as error:
    found["missing"] = f"{type(error).__name__}: {error}"
try:
    loaders.LoadJudge.execute("vlm: gone#match")
except Exception as error:
    found["gone"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
