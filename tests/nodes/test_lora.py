"""LoRA files of trained renderers in ComfyUI's own loader: every key found, every weight as it should be,
and the same picture drawn."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from reprise.backend.renderers.diffusers.families import FAMILIES
from reprise.backend.renderers.diffusers.lora import BLOCKS, apply_lora, lora_tensors, save_lora

pytestmark = pytest.mark.comfyui
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SDXL = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def flux():
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=True,
    )


def sd3():
    """As wide as it is deep in heads of 64, which is how ComfyUI knows its width."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=32,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=64,
        joint_attention_dim=4096,
        caption_projection_dim=128,
        pooled_projection_dim=2048,
        pos_embed_max_size=16,
    )


def pixart():
    """Of the one width that ComfyUI reads."""
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_layers=2,
        num_attention_heads=16,
        attention_head_dim=72,
        cross_attention_dim=1152,
        caption_channels=4096,
        sample_size=32,
        use_additional_conditions=False,
    )


def adapter(denoiser):
    """Random weights of rank 1 for every module that an adapter may go to; the denoiser may be a shell."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        name: module.weight.shape for name, module in denoiser.named_modules() if re.fullmatch(BLOCKS, name)
    }
    return {
        name: (0.1 * torch.randn(1, columns, generator=random), torch.randn(rows, 1, generator=random))
        for name, (rows, columns) in shapes.items()
    }


def family(name):
    return next(one for one in FAMILIES.values() if one.name == name)


def test_the_core_loads_every_familys_lora(in_comfyui, tmp_path):
    counts = {}
    for name, make in (("FLUX", flux), ("SD3", sd3), ("PixArt-Sigma", pixart)):
        torch.manual_seed(0)
        folder, denoiser = tmp_path / "files" / name, make()
        folder.mkdir(parents=True)
        save_file(denoiser.state_dict(), folder / "base.safetensors")
        made = adapter(denoiser)
        file = save_lora(folder, family(name), lora_tensors(family(name), made, 2.0), {})
        apply_lora(file, denoiser)
        save_file(denoiser.state_dict(), folder / "merged.safetensors")
        file.rename(folder / "lora.safetensors")
        counts[name] = len(made)
    for name, config in (("SD1.x", SD15), ("SDXL", SDXL)):
        from diffusers import UNet2DConditionModel

        folder = tmp_path / "files" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        with torch.device("meta"):
            denoiser = UNet2DConditionModel(**config)
        made = adapter(denoiser)
        save_lora(folder, family(name), lora_tensors(family(name), made, 2.0), {}, "float16")
        counts[name] = len(made)
    found = in_comfyui("inside_lora.py", str(tmp_path / "files"), needs="diffusers")
    models = {"FLUX": "Flux", "SD3": "SD3", "PixArt-Sigma": "PixArt", "SD1.x": "SD15", "SDXL": "SDXL"}
    for name, count in counts.items():
        seen = found[name]
        assert (seen["model"], seen["found"]) == (models[name], count), name
        assert seen["left"] == seen["misfits"] == [], name
        if "wrong" in seen:
            assert seen["wrong"] == {} and seen["change"] > 0.1, name


SEED, STEPS, CFG = 5, 8, 3.0
PROMPT = "a large red circle at the top left and a small blue star in the center, on a grey background"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The file that `train diffusion-dpo` writes for the embedded renderer after a few large steps."""
    from reprise.backend.preferences.store import Pair, PairPicture, Store
    from reprise.backend.training.diffusion_dpo.config import DiffusionDpoConfig
    from reprise.backend.training.diffusion_dpo.train import train

    torch.set_num_threads(1)
    folder, random = tmp_path_factory.mktemp("trained"), torch.Generator().manual_seed(0)
    store = Store(folder / "store", create=True)
    images = [store.put_image(torch.rand(128, 128, 3, generator=random)) for _ in range(2)]
    sides = [PairPicture(image=image, drawn_as="x", score=1.0 - i) for i, image in enumerate(images)]
    store.add(
        [
            Pair(
                prompt="x",
                condition="a red circle",
                chosen=sides[0],
                rejected=sides[1],
                reward="r",
                margin=1.0,
                source="render",
                run="a",
            )
        ]
    )
    config = DiffusionDpoConfig(
        model="shapeworld",
        preferences=folder / "store",
        max_steps=3,
        batch_size=1,
        accumulation=1,
        device="cpu",
        learning_rate=1e-2,
        warmup_ratio=0.0,
        lora={"r": 4, "alpha": 8, "targets": "blocks"},
        gradient_checkpointing=False,
    )
    return train(config, folder / "run", log=lambda line: None) / "lora.safetensors"


