"""Runs inside ComfyUI's Python: Load Judge with tiny published files, under the memory manager.

Usage: inside_judges.py COMFYUI_FOLDER PACK_FOLDER MODELS_FOLDER; prints one line of JSON.
"""

import importlib
import importlib.util
import json
import sys

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = ["main.py", "--cpu"]
sys.path[0] = COMFYUI  # not this file's folder

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402


def pack(module: str):
    """A module of the pack, whose name is its path."""
    name = PACK.replace(".", "_x_")
    if name not in sys.modules:
        where = PACK + "/__init__.py"
        spec = importlib.util.spec_from_file_location(name, where, submodule_search_locations=[PACK])
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.{module}")


folder_paths.models_dir = MODELS
pack("backend.rewards.pick_score").PickScore.vision = (160, 2)
loaders, scorer = pack("nodes.loaders"), pack("nodes.scorer")
found = {"choices": loaders.LoadJudge.define_schema().inputs[0].options}
with torch.inference_mode():
    images = torch.linspace(0, 1, 2 * 40 * 30 * 3).reshape(2, 40, 30, 3)
    (judge,) = loaders.LoadJudge.execute("pick-score").args
    together = scorer.RewardScorer.execute(images, "a red circle", judge).args[2]
    judge.model.half()  # as published ones are on a GPU, and this one was just moved off it
    found["half"] = scorer.RewardScorer.execute(images, "a red circle", judge).args[2]
    found["kept"] = str(next(judge.model.parameters()).dtype)
found["managed"] = judge.patcher in [loaded.model for loaded in comfy.model_management.current_loaded_models]
found["scores"] = together
try:
    loaders.LoadJudge.execute("image-reward")
except Exception as error:
    found["missing"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
