"""PARM and the Reflection Loop in stock graphs of FLUX, SD3, SD1.5 and SDXL, with random weights.

The pictures are nothing to look at; but they come out of ComfyUI's own loaders, models, LoRAs, ControlNets
and inpainting, and a candidate that is not the plain sampler's picture shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from . import checkpoints
from .conftest import error_of

pytestmark = pytest.mark.comfyui
SIZE, STEPS, COUNT = 64, 6, 4  # halving cuts twice in 6 steps
# The judge's score then has the share of grey in it, so that no two pictures are alike to it.
ASKED = "a photo of a red circle on a grey background"
MUCH = "a photo of four blue stars on a grey background"  # no accident: the loop has to go on
TOLERANCE = 1  # of 255: another batch shape rounds another way
VISIBLE = 8  # of 255, on average: what two pictures must differ by to be called different
# What ComfyUI logs when a file's keys are not what it expects, or a picture's numbers are none.
COMPLAINTS = ("missing", "not loaded", "unexpected", "left over", "mismatch", "no match", "invalid value")


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
            kind, **self.inputs, **self.seeded(graph, seed), vae=self.vae, prompt=ASKED,
            judge=graph.add("RepriseLoadJudge", judge="shapeworld")[0], candidates=COUNT, prune="halving",
            preview=self.preview, chunk=self.chunk,
        )  # fmt: skip
        return parm[0][0], graph.add("PreviewImage", images=parm[2])[0][0]


def k_sampler(graph: Graph, model, positive, negative, latent_image, sampler_name="euler", scheduler="normal",
              cfg=4.0, denoise=1.0) -> dict:  # fmt: skip
    """The inputs of a KSampler but its seed."""
    return {"model": model, "steps": STEPS, "cfg": cfg, "sampler_name": sampler_name, "scheduler": scheduler,
            "positive": positive, "negative": negative, "latent_image": latent_image,
            "denoise": denoise}  # fmt: skip


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
    model, clip, *_ = graph.add("LoraLoader", model=plain.inputs["model"], clip=plain.clip,
                                lora_name="sd15_lora.safetensors", strength_model=1.0,
                                strength_clip=1.0)  # fmt: skip
    inputs = k_sampler(graph, model, *texts(graph, clip), plain.inputs["latent_image"])
    without = {key: plain.inputs[key] for key in ("model", "positive", "negative")}
    return Stock(graph, "KSampler", inputs, plain.vae, without, clip)


def sd15_controlnet() -> Stock:
    stock = sd15()
    graph = stock.graph
    control = graph.add("ControlNetLoader", control_net_name="control_sd15.safetensors")[0]
    hint = graph.add("LoadImage", image="scene.png")[0]
    positive, negative, *_ = graph.add(
        "ControlNetApplyAdvanced", positive=stock.inputs["positive"], negative=stock.inputs["negative"],
        control_net=control, image=hint, strength=1.0, start_percent=0.0, end_percent=0.8,
    )  # fmt: skip
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
        "InpaintModelConditioning", positive=stock.inputs["positive"], negative=stock.inputs["negative"],
        vae=stock.vae, pixels=picture, mask=mask, noise_mask=True,
    )  # fmt: skip
    stock.without = {key: stock.inputs[key] for key in ("positive", "negative", "latent_image")}
    stock.inputs |= {"model": model, "positive": positive, "negative": negative, "latent_image": latent,
                     "sampler_name": "heun"}  # fmt: skip
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
    return _flux_fill(graph, *graph.add("LoadImage", image="scene.png")[:2])


def _flux_fill(graph: Graph, picture, mask) -> Stock:
    model, clip, vae, conditioning = _flux(graph, "flux_fill.safetensors")
    model = graph.add("DifferentialDiffusion", model=model)[0]
    positive, _, latent, *_ = graph.add(
        "InpaintModelConditioning", positive=conditioning, negative=conditioning, vae=vae, pixels=picture,
        mask=mask, noise_mask=True,
    )  # fmt: skip
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


@pytest.fixture(scope="module")
def models(server):
    """Writes the checkpoints (1 GB) into the server's folders, and takes them away again."""
    import torch
    from PIL import Image

    made, root = [], server.base

    def put(folder: str, name: str, weights: dict) -> None:
        made.append(root / "models" / folder / name)
        checkpoints.save(weights, made[-1])

    put("text_encoders", "clip_l.safetensors", checkpoints.clip_l())
    # Without its text encoder, which is clip_l.safetensors again: a quarter of a gigabyte less to write.
    put("checkpoints", "sd15.safetensors", {
        **_under("model.diffusion_model.", checkpoints.unet(checkpoints.SD15)),
        **_under("first_stage_model.", checkpoints.kl_vae(4, quant=True))})  # fmt: skip
    inpainting = checkpoints.unet(checkpoints.SD15_INPAINTING)
    put("diffusion_models", "sd15_inpainting.safetensors", _under("model.diffusion_model.", inpainting))
    put("controlnet", "control_sd15.safetensors", _under("control_model.", checkpoints.controlnet()))
    put("loras", "sd15_lora.safetensors", checkpoints.sd15_lora())
    put("diffusion_models", "sd3.safetensors", _under("model.diffusion_model.", checkpoints.sd3()))
    put("diffusion_models", "flux.safetensors", checkpoints.flux())
    put("diffusion_models", "flux_fill.safetensors", checkpoints.flux(96))
    put("loras", "flux_lora.safetensors", checkpoints.flux_lora())
    put("vae", "ae.safetensors", checkpoints.kl_vae(16, quant=False))
    put("diffusion_models", "sdxl.safetensors", checkpoints.unet(checkpoints.SDXL))
    for name, channels in (("taef1", 16), ("taesdxl", 4)):
        for half, weights in zip(("encoder", "decoder"), checkpoints.taesd(channels)):
            put("vae_approx", f"{name}_{half}.safetensors", weights)
    text, picture = root / "datasets" / "sdxl_text", root / "input" / "scene.png"
    made += [text / "metadata.json", text / "shard_0000.pkl", picture]
    text.mkdir(parents=True)
    (text / "metadata.json").write_text("{}")
    torch.save(checkpoints.sdxl_dataset(), text / "shard_0000.pkl")
    Image.fromarray(scene()).save(picture)
    yield
    for file in made:
        file.unlink(missing_ok=True)


