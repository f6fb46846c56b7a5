"""Stock graphs of FLUX, SD3, SD1.5 and SDXL in API format, for the checkpoints that `checkpoints` makes.

A graph is written up to its sampler (`Stock`); the sampler, or PARM in its place, is added by the test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

SIZE, STEPS, COUNT = 64, 6, 4  # halving cuts twice in 6 steps
# The judge's score then has the share of grey in it, so that no two pictures are alike to it.
ASKED = "a photo of a red circle on a grey background"


@dataclass
class Graph:
    """An API-format graph, written node by node."""

    nodes: dict[str, dict] = field(default_factory=dict)

    def add(self, kind: str, **inputs) -> list[list]:
        """A node; returns the links to its outputs."""
        name = str(len(self.nodes) + 1)
        self.nodes[name] = {"class_type": kind, "inputs": inputs}
        return [[name, slot] for slot in range(6)]

    def copy(self) -> Graph:
        return Graph(json.loads(json.dumps(self.nodes)))


@dataclass
class Stock:
    """A stock graph up to its sampler, the sampler's inputs but its seed, and the same inputs `without` what
    the graph is about (the LoRA, the ControlNet, the mask)."""

    graph: Graph
    sampler: str
    inputs: dict
    vae: list
    without: dict = field(default_factory=dict)
    clip: list | None = None
    preview: str = "auto"
    chunk: int = 0

    def seeded(self, graph: Graph, seed: int) -> dict:
        if self.sampler == "KSampler":
            return {"seed": seed}
        return {"noise": graph.add("RandomNoise", noise_seed=seed)[0]}

    def drawn(self, graph: Graph, seed: int, **changed) -> str:
        """Adds the stock sampler; returns the id of the node that saves its picture."""
        inputs = {**self.inputs, **changed, **self.seeded(graph, seed)}
        latent = graph.add(self.sampler, **inputs)[0]
        picture = graph.add("VAEDecode", samples=latent, vae=self.vae)[0]
        return graph.add("PreviewImage", images=picture)[0][0]

    def searched(self, graph: Graph, seed: int) -> tuple[str, str]:
        """Adds PARM in the sampler's place; returns its node's id and that of the one that saves `images`."""
        kind = "RepriseParmBestOfN" + ("" if self.sampler == "KSampler" else "Advanced")
        parm = graph.add(
            kind,
            **self.inputs,
            **self.seeded(graph, seed),
            vae=self.vae,
            prompt=ASKED,
            judge=graph.add("RepriseLoadJudge", judge="shapeworld")[0],
            candidates=COUNT,
            prune="halving",
            preview=self.preview,
            chunk=self.chunk,
        )
        return parm[0][0], graph.add("PreviewImage", images=parm[2])[0][0]


def k_sampler(
    graph: Graph,
    model,
    positive,
    negative,
    latent_image,
    sampler_name="euler",
    scheduler="normal",
    cfg=4.0,
    denoise=1.0,
) -> dict:
    """The inputs of a KSampler but its seed."""
    return {
        "model": model,
        "steps": STEPS,
        "cfg": cfg,
        "sampler_name": sampler_name,
        "scheduler": scheduler,
        "positive": positive,
        "negative": negative,
        "latent_image": latent_image,
        "denoise": denoise,
    }


def texts(graph: Graph, clip) -> tuple[list, list]:
    """Positive and negative conditioning from the prompt's and an empty text."""
    positive = graph.add("CLIPTextEncode", text=ASKED, clip=clip)[0]
    return positive, graph.add("CLIPTextEncode", text="", clip=clip)[0]


def sd15() -> Stock:
    graph = Graph()
    model, _, vae, *_ = graph.add("CheckpointLoaderSimple", ckpt_name="sd15.safetensors")
    clip = graph.add("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion")[0]
    latent = graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1)[0]
    inputs = k_sampler(graph, model, *texts(graph, clip), latent, "dpmpp_2m_sde", "karras")
    return Stock(graph, "KSampler", inputs, vae, clip=clip)


def sd15_lora() -> Stock:
    """LoraLoader: on the UNet and on the text encoder."""
    plain = sd15()
    graph = plain.graph
    model, clip, *_ = graph.add(
        "LoraLoader",
        model=plain.inputs["model"],
        clip=plain.clip,
        lora_name="sd15_lora.safetensors",
        strength_model=1.0,
        strength_clip=1.0,
    )
    inputs = k_sampler(graph, model, *texts(graph, clip), plain.inputs["latent_image"])
    without = {key: plain.inputs[key] for key in ("model", "positive", "negative")}
    return Stock(graph, "KSampler", inputs, plain.vae, without, clip)


