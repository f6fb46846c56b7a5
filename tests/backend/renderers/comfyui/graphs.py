"""Graphs in API format that the tests of workflows change: ComfyUI's first one, FLUX, SDXL, ControlNets."""

import copy
from pathlib import Path

from ....fake_comfyui import GRAPH

ROOT = Path(__file__).resolve().parents[4]
API = ROOT / "tests" / "data" / "api"


def node(kind, title=None, **inputs):
    return {"class_type": kind, "inputs": inputs, **({"_meta": {"title": title}} if title else {})}


def changed(**nodes):
    """GRAPH with nodes put in, "n8" as node 8; None takes one out."""
    graph = copy.deepcopy(GRAPH) | {name[1:]: made for name, made in nodes.items()}
    return {name: made for name, made in graph.items() if made is not None}


def sampler(**inputs):
    return node("KSampler", **{**GRAPH["5"]["inputs"], **inputs})


def advanced(**inputs):
    given = {
        "model": ["1", 0],
        "add_noise": "enable",
        "noise_seed": 1,
        "steps": 25,
        "cfg": 8.0,
        "positive": ["2", 0],
        "negative": ["3", 0],
        "latent_image": ["4", 0],
        "start_at_step": 0,
        "end_at_step": 20,
        "return_with_leftover_noise": "enable",
    }
    return node("KSamplerAdvanced", **{**given, **inputs})


FLUX = {
    "1": node("UNETLoader", unet_name="flux1-dev.safetensors"),
    "2": node("DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl.safetensors", type="flux"),
    "3": node("VAELoader", vae_name="ae.safetensors"),
    "4": node("CLIPTextEncodeFlux", clip=["2", 0], clip_l="a cat", t5xxl="a cat on a red sofa", guidance=3.5),
    "5": node("BasicGuider", model=["1", 0], conditioning=["4", 0]),
    "6": node("RandomNoise", noise_seed=9),
    "7": node("KSamplerSelect", sampler_name="euler"),
    "8": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=20, denoise=1.0),
    "9": node("EmptySD3LatentImage", width=1024, height=1024, batch_size=4),
    "10": node(
        "SamplerCustomAdvanced",
        noise=["6", 0],
        guider=["5", 0],
        sampler=["7", 0],
        sigmas=["8", 0],
        latent_image=["9", 0],
    ),
    "11": node("VAEDecode", samples=["10", 0], vae=["3", 0]),
    "12": node("SaveImage", images=["11", 0], filename_prefix="flux"),
}

# SDXL: the base leaves noise to the refiner, whose encoders hold the same words.
SDXL = changed(
    n2=node("CLIPTextEncodeSDXL", clip=["1", 1], text_g="a cat", text_l="a cat", width=1024, height=1024),
    n5=advanced(),
    n8=node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors"),
    n9=node("CLIPTextEncodeSDXLRefiner", clip=["8", 1], text="a cat", ascore=6.0, width=1024, height=1024),
    n10=node("CLIPTextEncodeSDXLRefiner", clip=["8", 1], text="blurry", ascore=2.5, width=1024, height=1024),
    n11=advanced(
        model=["8", 0],
        positive=["9", 0],
        negative=["10", 0],
        latent_image=["5", 0],
        add_noise="disable",
        noise_seed=0,
        start_at_step=20,
        end_at_step=10000,
    ),
    n6=node("VAEDecode", samples=["11", 0], vae=["8", 2]),
)

# Two ControlNets, each taking positive and negative in and giving both out.
CONTROL = changed(
    n8=node("LoadImage", image="pose.png"),
    n9=node("ControlNetLoader", control_net_name="pose.safetensors"),
    n10=node(
        "ControlNetApplyAdvanced",
        positive=["2", 0],
        negative=["3", 0],
        control_net=["9", 0],
        image=["8", 0],
        strength=1.0,
    ),
    n11=node(
        "ControlNetApplyAdvanced",
        positive=["10", 0],
        negative=["10", 1],
        control_net=["9", 0],
        image=["8", 0],
        strength=0.5,
    ),
    n5=sampler(positive=["11", 0], negative=["11", 1]),
)
