"""Denoisers of current families in original names: recognised, configs read off, weights renamed."""

import re

import pytest
import torch

from reprise.backend.renderers.diffusers.converters import build, convert
from reprise.backend.renderers.diffusers.layouts import recognise, under, vae_kind
from reprise.backend.renderers.diffusers.model_configs import autoencoder

from . import original_layouts as original


def z_image():
    from diffusers import ZImageTransformer2DModel

    model = ZImageTransformer2DModel(
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=48,
        axes_dims=[8, 12, 12],
    )
    state, made = model.state_dict(), {}
    for key, value in state.items():
        if ".to_k." in key or ".to_v." in key:
            continue
        if ".to_q." in key:
            value = torch.cat([state[key.replace("to_q", f"to_{name}")] for name in "qkv"])
            key = key.replace("to_q", "qkv")
        key = key.replace("all_final_layer.2-1.", "final_layer.").replace(
            "all_x_embedder.2-1.", "x_embedder."
        )
        key = key.replace("to_out.0", "out").replace("norm_q", "q_norm").replace("norm_k", "k_norm")
        made[key] = value
    return "Z-Image", model, made


def qwen_image():
    from diffusers import QwenImageTransformer2DModel

    model = QwenImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=48,
        axes_dims_rope=(4, 14, 14),
    )
    return "Qwen-Image", model, dict(model.state_dict())


def krea2():
    from diffusers import Krea2Transformer2DModel

    model = Krea2Transformer2DModel(
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=80,
        timestep_embed_dim=32,
        text_hidden_dim=48,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=40,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(8, 12, 12),
    )
    names = {
        "img_in.": "first.",
        "time_embed.linear_1.": "tmlp.0.",
        "time_embed.linear_2.": "tmlp.2.",
        "time_mod_proj.": "tproj.1.",
        "txt_in.norm.weight": "txtmlp.0.scale",
        "txt_in.linear_1.": "txtmlp.1.",
        "txt_in.linear_2.": "txtmlp.3.",
        "text_fusion.": "txtfusion.",
        "transformer_blocks.": "blocks.",
        "final_layer.linear.": "last.linear.",
        "final_layer.norm.weight": "last.norm.scale",
        "final_layer.scale_shift_table": "last.modulation.lin",
    }
    parts = {
        ".attn.to_q.": ".attn.wq.",
        ".attn.to_k.": ".attn.wk.",
        ".attn.to_v.": ".attn.wv.",
        ".attn.to_out.0.": ".attn.wo.",
        ".attn.to_gate.": ".attn.gate.",
        ".attn.norm_q.weight": ".attn.qknorm.qnorm.scale",
        ".attn.norm_k.weight": ".attn.qknorm.knorm.scale",
        ".ff.": ".mlp.",
        ".norm1.weight": ".prenorm.scale",
        ".norm2.weight": ".postnorm.scale",
        ".scale_shift_table": ".mod.lin",
    }
    made = {}
    for key, value in model.state_dict().items():
        if key.startswith("transformer_blocks.") and key.endswith("scale_shift_table"):
            value = value.flatten()
        for ours, theirs in names.items():
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
                break
        for ours, theirs in parts.items():
            key = key.replace(ours, theirs)
        made[key] = value
    return "Krea 2", model, made


def flux2():
    from diffusers import Flux2Transformer2DModel

    model = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )
    names = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "modulation_img.linear": "modulation_img.lin",
        "modulation_txt.linear": "modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    double = {
        "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
        "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
        "attn.to_out.0": "img_attn.proj",
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
        "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
        "attn.to_add_out": "txt_attn.proj",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
        "attn.to_q": "img_attn.qkv",
        "attn.add_q_proj": "txt_attn.qkv",
    }
    single = {
        "attn.to_qkv_mlp_proj": "linear1",
        "attn.to_out": "linear2",
        "attn.norm_q.weight": "norm.query_norm.scale",
        "attn.norm_k.weight": "norm.key_norm.scale",
    }
    state, made = model.state_dict(), {}
    for key, value in state.items():
        if re.search(r"to_[kv]\.|add_[kv]_proj", key):
            continue
        if ".to_q." in key or ".add_q_proj." in key:
            both = [re.sub(r"(to|add)_q", rf"\1_{name}", key) for name in "qkv"]
            value = torch.cat([state[one] for one in both])
        if key.startswith("norm_out"):
            value = torch.cat(value.chunk(2)[::-1])
        if key.startswith("transformer_blocks."):
            key = key.replace("transformer_blocks", "double_blocks")
            table = double
        elif key.startswith("single_transformer_blocks."):
            key = key.replace("single_transformer_blocks", "single_blocks")
            table = single
        else:
            table = names
            key = "final_layer.linear.weight" if key == "proj_out.weight" else key
        for ours, theirs in table.items():
            if ours in key:
                key = key.replace(ours, theirs)
                break
        made[key] = value
    return "FLUX.2", model, made


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
@pytest.mark.parametrize("family", [z_image, qwen_image, krea2, flux2])
def test_a_denoiser_is_recognised_and_read(family, prefix):
    torch.manual_seed(0)
    name, model, tensors = family()
    shapes = {prefix + key: tuple(value.shape) for key, value in tensors.items()}
    found = recognise(shapes)
    assert found is not None
    layout, start = found
    assert (layout.name, start) == (name, prefix)
    config = layout.read(under(prefix, shapes))
    for key, value in config.items():
        known = model.config[key]
        assert value == (list(known) if isinstance(known, tuple) else known), key
    assert type(model).__name__ == layout.denoiser
    renamed = convert(layout.denoiser, dict(tensors), config)
    state = model.state_dict()
    assert renamed.keys() == state.keys()
    assert all(torch.equal(renamed[key], value) for key, value in state.items())


def test_the_vae_of_flux2(tmp_path):
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(0)
    model = AutoencoderKLFlux2(
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    state = {key: value.clone() for key, value in model.state_dict().items()}
    tensors = original.vae({key: value for key, value in state.items() if not key.startswith("bn.")}, 2)
    tensors |= {f"bn.running_{name}": state[f"bn.running_{name}"] for name in ("mean", "var")}
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    assert vae_kind(shapes) == ("AutoencoderKLFlux2", 8)
    read = build("AutoencoderKLFlux2", autoencoder(shapes), tensors, tmp_path / "vae", torch.float32)
    assert all(torch.equal(read.state_dict()[key], value) for key, value in state.items())