def sd15_controlnet() -> Stock:
    stock = sd15()
    graph = stock.graph
    control = graph.add("ControlNetLoader", control_net_name="control_sd15.safetensors")[0]
    hint = graph.add("LoadImage", image="scene.png")[0]
    positive, negative, *_ = graph.add(
        "ControlNetApplyAdvanced",
        positive=stock.inputs["positive"],
        negative=stock.inputs["negative"],
        control_net=control,
        image=hint,
        strength=1.0,
        start_percent=0.0,
        end_percent=0.8,
    )
    stock.without = {"positive": stock.inputs["positive"], "negative": stock.inputs["negative"]}
    stock.inputs |= {"positive": positive, "negative": negative, "sampler_name": "dpmpp_2m"}
    stock.preview, stock.chunk = "VAE", 3  # the hint meets batches of 3 and 1, then of 2 and of 1
    return stock


def sd15_masked() -> Stock:
    """Inpainting with the usual model: SetLatentNoiseMask."""
    stock = sd15()
    graph = stock.graph
    picture, mask, *_ = graph.add("LoadImage", image="scene.png")
    start = graph.add("VAEEncode", pixels=picture, vae=stock.vae)[0]
    masked = graph.add("SetLatentNoiseMask", samples=start, mask=mask)[0]
    stock.without = {"latent_image": start}
    stock.inputs |= {"latent_image": masked, "sampler_name": "euler_ancestral", "denoise": 0.8}
    return stock


def sd15_inpainting() -> Stock:
    """Inpainting with the inpainting model of 9 channels: InpaintModelConditioning."""
    stock = sd15()
    graph = stock.graph
    model = graph.add("UNETLoader", unet_name="sd15_inpainting.safetensors", weight_dtype="default")[0]
    picture, mask, *_ = graph.add("LoadImage", image="scene.png")
    positive, negative, latent, *_ = graph.add(
        "InpaintModelConditioning",
        positive=stock.inputs["positive"],
        negative=stock.inputs["negative"],
        vae=stock.vae,
        pixels=picture,
        mask=mask,
        noise_mask=True,
    )
    stock.without = {key: stock.inputs[key] for key in ("positive", "negative", "latent_image")}
    stock.inputs |= {
        "model": model,
        "positive": positive,
        "negative": negative,
        "latent_image": latent,
        "sampler_name": "heun",
    }
    return stock


def sd3() -> Stock:
    graph = Graph()
    model = graph.add("UNETLoader", unet_name="sd3.safetensors", weight_dtype="default")[0]
    clip = graph.add("CLIPLoader", clip_name="clip_l.safetensors", type="sd3")[0]
    vae = graph.add("VAELoader", vae_name="ae.safetensors")[0]
    model = graph.add("ModelSamplingSD3", model=model, shift=3.0)[0]
    latent = graph.add("EmptySD3LatentImage", width=SIZE, height=SIZE, batch_size=1)[0]
    inputs = k_sampler(graph, model, *texts(graph, clip), latent, "dpmpp_2m", "sgm_uniform")
    return Stock(graph, "KSampler", inputs, vae, clip=clip)


def _flux(graph: Graph, unet_name: str) -> tuple[list, list, list, list]:
    """MODEL, CLIP, VAE and CONDITIONING.

    FLUX's text encoders are CLIP-L and T5-XXL, and stock loaders take T5-XXL at its 4.7 billion weights only.
    So the text is CLIP-L's, 768 wide, which `txt_in` is made for; FLUX takes its width from the weights.
    """
    model = graph.add("UNETLoader", unet_name=unet_name, weight_dtype="default")[0]
    clip = graph.add("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion")[0]
    vae = graph.add("VAELoader", vae_name="ae.safetensors")[0]
    text = graph.add("CLIPTextEncode", text=ASKED, clip=clip)[0]
    return model, clip, vae, graph.add("FluxGuidance", conditioning=text, guidance=3.5)[0]


def _flux_sampler(graph: Graph, model, conditioning, latent_image) -> dict:
    """The inputs of a SamplerCustomAdvanced but its noise."""
    shift = {"max_shift": 1.15, "base_shift": 0.5, "width": SIZE, "height": SIZE}
    model = graph.add("ModelSamplingFlux", model=model, **shift)[0]
    return {
        "guider": graph.add("BasicGuider", model=model, conditioning=conditioning)[0],
        "sampler": graph.add("KSamplerSelect", sampler_name="euler")[0],
        "sigmas": graph.add("BasicScheduler", model=model, scheduler="simple", steps=STEPS, denoise=1.0)[0],
        "latent_image": latent_image,
    }


