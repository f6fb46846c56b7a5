"""A model's config, read off the shapes of its weights: single files carry none.

Sizes are in the shapes. What is not (the number of heads of a Stable Diffusion 1 UNet, a VAE's scale) is the
same in all models of a class, and stands here. Names of weights are those of the original repositories, for
text encoders those of transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]
Reader = Callable[[Shapes], Config]


def count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that `pattern` captures in a key; 0 where nothing matches."""
    found = (re.match(pattern, key) for key in shapes)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def unet(shapes: Shapes) -> Config:
    """Stable Diffusion 1, 2 and XL: levels of residual blocks, with attention or without."""
    levels: list[tuple[int, int, int]] = [(shapes["input_blocks.0.0.weight"][0], 0, 0)]
    for block in range(1, count(shapes, r"input_blocks\.(\d+)\.")):
        base = f"input_blocks.{block}"
        channels, residual, depth = levels[-1]
        if f"{base}.0.op.weight" in shapes:
            levels.append((channels, 0, 0))
            continue
        channels = shapes[f"{base}.0.out_layers.3.weight"][0]
        depth = count(shapes, rf"input_blocks\.{block}\.1\.transformer_blocks\.(\d+)\.")
        levels[-1] = channels, residual + 1, depth
    attention = next(key for key in shapes if key.endswith("1.transformer_blocks.0.attn2.to_k.weight"))
    cross = shapes[attention][1]
    linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    channels = [level[0] for level in levels]
    config: Config = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "sample_size": 64,
        "block_out_channels": channels,
        "layers_per_block": levels[0][1],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for *_, depth in levels],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for *_, depth in reversed(levels)],
        "transformer_layers_per_block": [depth or 1 for *_, depth in levels],
        "cross_attention_dim": cross,
        "use_linear_projection": linear,
        # By a mistake that checkpoints rely on, diffusers calls the number of heads attention_head_dim. SD 1
        # has 8 heads everywhere; later ones have heads of 64 channels.
        "attention_head_dim": [max(1, size // 64) for size in channels] if linear else 8,
    }
    middle = count(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    if middle:
        config["transformer_layers_per_block"][-1] = middle
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
            "sample_size": 128,
        }
    elif linear:
        config["sample_size"] = 96
    return config


def sd3(shapes: Shapes) -> Config:
    """SD3 and SD3.5; their heads have 64 channels."""
    hidden, channels, patch, _ = shapes["x_embedder.proj.weight"]
    norm = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight")
    head = 64 if norm is None else norm[0]
    layers = count(shapes, r"joint_blocks\.(\d+)\.")
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": layers,
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": [
            layer for layer in range(layers) if f"joint_blocks.{layer}.x_block.attn2.qkv.weight" in shapes
        ],
        "qk_norm": None if norm is None else "rms_norm",
    }


