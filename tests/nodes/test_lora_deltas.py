"""LoRA files in ComfyUI's own loader: what it adds to each weight, against what we add.

The core's changes are brought into diffusers' names by diffusers' converters of single files, so that joined
layers are split by another hand than the one that is tested.
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprise.backend.renderers.diffusers.converters import convert
from reprise.backend.renderers.diffusers.families import FAMILIES
from reprise.backend.renderers.diffusers.lora import BLOCKS, change_of, lora_tensors, save_lora
from reprise.backend.renderers.diffusers.lora_files import Target, read_adapter

from ..backend.renderers.diffusers.original_layouts import flux

pytestmark = pytest.mark.comfyui

_BFL = {
    "hidden_size": 256,
    "num_heads": 2,
    "context_in_dim": 64,
    "depth": 1,
    "depth_single_blocks": 1,
    "vec_in_dim": None,
    "guidance_embed": False,
}
_FLUX = {
    **_BFL,
    "image_model": "flux",
    "axes_dim": [16, 56, 56],
    "mlp_ratio": 4.0,
    "theta": 10000,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "qkv_bias": True,
    "txt_ids_dims": [],
    "vec_in_dim": 32,
}
_BLOCKS = {"attention_head_dim": 128, "num_attention_heads": 2, "num_layers": 1, "num_single_layers": 1}
# name -> (pipeline, denoiser of diffusers, its config, class of ComfyUI, its unet_config), of one size
MODELS = {
    "FLUX": (
        "FluxPipeline",
        "FluxTransformer2DModel",
        {**_BLOCKS, "joint_attention_dim": 64, "pooled_projection_dim": 32},
        "Flux",
        _FLUX,
    ),
    "FLUX.2": (
        "Flux2KleinPipeline",
        "Flux2Transformer2DModel",
        {**_BLOCKS, "in_channels": 128, "joint_attention_dim": 64, "guidance_embeds": False},
        "Flux2",
        {
            **_BFL,
            "image_model": "flux2",
            "axes_dim": [32] * 4,
            "mlp_ratio": 3.0,
            "theta": 2000,
            "in_channels": 128,
            "out_channels": 128,
            "patch_size": 1,
            "qkv_bias": False,
            "ops_bias": False,
            "global_modulation": True,
            "mlp_silu_act": True,
            "txt_ids_dims": [3],
        },
    ),
    "Chroma": (
        "ChromaPipeline",
        "ChromaTransformer2DModel",
        {
            **_BLOCKS,
            "joint_attention_dim": 64,
            "approximator_num_channels": 64,
            "approximator_hidden_dim": 32,
            "approximator_layers": 1,
        },
        "Chroma",
        {
            **{key: value for key, value in _FLUX.items() if key not in ("vec_in_dim", "guidance_embed")},
            "image_model": "chroma",
            "vec_in_dim": None,
            "in_channels": 64,
            "out_channels": 64,
            "in_dim": 64,
            "out_dim": 256,
            "hidden_dim": 32,
            "n_layers": 1,
        },
    ),
    "Z-Image": (
        "ZImagePipeline",
        "ZImageTransformer2DModel",
        {
            "dim": 384,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 3,
            "n_kv_heads": 3,
            "cap_feat_dim": 64,
            "axes_dims": [32, 48, 48],
        },
        "ZImage",
        {
            "image_model": "lumina2",
            "dim": 384,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 3,
            "n_kv_heads": 3,
            "cap_feat_dim": 64,
            "in_channels": 16,
            "patch_size": 2,
            "qk_norm": True,
            "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512],
            "ffn_dim_multiplier": 8.0 / 3.0,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
    ),
    "Krea 2": (
        "Krea2Pipeline",
        "Krea2Transformer2DModel",
        {
            "num_layers": 1,
            "attention_head_dim": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 768,
            "text_hidden_dim": 64,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 256,
        },
        "Krea2",
        {
            "image_model": "krea2",
            "features": 256,
            "channels": 16,
            "patch": 2,
            "layers": 1,
            "heads": 2,
            "kvheads": 1,
            "txtlayers": 3,
            "txtdim": 64,
            "txtheads": 2,
            "txtkvheads": 2,
        },
    ),
    "Qwen-Image": (
        "QwenImagePipeline",
        "QwenImageTransformer2DModel",
        {"num_layers": 1, "attention_head_dim": 128, "num_attention_heads": 2, "joint_attention_dim": 64},
        "QwenImage",
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 1,
            "attention_head_dim": 128,
            "num_attention_heads": 2,
            "joint_attention_dim": 64,
        },
    ),
}


# Two levels, the lower one with attention.
MODELS["SD1.x"] = (
    "StableDiffusionPipeline",
    "UNet2DConditionModel",
    {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
    },
    "SD15",
    {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [0, 1],
        "transformer_depth_output": [0, 0, 1, 1],
        "transformer_depth_middle": 1,
        "num_heads": 2,
        "context_dim": 16,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "legacy": False,
        "adm_in_channels": None,
    },
)
TRAINED = ("FLUX", "FLUX.2", "Chroma", "Z-Image", "Krea 2", "Qwen-Image")


@pytest.fixture(scope="module")
def denoisers():
    import diffusers

    made = {}

    def get(name):
        if name not in made:
            _, kind, config, _, _ = MODELS[name]
            torch.manual_seed(0)
            made[name] = getattr(diffusers, kind)(**config)
        return made[name]

    return get


def pair(out, into, rank=2):
    made = torch.Generator().manual_seed(out * 1000 + into)
    return torch.randn(rank, into, generator=made) * 0.3, torch.randn(out, rank, generator=made) * 0.3


def model_file(folder, name):
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"class": MODELS[name][3], "unet_config": MODELS[name][4]}))
    return folder


def theirs(folder, name):
    """The core's changes in diffusers' names."""
    found = load_file(folder / "deltas.safetensors")
    if name in ("FLUX", "Chroma"):  # as they are in the published files
        found = {
            re.sub(r"(norms?\.(\w+_norm|\d+))\.weight", r"\1.scale", key): value
            for key, value in found.items()
        }
    if name == "SD1.x":  # more of it is in the file than in the pipeline
        config = {**MODELS[name][2], "time_cond_proj_dim": None, "class_embed_type": None}
        config |= {"addition_embed_type": None, "num_class_embeds": None}
        return convert(MODELS[name][1], found, config)
    return found if name == "Qwen-Image" else convert(MODELS[name][1], found, MODELS[name][2])


def ours(folder, name, denoiser):
    """{module: what is added to its weight}."""
    import diffusers

    component = "unet" if name == "SD1.x" else "transformer"
    target = Target({component: denoiser}, getattr(diffusers, MODELS[name][0]), denoiser.config)
    found = read_adapter(folder / "lora.safetensors", target)
    return {
        module: change_of(denoiser.get_submodule(module).weight, one) for (_, module), one in found.items()
    }


def compare(ours, theirs):
    """Every change is the same, and there are no others."""
    assert ours and {f"{module}.weight" for module in ours} <= theirs.keys()
    for key, value in theirs.items():
        module, _, half = key.rpartition(".")
        expected = ours.get(module) if half == "weight" else None
        if expected is None:
            assert not value.any(), key
        else:
            assert expected.abs().max() > 0.01, key
            torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-4)


def adapter(denoiser):
    """Random weights for every module that an adapter may go to."""
    return {
        module: pair(*layer.weight.shape)
        for module, layer in denoiser.named_modules()
        if re.fullmatch(BLOCKS, module)
    }


# Files of other trainers ----------------------------------------------------------------------------------


def lora(name, out, into, dotted=True):
    down, up = pair(out, into)
    ends = ("lora_A", "lora_B") if dotted else ("lora_down", "lora_up")
    return {
        f"{name}.{ends[0]}.weight": down,
        f"{name}.{ends[1]}.weight": up,
        f"{name}.alpha": torch.tensor(1.0),
    }


def loha(name, out, into):
    first, second = pair(out, into, 3), pair(out + 1, into + 1, 3)
    return {
        f"{name}.hada_w1_a": first[1],
        f"{name}.hada_w1_b": first[0],
        f"{name}.hada_w2_a": second[1][:out],
        f"{name}.hada_w2_b": second[0][:, :into],
        f"{name}.alpha": torch.tensor(2.0),
    }


def conv(name, out, into, side=3):
    down, up = pair(out, into * side * side)
    return {
        f"{name}.lora_down.weight": down.unflatten(1, (into, side, side)),
        f"{name}.lora_up.weight": up[:, :, None, None],
        f"{name}.alpha": torch.tensor(1.0),
    }


def dora(name, out, into, columns=False):
    lengths = torch.rand(into if columns else out, generator=torch.Generator().manual_seed(1)) + 0.5
    scale = {f"{name}.dora_scale": lengths[None] if columns else lengths[:, None]}
    return {**lora(name, out, into, False), **scale}


def lokr(name, out, into, whole=False):
    random = torch.Generator().manual_seed(out + into)
    first = torch.randn(4, 4, generator=random) * 0.3
    if whole:
        second = torch.randn(out // 4, into // 4, generator=random) * 0.3
        return {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second, f"{name}.alpha": torch.tensor(7.0)}
    down, up = pair(out // 4, into // 4)
    return {
        f"{name}.lokr_w1": first,
        f"{name}.lokr_w2_a": up,
        f"{name}.lokr_w2_b": down,
        f"{name}.alpha": torch.tensor(1.0),
    }


# {case: (model, its tensors)}; sizes are those of MODELS.
def cases():
    wide = 256
    yield (
        "Z-Image kohya",
        "Z-Image",
        {
            **lora("lora_unet_layers_0_attention_qkv", 1152, 384, False),
            **lora("lora_unet_layers_0_attention_out", 384, 384, False),
            **lora("lora_unet_layers_0_feed_forward_w1", 1024, 384, False),
        },
    )
    yield (
        "Z-Image original",
        "Z-Image",
        {
            **lora("diffusion_model.noise_refiner.0.attention.qkv", 1152, 384),
            **lora("diffusion_model.layers.0.attention.out", 384, 384),
        },
    )
    yield (
        "Z-Image LyCORIS",
        "Z-Image",
        {
            **lokr("lycoris_layers_0_attention_to_q", 384, 384),
            **loha("lycoris_layers_0_attention_to_out_0", 384, 384),
        },
    )
    yield (
        "Krea 2 original",
        "Krea 2",
        {
            **lora("diffusion_model.blocks.0.attn.wq", wide, wide),
            **lora("diffusion_model.blocks.0.attn.wk", wide // 2, wide),
            **lora("diffusion_model.blocks.0.mlp.down", wide, 768),
        },
    )
    yield "Krea 2 LyCORIS", "Krea 2", lokr("lycoris_transformer_blocks_0_attn_to_v", wide // 2, wide, True)
    yield (
        "Qwen-Image kohya",
        "Qwen-Image",
        {
            **lora("lora_unet_transformer_blocks_0_attn_to_q", wide, wide, False),
            **lora("lora_unet_transformer_blocks_0_img_mlp_net_0_proj", 4 * wide, wide, False),
        },
    )
    yield (
        "Qwen-Image LyCORIS",
        "Qwen-Image",
        {
            **lokr("lycoris_transformer_blocks_0_attn_add_k_proj", wide, wide),
            **loha("lycoris_transformer_blocks_0_txt_mlp_net_2", wide, 4 * wide),
        },
    )
    yield (
        "FLUX.2 original",
        "FLUX.2",
        {
            **lora("diffusion_model.double_blocks.0.img_attn.qkv", 3 * wide, wide),
            **lora("diffusion_model.double_blocks.0.txt_mlp.0", 6 * wide, wide),
            **lora("diffusion_model.single_blocks.0.linear1", 9 * wide, wide),
            **lora("diffusion_model.single_blocks.0.linear2", wide, 4 * wide),
        },
    )
    yield (
        "FLUX.2 kohya",
        "FLUX.2",
        {
            **lora("lora_unet_double_blocks_0_txt_attn_qkv", 3 * wide, wide, False),
            **lora("lora_unet_double_blocks_0_img_attn_proj", wide, wide, False),
            **lora("lora_unet_single_blocks_0_linear1", 9 * wide, wide, False),
        },
    )
    yield "FLUX.2 LyCORIS", "FLUX.2", lokr("lycoris_transformer_blocks_0_ff_linear_in", 6 * wide, wide)
    yield (
        "FLUX kohya",
        "FLUX",
        {
            **lora("lora_unet_double_blocks_0_img_attn_qkv", 3 * wide, wide, False),
            **lora("lora_unet_single_blocks_0_linear1", 7 * wide, wide, False),
            **loha("lora_unet_double_blocks_0_txt_attn_qkv", 3 * wide, wide),
            **lokr("lora_unet_single_blocks_0_linear2", wide, 5 * wide),
        },
    )
    yield (
        "FLUX original",
        "FLUX",
        {
            **lora("diffusion_model.double_blocks.0.img_mlp.0", 4 * wide, wide),
            **lora("diffusion_model.single_blocks.0.modulation.lin", 3 * wide, wide),
        },
    )
    yield (
        "FLUX OneTrainer",
        "FLUX",
        {
            **lora("lora_transformer_transformer_blocks_0_attn_to_k", wide, wide, False),
            **loha("lora_transformer_single_transformer_blocks_0_proj_mlp", 4 * wide, wide),
        },
    )
    yield (
        "Chroma kohya",
        "Chroma",
        {
            **lora("lora_unet_double_blocks_0_txt_attn_qkv", 3 * wide, wide, False),
            **lora("lora_unet_single_blocks_0_linear1", 7 * wide, wide, False),
        },
    )
    yield (
        "SD1.x LoCon, LoHa and LoKr",
        "SD1.x",
        {
            **conv("lora_unet_down_blocks_0_resnets_0_conv1", 32, 32),
            **conv("lora_unet_down_blocks_1_resnets_0_conv_shortcut", 64, 32, 1),
            **loha("lora_unet_mid_block_resnets_0_conv2", 64, 64 * 9),
            **lokr("lora_unet_mid_block_resnets_1_conv1", 64, 64 * 9),
            **lora("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 64, 16, False),
            **loha("lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2", 64, 256),
        },
    )
    yield (
        "SD1.x of Stability",
        "SD1.x",
        lora("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q", 64, 64, False),
    )
    yield (
        "FLUX DoRA by columns",
        "FLUX",
        dora("lora_transformer_transformer_blocks_0_attn_to_out_0", wide, wide, columns=True),
    )


CASES = {case: (name, tensors) for case, name, tensors in cases()}
DORA = ("FLUX", dora("lora_transformer_transformer_blocks_0_attn_to_out_0", 256, 256))
CLIP = {
    key: value.contiguous()
    for part, wide in (("lora_te1", 768), ("lora_te2", 1280))
    for key, value in {
        **lora(f"{part}_text_model_encoder_layers_0_self_attn_q_proj", wide, wide, False),
        **lokr(f"{part}_text_model_encoder_layers_0_mlp_fc1", 4 * wide, wide),
    }.items()
}


@pytest.fixture(scope="module")
def compared(in_comfyui, denoisers, tmp_path_factory):
    """ComfyUI's answer for all cases at once, and where its changes lie."""
    folder = tmp_path_factory.mktemp("files")
    for case, (name, tensors) in {**CASES, "DoRA": DORA}.items():
        made = model_file(folder / case, name)
        save_file({key: value.contiguous() for key, value in tensors.items()}, made / "lora.safetensors")
        if "DoRA" in case:
            save_file(flux(denoisers(name).state_dict()), made / "weights.safetensors")
    for name in TRAINED:
        family = FAMILIES[MODELS[name][0]]
        made = model_file(folder / f"trained {name}", name)
        save_lora(made, family, lora_tensors(family, adapter(denoisers(name)), 2.0), {})
    (folder / "clip").mkdir()
    (folder / "clip" / "model.json").write_text('{"class": "clip"}')
    save_file(CLIP, folder / "clip" / "lora.safetensors")
    return folder, in_comfyui("inside_deltas.py", str(folder))


