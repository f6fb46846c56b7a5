"""Weights of diffusers' and transformers' models in the names of the original repositories.

The way back of diffusers' converters, written from the same published tables
(scripts/convert_diffusers_to_original_stable_diffusion.py and _sdxl.py; BFL's flux).
"""

from __future__ import annotations

import re

import torch

UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def unet(state, layers: int) -> dict:
    """`layers` is the UNet's layers_per_block."""
    made = {}
    for key, value in state.items():
        module, _, half = key.rpartition(".")
        if module in UNET:
            made[f"{UNET[module]}.{half}"] = value
            continue
        side, level, kind, number, *rest = re.match(
            r"(down_blocks|up_blocks|mid_block)\.?(\d+)?\.(\w+)\.(\d+)\.(.*)", key
        ).groups()
        tail = rest[0]
        if kind == "resnets":
            name, _, half = tail.rpartition(".")
            tail = f"{RESNET[name]}.{half}"
        if side == "mid_block":
            place = "middle_block.1" if kind == "attentions" else f"middle_block.{2 * int(number)}"
        else:
            level, number = int(level), int(number)
            if side == "down_blocks":
                base = f"input_blocks.{(layers + 1) * level + number + 1}"
            else:
                base = f"output_blocks.{(layers + 1) * level + number}"
            place = f"{base}.{1 if kind == 'attentions' else 0}"
            if kind == "downsamplers":
                place, tail = f"input_blocks.{(layers + 1) * (level + 1)}.0", tail.replace("conv", "op")
            if kind == "upsamplers":
                last = (layers + 1) * level + layers
                attends = any(one.startswith(f"up_blocks.{level}.attentions") for one in state)
                place = f"output_blocks.{last}.{2 if attends else 1}"
        made[f"{place}.{tail}"] = value
    return made


def vae(state, levels: int) -> dict:
    made = {}
    for key, value in state.items():
        key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", key)
        key = re.sub(
            r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{levels - 1 - int(found[1])}.block.", key
        )
        key = re.sub(
            r"up_blocks\.(\d+)\.upsamplers\.0\.",
            lambda found: f"up.{levels - 1 - int(found[1])}.upsample.",
            key,
        )
        key = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda found: f"mid.block_{int(found[1]) + 1}.", key)
        key = key.replace("mid_block.attentions.0.", "mid.attn_1.")
        for ours, theirs in (
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ):
            key = key.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
        if "attn_1" in key and key.endswith("weight") and value.ndim == 2:
            value = value[:, :, None, None]
        made[key] = value
    return made


def clip(state) -> dict:
    """In transformers' names of old, under text_model."""
    return {
        key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": value
        for key, value in state.items()
    }


def open_clip(state) -> dict:
    state, made = clip(state), {}
    for key, value in state.items():
        key = key.removeprefix("text_model.")
        if key == "embeddings.position_embedding.weight":
            made["positional_embedding"] = value
        elif key == "embeddings.token_embedding.weight":
            made["token_embedding.weight"] = value
        elif key == "text_projection.weight":
            made["text_projection"] = value.T.contiguous()
        elif key.startswith("final_layer_norm."):
            made[key.replace("final_layer_norm", "ln_final")] = value
        elif ".q_proj." in key:
            both = [state["text_model." + key.replace("q_proj", f"{name}_proj")] for name in "qkv"]
            block, half = re.match(r"encoder\.layers\.(\d+)\..*\.(\w+)$", key).groups()
            made[f"transformer.resblocks.{block}.attn.in_proj_{half}"] = torch.cat(both)
        elif "k_proj" not in key and "v_proj" not in key:
            key = key.replace("encoder.layers.", "transformer.resblocks.").replace("self_attn", "attn")
            key = key.replace("layer_norm", "ln_").replace("mlp.fc1", "mlp.c_fc")
            made[key.replace("mlp.fc2", "mlp.c_proj")] = value
    return made