def flux(shapes: Shapes) -> Config:
    """FLUX.1 and what is made of it."""
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    rest = head * 7 // 16
    return {
        "patch_size": 1,
        "in_channels": shapes["img_in.weight"][1],
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": count(shapes, r"double_blocks\.(\d+)\."),
        "num_single_layers": count(shapes, r"single_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": shapes["img_in.weight"][0] // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": [head - 2 * rest, rest, rest],
    }


def chroma(shapes: Shapes) -> Config:
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    rest = head * 7 // 16
    hidden, wide = shapes["img_in.weight"][0], shapes["distilled_guidance_layer.in_proj.weight"]
    return {
        "patch_size": 1,
        "in_channels": shapes["img_in.weight"][1],
        "num_layers": count(shapes, r"double_blocks\.(\d+)\."),
        "num_single_layers": count(shapes, r"single_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "axes_dims_rope": [head - 2 * rest, rest, rest],
        "approximator_num_channels": wide[1],
        "approximator_hidden_dim": wide[0],
        "approximator_layers": count(shapes, r"distilled_guidance_layer\.layers\.(\d+)\."),
    }


def flux2(shapes: Shapes) -> Config:
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    hidden = shapes["img_in.weight"][0]
    return {
        "patch_size": 1,
        "in_channels": shapes["img_in.weight"][1],
        "num_layers": count(shapes, r"double_blocks\.(\d+)\."),
        "num_single_layers": count(shapes, r"single_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "timestep_guidance_channels": shapes["time_in.in_layer.weight"][1],
        "mlp_ratio": shapes["double_blocks.0.img_mlp.2.weight"][1] / hidden,
        "axes_dims_rope": [head // 4] * 4,
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


def z_image(shapes: Shapes) -> Config:
    norm = "layers.0.attention.q_norm.weight"
    head = shapes[norm if norm in shapes else "layers.0.attention.norm_q.weight"][0]
    hidden, patch = shapes["x_embedder.weight"]
    return {
        "in_channels": patch // 4,
        "dim": hidden,
        "n_layers": count(shapes, r"layers\.(\d+)\."),
        "n_refiner_layers": count(shapes, r"noise_refiner\.(\d+)\."),
        "n_heads": hidden // head,
        "n_kv_heads": hidden // head,
        "cap_feat_dim": shapes["cap_embedder.0.weight"][0],
        "axes_dims": [head // 4, head * 3 // 8, head * 3 // 8],
    }


def qwen_image(shapes: Shapes) -> Config:
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    hidden, channels = shapes["img_in.weight"]
    rest = head * 7 // 16
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // 4,
        "num_layers": count(shapes, r"transformer_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "axes_dims_rope": [head - 2 * rest, rest, rest],
    }


def krea2(shapes: Shapes) -> Config:
    head = shapes["blocks.0.attn.qknorm.qnorm.scale"][0]
    hidden, channels = shapes["first.weight"]
    fusion = "txtfusion.layerwise_blocks.0"
    text_head = shapes[f"{fusion}.attn.qknorm.qnorm.scale"][0]
    text = shapes["txtmlp.0.scale"][0]
    return {
        "in_channels": channels,
        "num_layers": count(shapes, r"blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "num_key_value_heads": shapes["blocks.0.attn.wk.weight"][0] // head,
        "intermediate_size": shapes["blocks.0.mlp.up.weight"][0],
        "timestep_embed_dim": shapes["tmlp.0.weight"][1],
        "text_hidden_dim": text,
        "num_text_layers": shapes["txtfusion.projector.weight"][1],
        "text_num_attention_heads": text // text_head,
        "text_num_key_value_heads": shapes[f"{fusion}.attn.wk.weight"][0] // text_head,
        "text_intermediate_size": shapes[f"{fusion}.mlp.up.weight"][0],
        "num_layerwise_text_blocks": count(shapes, r"txtfusion\.layerwise_blocks\.(\d+)\."),
        "num_refiner_text_blocks": count(shapes, r"txtfusion\.refiner_blocks\.(\d+)\."),
        "axes_dims_rope": [head // 4, head * 3 // 8, head * 3 // 8],
    }


def autoencoder(shapes: Shapes) -> Config:
    """AutoencoderKL in the names of the latent diffusion repository; its scale is its family's."""
    levels = count(shapes, r"encoder\.down\.(\d+)\.")
    channels = [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)]
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": channels,
        "layers_per_block": count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": 32,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def wan_autoencoder(shapes: Shapes) -> Config:
    """The VAE of Wan and Qwen-Image; all but its width is the same in all."""
    return {"base_dim": shapes["encoder.conv1.weight"][0], "z_dim": shapes["conv2.weight"][0]}


def open_clip(shapes: Shapes) -> Config:
    """OpenCLIP's text models, in transformers' names."""
    return {**clip(shapes), "hidden_act": "gelu"}


def clip(shapes: Shapes) -> Config:
    """OpenAI's CLIP's text model; its heads have 64 channels."""
    hidden = shapes["text_model.embeddings.position_embedding.weight"][1]
    vocabulary = shapes["text_model.embeddings.token_embedding.weight"][0]
    projection = shapes.get("text_projection.weight", (hidden,))[0]
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": hidden // 64,
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
        "projection_dim": projection,
        "hidden_act": "quick_gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def t5(shapes: Shapes) -> Config:
    """T5's encoder, version 1.1."""
    attention = "encoder.block.0.layer.0.SelfAttention"
    heads = shapes[f"{attention}.relative_attention_bias.weight"][1]
    return {
        "vocab_size": shapes["shared.weight"][0],
        "d_model": shapes["shared.weight"][1],
        "d_kv": shapes[f"{attention}.q.weight"][0] // heads,
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "num_heads": heads,
        "num_layers": count(shapes, r"encoder\.block\.(\d+)\."),
        "relative_attention_num_buckets": shapes[f"{attention}.relative_attention_bias.weight"][0],
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "use_cache": False,
    }


def qwen3(shapes: Shapes) -> Config:
    layer = "model.layers.0"
    head = shapes[f"{layer}.self_attn.q_norm.weight"][0]
    return {
        "vocab_size": shapes["model.embed_tokens.weight"][0],
        "hidden_size": shapes["model.embed_tokens.weight"][1],
        "intermediate_size": shapes[f"{layer}.mlp.gate_proj.weight"][0],
        "num_hidden_layers": count(shapes, r"model\.layers\.(\d+)\."),
        "head_dim": head,
        "num_attention_heads": shapes[f"{layer}.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes[f"{layer}.self_attn.k_proj.weight"][0] // head,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": "lm_head.weight" not in shapes,
    }


# Pictures are drawn from words: the vision models of text encoders are left out, so this one is small.
_UNUSED_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1}


def qwen3_vl(shapes: Shapes) -> Config:
    """Qwen3-VL's language model; its rotations as in comfy/text_encoders/qwen3vl.py and llama.py."""
    text = qwen3(shapes)
    head = text["head_dim"]
    return {
        "vision_config": {**_UNUSED_VISION, "out_hidden_size": text["hidden_size"]},
        "text_config": {
            **text,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000000.0,
                # 24, 20 and 20 for heads of 128
                "mrope_section": [head // 2 - 2 * (head * 5 // 32), head * 5 // 32, head * 5 // 32],
                "mrope_interleaved": True,
            },
        },
    }


def qwen25_vl(shapes: Shapes) -> Config:
    """Qwen2.5-VL, whose heads have 128 channels; see comfy/text_encoders/llama.py, Qwen25_7BVLI_Config."""
    layer, embedding = "model.layers.0", shapes["model.embed_tokens.weight"]
    return {
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "vision_config": {**_UNUSED_VISION, "out_hidden_size": embedding[1]},
        "text_config": {
            "vocab_size": embedding[0],
            "hidden_size": embedding[1],
            "intermediate_size": shapes[f"{layer}.mlp.gate_proj.weight"][0],
            "num_hidden_layers": count(shapes, r"model\.layers\.(\d+)\."),
            "num_attention_heads": shapes[f"{layer}.self_attn.q_proj.weight"][0] // 128,
            "num_key_value_heads": shapes[f"{layer}.self_attn.k_proj.weight"][0] // 128,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000000.0,
                "mrope_section": [16, 24, 24],
            },
        },
    }