@pytest.mark.parametrize("name", TRAINED)
def test_the_core_adds_what_was_trained(name, compared, denoisers):
    """Files as training writes them, with all modules that an adapter may go to."""
    folder, found = compared
    made, seen = adapter(denoisers(name)), found[f"trained {name}"]
    assert (seen["patches"], seen["warnings"]) == (len(made), [])
    compare(
        {module: 2.0 * b @ a for module, (a, b) in made.items()}, theirs(folder / f"trained {name}", name)
    )


@pytest.mark.parametrize("case", CASES)
def test_other_trainers_files_change_the_same_weights(case, compared, denoisers):
    folder, found = compared
    name, _ = CASES[case]
    assert found[case]["warnings"] == [] and found[case]["patches"] > 0
    compare(ours(folder / case, name, denoisers(name)), theirs(folder / case, name))


def test_text_encoders(compared):
    """Of SDXL: CLIP-L and CLIP-G, as wide as they are, with one layer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder, found = compared
    encoders = {}
    for name, wide, heads in (("text_encoder", 768, 12), ("text_encoder_2", 1280, 20)):
        config = CLIPTextConfig(
            vocab_size=10,
            hidden_size=wide,
            intermediate_size=4 * wide,
            num_hidden_layers=1,
            num_attention_heads=heads,
        )
        encoders[name] = CLIPTextModel(config)
    target = Target({"unet": torch.nn.Module(), **encoders})
    ours = read_adapter(folder / "clip" / "lora.safetensors", target)
    theirs = load_file(folder / "clip" / "deltas.safetensors")
    assert found["clip"]["warnings"] == [] and len(ours) == len(theirs) == 4
    for (component, module), one in ours.items():
        layer = encoders[component].get_submodule(module)
        core = "clip_l" if component == "text_encoder" else "clip_g"
        key = f"{core}.transformer.text_model.{module.removeprefix('text_model.')}.weight"
        torch.testing.assert_close(theirs[key], change_of(layer.weight, one).detach(), rtol=1e-4, atol=1e-4)


def test_a_dora_is_that_of_its_paper(compared, denoisers):
    """ComfyUI divides by the length of the base's rows, where the paper, peft and LyCORIS divide by that of
    the adapted ones: the direction of each row is the same, and its length differs by that quotient."""
    folder, found = compared
    layer = denoisers("FLUX").get_submodule("transformer_blocks.0.attn.to_out.0")
    (change,) = ours(folder / "DoRA", "FLUX", denoisers("FLUX")).values()
    assert found["DoRA"]["warnings"] == []
    weight = layer.weight.detach()
    core = weight + theirs(folder / "DoRA", "FLUX")["transformer_blocks.0.attn.to_out.0.weight"]
    down, up = pair(256, 256)
    adapted = weight + 0.5 * up @ down
    quotient = adapted.norm(dim=1, keepdim=True) / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(core, (weight + change.detach()) * quotient, rtol=1e-3, atol=1e-4)
