"""Runs inside ComfyUI's Python: the pack imported by path as ComfyUI does it, on the CPU.

Usage: inside.py COMFYUI_FOLDER PACK_FOLDER TASK; prints one line of JSON.
"""

import json
import sys
from functools import partial

from boot import module, start  # of backend/lab/bench/inside

COMFYUI, PACK, TASK = sys.argv[1:4]
start(COMFYUI)
pack = partial(module, PACK)  # a module of the pack

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402

SEED, STEPS, COUNT, CFG = 5, 6, 4, 3.0
PROMPT = "a large red circle at the top left and a small blue star in the center, on a grey background"


class Graph:
    """The embedded renderer, its conditioning and a judge, and PARM over them."""

    def __init__(self):
        self.model, self.clip, self.vae = pack("nodes.shapeworld").load()
        self.judge = pack("backend.rewards.shapeworld").ShapeWorldSoft()
        self.positive, self.negative = self.encode(PROMPT), self.encode("")
        self.latent = {"samples": torch.zeros(1, 16, 16, 16)}

    def encode(self, text: str):
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def parm(self, sampler="euler", prune="halving", **changed):
        """({candidate index: picture (H, W, 3)}, the node's report)."""
        inputs = {
            "model": self.model,
            "seed": SEED,
            "steps": STEPS,
            "cfg": CFG,
            "sampler_name": sampler,
            "scheduler": "simple",
            "positive": self.positive,
            "negative": self.negative,
            "latent_image": self.latent,
            "denoise": 1.0,
            "vae": self.vae,
            "judge": self.judge,
            "prompt": "a photo of a red circle and a blue star",
            "candidates": COUNT,
            "prune": prune,
            "preview": "auto",
            "chunk": 0,
            **changed,
        }
        with torch.inference_mode():
            result = pack("nodes.parm").ParmBestOfN.execute(**inputs).args
        report = json.loads(result[5])
        finished = [c for c in report["candidates"] if c["score"] is not None]
        order = sorted(finished, key=lambda c: (-c["score"], c["index"]))
        return {c["index"]: picture for c, picture in zip(order, result[2], strict=True)}, report

    def alone(self, seed: int, sampler="euler", latent=None, denoise=1.0):
        """The picture that the stock KSampler draws at batch 1."""
        latent = latent or self.latent
        with torch.inference_mode():
            noise = comfy.sample.prepare_noise(latent["samples"], seed)
            drawn = comfy.sample.sample(
                self.model,
                noise,
                STEPS,
                CFG,
                sampler,
                "simple",
                self.positive,
                self.negative,
                latent["samples"],
                denoise=denoise,
                noise_mask=latent.get("noise_mask"),
                seed=seed,
            )
            return self.vae.decode(drawn)[0]


def compare(graph: Graph, sampler="euler", **changed) -> dict:
    """Largest differences of survivors from the unpruned run, and of the winner from the stock KSampler."""
    whole, _ = graph.parm(sampler, "none", **changed)
    kept, report = graph.parm(sampler, "halving", **changed)
    winner = graph.alone(report["seed"], sampler, changed.get("latent_image"), changed.get("denoise", 1.0))
    return {
        "pruned": COUNT - len(kept),
        "survivors": max((whole[i] - kept[i]).abs().max().item() for i in kept),
        "winner": (kept[report["best"]] - winner).abs().max().item(),
        "rows": report["cost"]["denoiser_rows"] / report["cost"]["denoiser_rows_full"],
    }


def samplers() -> dict:
    graph, table = Graph(), {}
    for sampler in comfy.samplers.SAMPLER_NAMES:
        try:
            table[sampler] = compare(graph, sampler)
        except Exception as error:
            table[sampler] = {"refused": str(error)}
    return table


def settings() -> dict:
    """Image to image, inpainting, small chunks, each with a deterministic and a stochastic sampler."""
    graph = Graph()
    with torch.inference_mode():
        start = {"samples": graph.vae.encode(torch.rand(1, 128, 128, 3, generator=torch.manual_seed(0)))}
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., :64] = 1
    cases = {
        "image to image": {"latent_image": start, "denoise": 0.6},
        "inpainting": {"latent_image": {**start, "noise_mask": mask}, "denoise": 0.8},
        "chunks of 2": {"chunk": 2},
    }
    return {
        f"{name}, {sampler}": compare(graph, sampler, **changed)
        for name, changed in cases.items()
        for sampler in ("dpmpp_2m", "dpmpp_2m_sde")
    }


def refusals() -> dict:
    """The node's error for a VAE of another model."""
    graph = Graph()
    graph.vae.latent_channels = 4
    try:
        graph.parm()
    except Exception as error:
        return {"vae": f"{type(error).__name__}: {error}"}
    return {}


def embedded() -> dict:
    """Largest differences between ComfyUI's classes and transformers' and diffusers' on the same weights."""
    from diffusers import FluxPipeline

    graph = Graph()
    pipe = FluxPipeline.from_pretrained(str(pack("nodes.shapeworld").WEIGHTS), torch_dtype=torch.float32)
    length = pack("nodes.shapeworld").TEXT_LENGTH
    features, pooled, _ = pipe.encode_prompt(prompt=PROMPT, prompt_2=None, max_sequence_length=length)
    ours, our_pooled = graph.clip.encode_from_tokens(graph.clip.tokenize(PROMPT), return_pooled=True)
    noise = comfy.sample.prepare_noise(graph.latent["samples"], SEED)
    theirs = pipe(
        prompt=PROMPT,
        negative_prompt="",
        true_cfg_scale=CFG,
        num_inference_steps=STEPS,
        height=128,
        width=128,
        latents=pipe._pack_latents(noise, 1, 16, 16, 16),
        max_sequence_length=length,
        output_type="pt",
    ).images
    return {
        "t5": (features - ours).abs().max().item(),
        "clip": (pooled - our_pooled).abs().max().item(),
        "image": (theirs[0].movedim(0, -1) - graph.alone(SEED)).abs().max().item(),
    }


TASKS = {"samplers": samplers, "settings": settings, "embedded": embedded, "refusals": refusals}
print(json.dumps(TASKS[TASK]()))