def flux(state) -> dict:
    """FLUX.1's transformer in BFL's names."""
    state, made = dict(state), {}
    for ours, theirs in (
        ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
        ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
        ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
        ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
        ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
        ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
        ("context_embedder", "txt_in"),
        ("x_embedder", "img_in"),
        ("proj_out", "final_layer.linear"),
    ):
        for half in ("weight", "bias"):
            if f"{ours}.{half}" in state:
                made[f"{theirs}.{half}"] = state.pop(f"{ours}.{half}")
    for half in ("weight", "bias"):
        scale, shift = state.pop(f"norm_out.linear.{half}").chunk(2)
        made[f"final_layer.adaLN_modulation.1.{half}"] = torch.cat([shift, scale])
    double = {
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
    }
    norms = {
        "attn.norm_q": "img_attn.norm.query_norm.scale",
        "attn.norm_k": "img_attn.norm.key_norm.scale",
        "attn.norm_added_q": "txt_attn.norm.query_norm.scale",
        "attn.norm_added_k": "txt_attn.norm.key_norm.scale",
    }
    single = {"norm.linear": "modulation.lin", "proj_out": "linear2"}
    single_norms = {"attn.norm_q": "norm.query_norm.scale", "attn.norm_k": "norm.key_norm.scale"}
    joined = {
        "attn.to_q": ("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
        "attn.add_q_proj": ("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    }
    for key in list(state):
        side, block, module, half = re.match(r"(\w+)\.(\d+)\.(.*)\.(\w+)$", key).groups()
        base = f"{side}.{block}"
        if side == "transformer_blocks":
            place = f"double_blocks.{block}"
            if module in double:
                made[f"{place}.{double[module]}.{half}"] = state[key]
            elif module in norms:
                made[f"{place}.{norms[module]}"] = state[key]
            elif module in joined:
                name, modules = joined[module]
                made[f"{place}.{name}.{half}"] = torch.cat([state[f"{base}.{one}.{half}"] for one in modules])
        else:
            place = f"single_blocks.{block}"
            if module in single:
                made[f"{place}.{single[module]}.{half}"] = state[key]
            elif module in single_norms:
                made[f"{place}.{single_norms[module]}"] = state[key]
            elif module == "attn.to_q":
                modules = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
                made[f"{place}.linear1.{half}"] = torch.cat(
                    [state[f"{base}.{one}.{half}"] for one in modules]
                )
    return made


def prefixed(prefix: str, state) -> dict:
    return {prefix + key: value.contiguous() for key, value in state.items()}


def checkpoint(pipe, family: str) -> dict:
    """An all-in-one checkpoint of a pipeline: SD1.x, SDXL or FLUX."""
    from diffusers import AutoencoderKL

    assert isinstance(pipe.vae, AutoencoderKL)
    decoder = vae(pipe.vae.state_dict(), len(pipe.vae.config.block_out_channels))
    if family == "flux":
        return {
            **prefixed("model.diffusion_model.", flux(pipe.transformer.state_dict())),
            **prefixed("vae.", decoder),
            **prefixed("text_encoders.clip_l.transformer.", clip(pipe.text_encoder.state_dict())),
            **prefixed("text_encoders.t5xxl.transformer.", t5(pipe.text_encoder_2.state_dict())),
        }
    made = {
        **prefixed("model.diffusion_model.", unet(pipe.unet.state_dict(), pipe.unet.config.layers_per_block)),
        **prefixed("first_stage_model.", decoder),
    }
    first = clip(pipe.text_encoder.state_dict())
    if family == "sd1":
        return {**made, **prefixed("cond_stage_model.transformer.", first)}
    return {
        **made,
        **prefixed("conditioner.embedders.0.transformer.", first),
        **prefixed("conditioner.embedders.1.model.", open_clip(pipe.text_encoder_2.state_dict())),
    }


def t5(state) -> dict:
    """Without the embedding's second name."""
    return {key: value for key, value in state.items() if key != "encoder.embed_tokens.weight"}
