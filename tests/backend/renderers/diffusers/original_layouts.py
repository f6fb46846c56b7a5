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


def _qkv(state, key: str):
    """The queries of a layer, named by their key, joined with its keys and values."""
    return torch.cat([state[re.sub(r"(to|add)_q", rf"\1_{name}", key)] for name in "qkv"])


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
    for half in ("weight", "bias") if "norm_out.linear.weight" in state else ():  # Chroma has none
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


def chroma(state) -> dict:
    guidance = {key: value for key, value in state.items() if key.startswith("distilled_guidance_layer.")}
    made = flux({key: value for key, value in state.items() if key not in guidance})
    for key, value in guidance.items():
        key = key.replace("linear_1", "in_layer").replace("linear_2", "out_layer")
        made[key.replace("weight", "scale") if ".norms." in key else key] = value
    return made


def z_image(state) -> dict:
    made = {}
    for key, value in state.items():
        if ".to_k." in key or ".to_v." in key:
            continue
        if ".to_q." in key:
            value = _qkv(state, key)
            key = key.replace("to_q", "qkv")
        key = key.replace("all_final_layer.2-1.", "final_layer.").replace(
            "all_x_embedder.2-1.", "x_embedder."
        )
        key = key.replace("to_out.0", "out").replace("norm_q", "q_norm").replace("norm_k", "k_norm")
        made[key] = value
    return made


def krea2(state) -> dict:
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
    for key, value in state.items():
        if key.startswith("transformer_blocks.") and key.endswith("scale_shift_table"):
            value = value.flatten()
        for ours, theirs in names.items():
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
                break
        for ours, theirs in parts.items():
            key = key.replace(ours, theirs)
        made[key] = value
    return made


def flux2(state) -> dict:
    names = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
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
    made = {}
    for key, value in state.items():
        if re.search(r"to_[kv]\.|add_[kv]_proj", key):
            continue
        if ".to_q." in key or ".add_q_proj." in key:
            value = _qkv(state, key)
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
    return made


def sd3(state) -> dict:
    """Stability's names; its norms have shift before scale."""
    made, layers = (
        {},
        1 + max(int(key.split(".")[1]) for key in state if key.startswith("transformer_blocks.")),
    )
    outer = {
        "pos_embed.pos_embed": "pos_embed",
        "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "context_embedder": "context_embedder",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    inner = {
        "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
        "attn.to_q": "x_block.attn.qkv",
        "attn.add_q_proj": "context_block.attn.qkv",
        "attn2.to_q": "x_block.attn2.qkv",
        "attn.to_out.0": "x_block.attn.proj",
        "attn2.to_out.0": "x_block.attn2.proj",
        "attn.to_add_out": "context_block.attn.proj",
        "attn.norm_q": "x_block.attn.ln_q",
        "attn.norm_k": "x_block.attn.ln_k",
        "attn2.norm_q": "x_block.attn2.ln_q",
        "attn2.norm_k": "x_block.attn2.ln_k",
        "attn.norm_added_q": "context_block.attn.ln_q",
        "attn.norm_added_k": "context_block.attn.ln_k",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
    }
    for key, value in state.items():
        if re.search(r"to_[kv]\.|add_[kv]_proj", key):
            continue
        if ".to_q." in key or ".add_q_proj." in key:
            value = _qkv(state, key)
        if key.startswith(("norm_out", f"transformer_blocks.{layers - 1}.norm1_context")):
            value = torch.cat(value.chunk(2)[::-1])
        if key.startswith("transformer_blocks."):
            block, module, half = re.match(r"transformer_blocks\.(\d+)\.(.*)\.(\w+)$", key).groups()
            made[f"joint_blocks.{block}.{inner[module]}.{half}"] = value
        elif key in outer:
            made[outer[key]] = value
        else:
            module, _, half = key.rpartition(".")
            made[f"{outer[module]}.{half}"] = value
    return made


