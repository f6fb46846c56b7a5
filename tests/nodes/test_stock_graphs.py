"""PARM and the Reflection Loop in stock graphs of FLUX, SD3, SD1.5 and SDXL, with random weights.

The pictures are nothing to look at; but they come out of ComfyUI's own loaders, models, LoRAs, ControlNets
and inpainting, and a candidate that is not the plain sampler's picture shows.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from . import checkpoints
from .conftest import error_of
from .graphs import (
    ASKED,
    CASES,
    COUNT,
    SHIPPED,
    SIZE,
    STEPS,
    Graph,
    Stock,
    attention_guidance,
    easy_cache,
    flux_fill_of,
    flux_k_sampler,
    hint_batch,
    merged_tokens,
)

pytestmark = pytest.mark.comfyui
MUCH = "a photo of four blue stars on a grey background"  # no accident: the loop has to go on
TOLERANCE = 1  # of 255: another batch shape rounds another way
VISIBLE = 8  # of 255, on average: what two pictures must differ by to be called different
# What ComfyUI logs when a file's keys are not what it expects, or a picture's numbers are none.
COMPLAINTS = ("missing", "not loaded", "unexpected", "left over", "mismatch", "no match", "invalid value")


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
    put(
        "checkpoints",
        "sd15.safetensors",
        {
            **_under("model.diffusion_model.", checkpoints.unet(checkpoints.SD15)),
            **_under("first_stage_model.", checkpoints.kl_vae(4, quant=True)),
        },
    )
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
    report, images = search(server, flux_fill_of(graph.copy(), pictures, mask))
    drawn = {}
    for row in (report["best"], 0):
        own = graph.add("ImageFromBatch", image=pictures, batch_index=row, length=1)[0]
        drawn[row] = flux_fill_of(graph, own, mask).drawn(graph, report["seed"])
    entry = server.run(graph.nodes)
    drawn = {row: server.images(entry, node)[0] for row, node in drawn.items()}
    assert furthest(images[0], drawn[report["best"]]) <= TOLERANCE
    assert unlike(images[0], drawn[0]) > VISIBLE  # another's picture would show


@pytest.mark.parametrize(
    "name, correction", [("sd15_lora", "draw again"), ("sd3", "image to image"), ("flux_lora", "draw again")]
)
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
        "RepriseReflectionLoop",
        **settings,
        clip=stock.clip,
        vae=stock.vae,
        negative=negative,
        prompt=MUCH,
        rewriter=graph.add("RepriseLoadRewriter", rewriter="shapeworld (embedded)")[0],
        judge=graph.add("RepriseLoadJudge", judge="shapeworld")[0],
        rounds=2,
        seed=7,
        correction=correction,
        strength=0.6,
    )
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
        latent = plain.add(
            "KSampler", **{**settings, **start}, seed=r["seed"], positive=positive, negative=negative
        )[0]
        drawn.append(plain.add("VAEDecode", samples=latent, vae=stock.vae)[0])
    shown = [plain.add("PreviewImage", images=link)[0][0] for link in drawn]
    entry = server.run(plain.nodes)
    for picture, node in zip(pictures, shown, strict=True):
        assert furthest(picture, server.images(entry, node)[0]) == 0
    assert unlike(pictures[0], pictures[1]) > VISIBLE and pictures[0].std() > VISIBLE


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


@pytest.mark.parametrize(
    "made, says",
    [
        (easy_cache, "EasyCache"),
        (attention_guidance, "Self-Attention"),
        (merged_tokens, "Tome"),
        (hint_batch, "a batch of 2"),
    ],
)
def test_what_ties_candidates_together_is_refused(server, models, made, says):
    """In these graphs a pruned batch would draw other survivors, or none; the node says so at once."""
    stock = made()
    stock.searched(stock.graph, 100)
    assert says in error_of(server.run(stock.graph.nodes))["exception_message"]
