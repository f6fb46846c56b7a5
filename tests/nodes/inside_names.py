"""Runs inside ComfyUI's Python: what the loader nodes say of names.

Usage: inside_names.py COMFYUI_FOLDER PACK_FOLDER MODELS_FOLDER NAMES.json; prints one line of JSON.
"""

import json
import sys
from functools import partial
from pathlib import Path

from boot import module, start  # of nodes/inside

COMFYUI, PACK, MODELS, NAMES = sys.argv[1:5]
start(COMFYUI)
pack = partial(module, PACK)  # a module of the pack

import folder_paths  # noqa: E402
import torch  # noqa: E402

folder_paths.models_dir = MODELS
loaders = pack("nodes.loaders")
NODES = {
    "rewriter": (loaders.LoadRewriter, loaders.parse_rewriter_label),
    "refiner": (loaders.LoadRefiner, loaders.parse_refiner_label),
    "judge": (loaders.LoadJudge, loaders.parse_judge_label),
}
asked = json.loads(Path(NAMES).read_text())
found: dict = {"names": {}}
for role, names in asked["names"].items():
    node, read = NODES[role]
    for name in names:
        said = node.validate_inputs(**{role: name})
        one = read(name) if said is True else None
        found["names"][f"{role} {name}"] = said if one is None else [one.kind, one.model, one.url]
(judge,) = loaders.LoadJudge.execute(asked["remote"]).args
(rewriter,) = loaders.LoadRewriter.execute(asked["chat"]).args
found["scores"] = judge.score(torch.zeros(1, 8, 8, 3), ["a red circle"])
found["patchers"] = [judge.patcher, hasattr(rewriter, "patcher")]
pack("nodes.memory").load_to_device(judge, rewriter)
found["rewrite"] = pack("nodes.rewriter").rewrite_prompt(rewriter, "a cat")[0].prompt
print(json.dumps(found))