def sana(state) -> dict:
    outer = {
        "patch_embed.proj": "x_embedder.proj",
        "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_embed.linear": "t_block.1",
        "caption_projection.linear_1": "y_embedder.y_proj.fc1",
        "caption_projection.linear_2": "y_embedder.y_proj.fc2",
        "caption_norm": "attention_y_norm",
        "proj_out": "final_layer.linear",
    }
    inner = {
        "attn1.to_q": "attn.qkv",
        "attn1.to_out.0": "attn.proj",
        "attn2.to_q": "cross_attn.q_linear",
        "attn2.to_k": "cross_attn.kv_linear",
        "attn2.to_out.0": "cross_attn.proj",
        "ff.conv_inverted": "mlp.inverted_conv.conv",
        "ff.conv_depth": "mlp.depth_conv.conv",
        "ff.conv_point": "mlp.point_conv.conv",
    }
    made = {"pos_embed": torch.zeros(1), "y_embedder.y_embedding": torch.zeros(1)}  # neither is read
    for key, value in state.items():
        if key == "scale_shift_table":
            made["final_layer.scale_shift_table"] = value
        elif key.startswith("transformer_blocks.") and key.endswith("scale_shift_table"):
            made[key.replace("transformer_blocks", "blocks")] = value
        elif key.startswith("transformer_blocks."):
            block, module, half = re.match(r"transformer_blocks\.(\d+)\.(.*)\.(\w+)$", key).groups()
            if module in ("attn1.to_k", "attn1.to_v", "attn2.to_v"):
                continue
            joined = {"attn1.to_q": "qkv", "attn2.to_k": "kv"}.get(module)
            if joined:
                value = torch.cat([state[re.sub(r"to_[qk]", f"to_{name}", key)] for name in joined])
            made[f"blocks.{block}.{inner[module]}.{half}"] = value
        else:
            module, _, half = key.rpartition(".")
            made[f"{outer[module]}.{half}"] = value
    return made


def wan_vae(state) -> dict:
    """The VAE of four levels in Wan's names."""
    layers = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    made = {}
    for key, value in state.items():
        key = re.sub(r"^quant_conv", "conv1", re.sub(r"^post_quant_conv", "conv2", key))
        key = key.replace("coder.conv_in", "coder.conv1").replace("norm_out", "head.0")
        key = key.replace("conv_out", "head.2").replace("mid_block.attentions.0", "middle.1")
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"middle.{2 * int(found[1])}", key)
        key = key.replace("encoder.down_blocks", "encoder.downsamples").replace("conv_shortcut", "shortcut")
        key = re.sub(
            r"decoder\.up_blocks\.(\d)\.resnets\.(\d)",
            lambda found: f"decoder.upsamples.{4 * int(found[1]) + int(found[2])}",
            key,
        )
        key = re.sub(
            r"decoder\.up_blocks\.(\d)\.upsamplers\.0",
            lambda found: f"decoder.upsamples.{4 * int(found[1]) + 3}",
            key,
        )
        if re.search(r"\.(downsamples|upsamples|middle)\.\d+\.(norm|conv)[12]\.", key):
            key = re.sub(r"\.(norm[12]|conv[12])\.", lambda found: f".{layers[found[1]]}.", key)
        made[key] = value
    return made


def flux2_vae(state, levels: int) -> dict:
    own = {key: value for key, value in state.items() if key.startswith("bn.running_")}
    return {**vae({key: value for key, value in state.items() if not key.startswith("bn.")}, levels), **own}


def text(model) -> dict:
    """A text encoder as ComfyUI has it: a language model's names begin with model."""
    state = model.state_dict()
    if type(model).__name__ == "T5EncoderModel":
        return t5(state)
    made = {}
    for key, value in state.items():
        key = key.removeprefix("model.").removeprefix("language_model.")
        made[key if key.startswith(("visual.", "lm_head.")) else f"model.{key}"] = value
    return {key: value for key, value in made.items() if not key.startswith("lm_head.")}
