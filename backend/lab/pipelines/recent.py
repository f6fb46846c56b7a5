"""Tiny pipelines of the models that are most in use: flows on transformers, with language models as text
encoders."""

# diffusers annotates many of its arguments too narrowly.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

from .language import TextProcessor, byte_tokenizer, gemma2, qwen3, qwen3_vl, qwen25_vl
from .parts import autoencoder, eightfold_vae, flow, flux2_vae, lively, qwen_vae, sana_vae, t5, t5_tokenizer


def z_image():
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    return ZImagePipeline(
        scheduler=flow(shift=3.0),
        vae=autoencoder(4, shift_factor=0.1),
        text_encoder=qwen3(),
        tokenizer=byte_tokenizer(),
        transformer=lively(transformer, 1.5),
    )


def qwen_image():
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return QwenImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=qwen_vae(),
        text_encoder=qwen25_vl(),
        tokenizer=byte_tokenizer(),
        transformer=lively(transformer, 2),
    )


def qwen_image_21():
    from diffusers import AutoencoderKLQwenImage21, QwenImage21Pipeline, QwenImage21Transformer2DModel

    vae = AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.0, 1.1, 0.9, 1.0],
    )
    transformer = QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return QwenImage21Pipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=lively(vae, 1.5),
        text_encoder=qwen3_vl(),
        processor=TextProcessor(),
        transformer=lively(transformer, 2),
    )


def flux2_transformer(text: int, guidance_embeds: bool = False):
    from diffusers import Flux2Transformer2DModel

    return lively(
        Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=text,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance_embeds,
        ),
        2,
    )


def flux2_klein(distilled: bool = False):
    from diffusers import Flux2KleinPipeline

    return Flux2KleinPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=qwen3(28, causal=True),
        tokenizer=byte_tokenizer(),
        transformer=flux2_transformer(48),
        is_distilled=distilled,
    )


def krea2(distilled: bool = False):
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel

    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=1,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 4, 8),
    )
    return Krea2Pipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(bare=True),
        tokenizer=byte_tokenizer(),
        transformer=lively(transformer, 2),
        text_encoder_select_layers=(1, 2),
        is_distilled=distilled,
    )


def chroma():
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return ChromaPipeline(
        scheduler=flow(),
        vae=autoencoder(4, shift_factor=0.1),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=lively(transformer, 2),
    )


def sana_transformer(**more: Any):
    from diffusers import SanaTransformer2DModel

    return lively(
        SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
            **more,
        ),
        1.5,
    )


def sana():
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline

    return SanaPipeline(
        tokenizer=byte_tokenizer(),
        text_encoder=gemma2(),
        vae=sana_vae(),
        transformer=sana_transformer(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def lumina2():
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(1024, 64, 64),
        cap_feat_dim=16,
    )
    return Lumina2Pipeline(
        transformer=lively(transformer, 1.5),
        scheduler=flow(),
        vae=eightfold_vae(4),
        text_encoder=gemma2(),
        tokenizer=byte_tokenizer(),
    )


RECENT = {
    "z-image": z_image,
    "qwen-image": qwen_image,
    "qwen-image-2.1": qwen_image_21,
    "flux2-klein": flux2_klein,
    "krea2": krea2,
    "chroma": chroma,
    "sana": sana,
    "lumina2": lumina2,
}
