"""Runs inside ComfyUI's Python: Load Refiner, PRIP Refiner and PRIP Describe under the memory manager.

Usage: inside_refiner.py COMFYUI_FOLDER PACK_FOLDER MODELS_FOLDER; prints one line of JSON.
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
loaders, nodes = pack("nodes.loaders"), pack("nodes.refiner")
found = {"choices": loaders.LoadRefiner.define_schema().inputs[0].options}


def loaded(holder) -> bool:
    return holder.patcher in [entry.model for entry in management.current_loaded_models]


with torch.inference_mode():
    image = torch.linspace(0, 1, 2 * 40 * 30 * 3).reshape(2, 40, 30, 3)
    (refiner,) = loaders.LoadRefiner.execute("tiny").args
    found["refined"] = nodes.PripRefiner.execute("a red circle.", refiner, 3, 5).args[0]
    found["loaded"] = [loaded(refiner), "vision_tower" in vars(refiner)]
    found["described"] = nodes.PripDescribe.execute(image, refiner, 2, 5).args[0]
    found["loaded"] += [loaded(refiner), loaded(refiner.vision_tower)]
    # As a sampler that needs more memory than there is, so that all other models are unloaded.
    management.free_memory(1e30, management.text_encoder_device())
    found["loaded"] += [loaded(refiner), loaded(refiner.vision_tower)]
    pack("nodes.rewriter")._REMEMBERED.clear()
    found["again"] = nodes.PripRefiner.execute("a red circle.", refiner, 3, 5).args[0]
    (promptist,) = loaders.LoadRefiner.execute("baseline").args
    found["promptist"] = [promptist.name, len(nodes.PripRefiner.execute("a cat", promptist, 2, 5).args[0])]
    for name, other in (("no vision", promptist), ("no tower", loaders.LoadRefiner.execute("blind").args[0])):
        try:
            nodes.PripDescribe.execute(image, other, 1, 0)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