def by_diffusers(lora):
    """The picture (128, 128, 3) in 0..255 by diffusers' own pipeline and LoRA loader, of ComfyUI's noise."""
    from diffusers import FluxPipeline

    from reprise.backend.renderers.shapeworld import WEIGHTS, ShapeWorldRenderer

    pipe = FluxPipeline.from_pretrained(str(WEIGHTS), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora.parent, weight_name=lora.name)
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(SEED))
    drawn = pipe(
        prompt=PROMPT,
        negative_prompt="",
        true_cfg_scale=CFG,
        num_inference_steps=STEPS,
        height=128,
        width=128,
        latents=pipe._pack_latents(noise, 1, 16, 16, 16),
        output_type="pt",
        max_sequence_length=ShapeWorldRenderer.TEXT_LENGTH,
    ).images
    return drawn[0].movedim(0, -1) * 255


def test_a_real_server_draws_with_a_trained_lora_what_diffusers_draws(server, trained):
    """Stock loaders and the stock KSampler; eight bits a colour come out of a server."""
    (server.base / "models" / "loras").mkdir(parents=True, exist_ok=True)
    shutil.copy(trained, server.base / "models" / "loras" / "trained.safetensors")
    one = {"lora_name": "trained.safetensors", "strength_model": 1.0}
    graph = {
        "load": {"class_type": "RepriseLoadShapeWorld", "inputs": {}},
        "alone": {"class_type": "LoraLoaderModelOnly", "inputs": {**one, "model": ["load", 0]}},
        "both": {
            "class_type": "LoraLoader",
            "inputs": {**one, "strength_clip": 1.0, "model": ["load", 0], "clip": ["load", 1]},
        },
        "latent": {
            "class_type": "EmptySD3LatentImage",
            "inputs": {"width": 128, "height": 128, "batch_size": 1},
        },
    }
    for name, model, clip in (
        ("plain", ["load", 0], ["load", 1]),
        ("model", ["alone", 0], ["load", 1]),
        ("clip", ["both", 0], ["both", 1]),
    ):
        for sign, text in (("positive", PROMPT), ("negative", "")):
            graph[f"{name} {sign}"] = {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": clip}}
        graph[f"{name} sampler"] = {
            "class_type": "KSampler",
            "inputs": {
                "model": model,
                "positive": [f"{name} positive", 0],
                "negative": [f"{name} negative", 0],
                "latent_image": ["latent", 0],
                "seed": SEED,
                "steps": STEPS,
                "cfg": CFG,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        }
        graph[f"{name} decode"] = {
            "class_type": "VAEDecode",
            "inputs": {"samples": [f"{name} sampler", 0], "vae": ["load", 2]},
        }
        graph[name] = {"class_type": "PreviewImage", "inputs": {"images": [f"{name} decode", 0]}}
    entry = server.run(graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    shown = {
        name: torch.from_numpy(server.images(entry, name)[0].copy()).float()
        for name in ("plain", "model", "clip")
    }
    plain, with_lora = by_diffusers(None), by_diffusers(trained)
    assert (with_lora - plain).abs().max() > 32, "the LoRA changes the picture"
    for name, expected in (("plain", plain), ("model", with_lora), ("clip", with_lora)):
        apart = (shown[name] - expected).abs()
        assert apart.max() <= 1.5 and apart.mean() <= 0.6, (name, apart.max(), apart.mean())
