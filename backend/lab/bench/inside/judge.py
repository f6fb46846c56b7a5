"""One judge in its own process: ours, or the published package's; `reprise lab bench rewards` runs both.

Usage: judge.py ours|reference NAME FOLDER. The published files are in FOLDER; `ours` needs the pack's root in
REPRISE_ROOT. The first line printed is {"device", "threads"}, after the judge is loaded. Then each line read,
{"pictures": [path, …], "prompt"}, is answered by {"seconds", "reading": seconds of these for reading the
checkpoint, "scores", "peak": bytes of memory so far, "gpu_peak"}.

The references run unchanged. The files that they would download are in their caches.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

Score = Callable[[list[str], str], list[float]]

HPS_REPO, HPS_FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"
# hpsv2 first reads this file, too; both have the same names and shapes.
CLIP_REPO, CLIP_FILE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "open_clip_pytorch_model.bin"
# med_config.json of THUDM/ImageReward.
MED_CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "add_type_embeddings": False,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}

reading = 0.0  # seconds that the current call has spent on reading a checkpoint


def ours(name: str, folder: Path) -> Score:
    """Our judge on picture files, as in `reprise score`, but all in one call."""
    if "reprise" not in sys.modules:  # an installation's, or the pack's by its path
        runpy.run_path(str(Path(os.environ["REPRISE_ROOT"]) / "__main__.py"))["_as_package"]()
    import torch
    from PIL import Image

    from reprise.backend.core.scoring import image_scores
    from reprise.backend.factory import open_reward
    from reprise.backend.storage.images import from_pil

    judge = open_reward(name, folder=folder)

    def score(pictures: list[str], prompt: str) -> list[float]:
        images = torch.stack([from_pil(Image.open(picture)) for picture in pictures])
        return image_scores(judge, images, [prompt] * len(pictures))

    return score


def image_reward(folder: Path) -> Score:
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    bert = folder / "bert-base-uncased"  # a folder of that name is used instead of the repository
    bert.mkdir(exist_ok=True)
    (bert / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    os.chdir(folder)
    sys.modules["ImageReward.ReFL"] = types.ModuleType("ReFL")  # its trainer, which needs more packages
    import ImageReward

    model = ImageReward.load(str(folder / "ImageReward.pt"), med_config=str(folder / "med_config.json"))

    def score(pictures: list[str], prompt: str) -> list[float]:
        found = model.score(prompt, pictures)
        return found if isinstance(found, list) else [found]

    return score


def hps(folder: Path) -> Score:
    for repo, name in ((HPS_REPO, HPS_FILE), (CLIP_REPO, CLIP_FILE)):
        cached = folder / "hub" / ("models--" + repo.replace("/", "--"))
        (cached / "refs").mkdir(parents=True, exist_ok=True)
        (cached / "refs" / "main").write_text("random")
        (cached / "snapshots" / "random").mkdir(parents=True, exist_ok=True)
        os.link(folder / HPS_FILE, cached / "snapshots" / "random" / name)
    os.environ |= {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "HPS_ROOT": str(folder)}
    import hpsv2
    import torch

    for owner, name in ((torch, "load"), (torch.nn.Module, "load_state_dict")):
        setattr(owner, name, _counted(getattr(owner, name)))

    def score(pictures: list[str], prompt: str) -> list[float]:
        return [float(value) for value in hpsv2.score(pictures, prompt, hps_version="v2.1")]

    return score


def _counted(read: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **options: Any) -> Any:
        global reading
        started = time.perf_counter()
        result = read(*args, **options)
        reading += time.perf_counter() - started
        return result

    return counted


def answer(score: Score, pictures: list[str], prompt: str) -> dict[str, Any]:
    global reading
    reading, started = 0.0, time.perf_counter()
    scores = score(pictures, prompt)
    seconds = time.perf_counter() - started
    import torch

    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"seconds": seconds, "reading": reading, "scores": scores, "peak": peak(), "gpu_peak": gpu}


def peak() -> int:
    """The most bytes of resident memory so far, mapped parts of files included."""
    try:  # getrusage would also count the memory of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    side, name, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print too
    if side == "ours":
        score = ours(name, folder)
    else:
        score = {"image-reward": image_reward, "hps-v2.1": hps}[name](folder)
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(json.dumps({"device": device, "threads": torch.get_num_threads()}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(score, **json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