def flux_lora() -> Stock:
    """FLUX's own graph: SamplerCustomAdvanced, LoraLoaderModelOnly; previews come from its TAESD."""
    graph = Graph()
    plain, clip, vae, conditioning = _flux(graph, "flux.safetensors")
    latent = graph.add("EmptySD3LatentImage", width=SIZE, height=SIZE, batch_size=1)[0]
    name = "flux_lora.safetensors"
    model = graph.add("LoraLoaderModelOnly", model=plain, lora_name=name, strength_model=1.0)[0]
    inputs, without = (_flux_sampler(graph, m, conditioning, latent) for m in (model, plain))
    return Stock(graph, "SamplerCustomAdvanced", inputs, vae, without, clip, "TAESD")


def flux_fill() -> Stock:
    """FLUX.1 Fill: InpaintModelConditioning and Differential Diffusion."""
    graph = Graph()
    return flux_fill_of(graph, *graph.add("LoadImage", image="scene.png")[:2])


def flux_fill_of(graph: Graph, picture, mask) -> Stock:
    """The same with another picture and mask."""
    model, clip, vae, conditioning = _flux(graph, "flux_fill.safetensors")
    model = graph.add("DifferentialDiffusion", model=model)[0]
    positive, _, latent, *_ = graph.add(
        "InpaintModelConditioning",
        positive=conditioning,
        negative=conditioning,
        vae=vae,
        pixels=picture,
        mask=mask,
        noise_mask=True,
    )
    inputs = _flux_sampler(graph, model, positive, latent)
    empty = graph.add("EmptySD3LatentImage", width=SIZE, height=SIZE, batch_size=1)[0]
    return Stock(graph, "SamplerCustomAdvanced", inputs, vae, {"latent_image": empty}, clip)


def sdxl() -> Stock:
    """SDXL with its TAESD as VAE.

    Its second text encoder has 695 million weights, and no stock loader takes a smaller one: the text comes
    from a file through LoadTrainingDataset, and the negative is ConditioningZeroOut.
    """
    graph = Graph()
    model = graph.add("UNETLoader", unet_name="sdxl.safetensors", weight_dtype="default")[0]
    vae = graph.add("VAELoader", vae_name="taesdxl")[0]
    positive = graph.add("LoadTrainingDataset", folder_name="sdxl_text")[1]
    negative = graph.add("ConditioningZeroOut", conditioning=positive)[0]
    latent = graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1)[0]
    inputs = k_sampler(graph, model, positive, negative, latent, "euler_ancestral")
    return Stock(graph, "KSampler", inputs, vae)


_MADE = (sd15, sd15_lora, sd15_controlnet, sd15_masked, sd15_inpainting, sd3, flux_lora, flux_fill, sdxl)
CASES: dict[str, Callable[[], Stock]] = {made.__name__: made for made in _MADE}


def flux_k_sampler(stock: Stock, negative) -> dict:
    """FLUX's graph with a KSampler, as the loop has one."""
    nodes = stock.graph.nodes
    model, latent = nodes[stock.inputs["guider"][0]]["inputs"]["model"], stock.inputs["latent_image"]
    return k_sampler(stock.graph, model, None, negative, latent, scheduler="simple", cfg=1.0)


def easy_cache() -> Stock:
    stock = sd15()
    cached = {"reuse_threshold": 0.2, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
    stock.inputs["model"] = stock.graph.add("EasyCache", model=stock.inputs["model"], **cached)[0]
    return stock


def attention_guidance() -> Stock:
    stock = sd15()
    guided = {"scale": 0.5, "blur_sigma": 2.0}
    stock.inputs["model"] = stock.graph.add("SelfAttentionGuidance", model=stock.inputs["model"], **guided)[0]
    return stock


def merged_tokens() -> Stock:
    stock = sd15()
    stock.inputs["model"] = stock.graph.add("TomePatchModel", model=stock.inputs["model"], ratio=0.3)[0]
    return stock


def hint_batch() -> Stock:
    stock = sd15_controlnet()
    (apply,) = [n for n in stock.graph.nodes.values() if n["class_type"] == "ControlNetApplyAdvanced"]
    two = stock.graph.add("EmptyImage", width=SIZE, height=SIZE, batch_size=2, color=0)
    apply["inputs"]["image"] = two[0]
    return stock


def _loader(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


SHIPPED = {
    "flux_best_of_n": {
        "model": _loader("UNETLoader", unet_name="flux.safetensors", weight_dtype="default"),
        "clip": _loader("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion"),
        "vae": _loader("VAELoader", vae_name="ae.safetensors"),
    },
    "sdxl_best_of_n": {
        "model": _loader("UNETLoader", unet_name="sdxl.safetensors", weight_dtype="default"),
        "vae": _loader("VAELoader", vae_name="taesdxl"),
        "text": _loader("LoadTrainingDataset", folder_name="sdxl_text"),
        "4": _loader("ConditioningSetTimestepRange", conditioning=["text", 1], start=0.0, end=1.0),
        "5": _loader("ConditioningZeroOut", conditioning=["text", 1]),
    },
}  # what stands in for the checkpoint, and for SDXL's texts as in `sdxl`