def _under(prefix: str, weights: dict) -> dict:
    return {prefix + key: tensor for key, tensor in weights.items()}


def scene() -> np.ndarray:
    """A picture with a hole in the middle, which LoadImage gives as the mask."""
    y, x = np.mgrid[:SIZE, :SIZE]
    hole = (abs(x - SIZE // 2) < SIZE // 4) & (abs(y - SIZE // 2) < SIZE // 4)
    waves = [128 + 120 * np.sin(x / 9 + y / (7 + i)) for i in range(3)]
    return np.dstack([*waves, np.where(hole, 0, 255)]).astype(np.uint8)


def unlike(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of two pictures, of 255."""
    return float(np.abs(a.astype(int) - b).mean())


def furthest(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference of two pictures, of 255."""
    return int(np.abs(a.astype(int) - b).max())


def search(server, stock: Stock) -> tuple[dict, list[np.ndarray]]:
    """PARM's report and finished pictures, best first, at a seed at which the first row does not win.

    A mask that takes the first rows, whichever are alive, would else go unseen.
    """
    for seed in range(100, 100 + 4 * COUNT, COUNT):
        graph = stock.graph.copy()
        parm, shown = stock.searched(graph, seed)
        entry = server.run(graph.nodes)
        assert entry["status"]["status_str"] == "success", entry["status"]
        (report,) = entry["outputs"][parm]["reprise_parm"]
        if report["best"] != 0:
            return report, server.images(entry, shown)
    raise AssertionError(f"the first of {COUNT} candidates won at every seed: {report}")


def complained(server, since: int) -> list[str]:
    """Lines of the log that tell of keys which ComfyUI did not find, or did not know."""
    lines = server.log.read_bytes()[since:].decode(errors="replace").splitlines()
    return [line for line in lines if any(word in line.lower() for word in COMPLAINTS)]


@pytest.mark.parametrize("name", CASES)
def test_parm_draws_what_the_stock_sampler_draws(server, models, name):
    stock, logged = CASES[name](), server.log.stat().st_size
    report, images = search(server, stock)
    candidates, cost = report["candidates"], report["cost"]
    assert [c["index"] for c in candidates] == list(range(COUNT))
    pruned = [c for c in candidates if c["pruned_at"] is not None]
    assert len(pruned) >= COUNT / 2 and all(1 <= c["pruned_at"] < STEPS for c in pruned)
    assert cost["denoiser_rows"] < 0.7 * cost["denoiser_rows_full"]
    finished = [c for c in candidates if c["score"] is not None]
    finished.sort(key=lambda c: (-c["score"], c["index"]))
    assert len(finished) == len(images) == COUNT - len(pruned)
    assert finished[0]["seed"] == report["seed"]

    graph = stock.graph.copy()
    alone = [stock.drawn(graph, c["seed"]) for c in finished]
    other = stock.drawn(graph, pruned[0]["seed"])
    bare = stock.drawn(graph, report["seed"], **stock.without) if stock.without else None
    entry = server.run(graph.nodes)
    assert entry["status"]["status_str"] == "success", entry["status"]
    alone = [server.images(entry, node)[0] for node in alone]
    assert max(furthest(a, b) for a, b in zip(images, alone, strict=True)) <= TOLERANCE
    # Without these the test would prove nothing.
    assert images[0].std() > VISIBLE and images[0].shape == (SIZE, SIZE, 3)
    assert unlike(server.images(entry, other)[0], alone[0]) > VISIBLE
    if bare:
        assert unlike(server.images(entry, bare)[0], alone[0]) > VISIBLE
    complaints = complained(server, logged)
    assert not complaints, complaints


def test_each_candidate_may_start_from_a_picture_of_its_own(server, models):
    graph = Graph()
    picture, mask, *_ = graph.add("LoadImage", image="scene.png")
    pictures = graph.add("ImageBatch", image1=picture, image2=graph.add("ImageInvert", image=picture)[0])[0]
    for color in (0xC04020, 0x2040C0):
        plain = graph.add("EmptyImage", width=SIZE, height=SIZE, batch_size=1, color=color)[0]
        pictures = graph.add("ImageBatch", image1=pictures, image2=plain)[0]
    report, images = search(server, _flux_fill(graph.copy(), pictures, mask))
    drawn = {}
    for row in (report["best"], 0):
        own = graph.add("ImageFromBatch", image=pictures, batch_index=row, length=1)[0]
        drawn[row] = _flux_fill(graph, own, mask).drawn(graph, report["seed"])
    entry = server.run(graph.nodes)
    drawn = {row: server.images(entry, node)[0] for row, node in drawn.items()}
    assert furthest(images[0], drawn[report["best"]]) <= TOLERANCE
    assert unlike(images[0], drawn[0]) > VISIBLE  # another's picture would show


@pytest.mark.parametrize("name, correction", [("sd15_lora", "draw again"), ("sd3", "image to image"),
                                              ("flux_lora", "draw again")])  # fmt: skip
def test_the_reflection_loop_draws_what_the_stock_nodes_draw(server, models, name, correction):
    """Each round is a plain KSampler's picture of its prompt and seed, through the same model and LoRA."""
    stock = CASES[name]()
    graph = stock.graph.copy()
    negative = graph.add("CLIPTextEncode", text="", clip=stock.clip)[0]
    inputs = stock.inputs if stock.sampler == "KSampler" else flux_k_sampler(stock, negative)
    shared = ("model", "latent_image", "steps", "cfg", "sampler_name", "scheduler")
    settings = {key: inputs[key] for key in shared}
    plain = graph.copy()
    loop = graph.add(
        "RepriseReflectionLoop", **settings, clip=stock.clip, vae=stock.vae, negative=negative, prompt=MUCH,
        rewriter=graph.add("RepriseLoadRewriter", rewriter="shapeworld (embedded)")[0],
        judge=graph.add("RepriseLoadJudge", judge="shapeworld")[0], rounds=2, seed=7, correction=correction,
        strength=0.6,
    )  # fmt: skip
    shown = graph.add("PreviewImage", images=loop[2])[0][0]
    told = graph.add("PreviewAny", source=loop[3])[0][0]
    entry = server.run(graph.nodes)
    assert entry["status"]["status_str"] == "success", entry["status"]
    rounds, pictures = json.loads(entry["outputs"][told]["text"][0]), server.images(entry, shown)
    assert len(rounds) == len(pictures) == 3 and {r["verdict"] for r in rounds} == {"no"}

    drawn: list[list] = []  # links to the pictures
    for number, r in enumerate(rounds):
        start = {"latent_image": settings["latent_image"], "denoise": 1.0}
        if number and correction == "image to image":  # over the best of the rounds before
            best = max(range(number), key=lambda i: (rounds[i]["score"], -i))
            over = plain.add("VAEEncode", pixels=drawn[best], vae=stock.vae)[0]
            start = {"latent_image": over, "denoise": 0.6}
        positive = plain.add("CLIPTextEncode", text=r["prompt"], clip=stock.clip)[0]
        latent = plain.add("KSampler", **{**settings, **start}, seed=r["seed"], positive=positive,
                           negative=negative)[0]  # fmt: skip
        drawn.append(plain.add("VAEDecode", samples=latent, vae=stock.vae)[0])
    shown = [plain.add("PreviewImage", images=link)[0][0] for link in drawn]
    entry = server.run(plain.nodes)
    for picture, node in zip(pictures, shown, strict=True):
        assert furthest(picture, server.images(entry, node)[0]) == 0
    assert unlike(pictures[0], pictures[1]) > VISIBLE and pictures[0].std() > VISIBLE


def flux_k_sampler(stock: Stock, negative) -> dict:
    """FLUX's graph with a KSampler, as the loop has one."""
    nodes = stock.graph.nodes
    model, latent = nodes[stock.inputs["guider"][0]]["inputs"]["model"], stock.inputs["latent_image"]
    return k_sampler(stock.graph, model, None, negative, latent, scheduler="simple", cfg=1.0)


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


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_graphs_draw(server, models, graph, name):
    """As users open them, but for checkpoint, judge, prompt, size and steps."""
    nodes = graph(name) | SHIPPED[name]
    del nodes["1"]
    for node in nodes.values():
        for key, link in node["inputs"].items():
            if isinstance(link, list) and link[0] == "1":
                node["inputs"][key] = [("model", "clip", "vae")[link[1]], 0]
    nodes["2"]["inputs"]["judge"], nodes["3"]["inputs"]["value"] = "shapeworld", ASKED
    nodes["6"]["inputs"] |= {"width": SIZE, "height": SIZE}
    nodes["8"]["inputs"]["steps"] = STEPS
    entry = server.run(nodes)
    assert entry["status"]["status_str"] == "success", entry["status"]
    (report,) = entry["outputs"]["8"]["reprise_parm"]
    finished = [c for c in report["candidates"] if c["pruned_at"] is None]
    assert len(report["candidates"]) == 8 and len(finished) < 8
    (best,), shown = server.images(entry, "9"), server.images(entry, "10")
    assert best.shape == (SIZE, SIZE, 3) and len(shown) == len(finished)
    assert np.array_equal(best, shown[0])


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


@pytest.mark.parametrize("made, says", [(easy_cache, "EasyCache"), (attention_guidance, "Self-Attention"),
                                        (merged_tokens, "Tome"), (hint_batch, "a batch of 2")])  # fmt: skip
def test_what_ties_candidates_together_is_refused(server, models, made, says):
    """In these graphs a pruned batch would draw other survivors, or none; the node says so at once."""
    stock = made()
    stock.searched(stock.graph, 100)
    assert says in error_of(server.run(stock.graph.nodes))["exception_message"]
