"""Tiny pipelines of the families that can be trained, and aMUSEd."""

# diffusers annotates many of its arguments too narrowly.
# pyright: reportArgumentType=false

from __future__ import annotations

from .parts import autoencoder, clip, clip_tokenizer, flow, lively, t5, t5_tokenizer, t5_wide, unet, vqvae


def flux(guidance_embeds: bool):
    from diffusers import FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    return FluxPipeline(
        scheduler=flow(),
        vae=autoencoder(4, shift_factor=0.1),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=lively(transformer, 2),
    )


def sd3():
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
    )
    return StableDiffusion3Pipeline(
        transformer=lively(transformer, 2),
        scheduler=flow(),
        vae=autoencoder(4, shift_factor=0.1),
        text_encoder=clip(True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_wide(),
        tokenizer_3=t5_tokenizer(),
    )


def sd1():
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        unet=unet(16),
        vae=autoencoder(4),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl():
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    time_ids = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
        "transformer_layers_per_block": (1, 1),
        "use_linear_projection": True,
    }
    return StableDiffusionXLPipeline(
        unet=unet(32, **time_ids),
        vae=autoencoder(4),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(True),
        tokenizer_2=clip_tokenizer(),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        add_watermarker=False,
    )


def pixart():
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        norm_type="ada_norm_single",
        attention_bias=True,
        norm_elementwise_affine=False,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        transformer=lively(transformer, 2),
        vae=autoencoder(4),
        scheduler=DPMSolverMultistepScheduler(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )


def amused():
    from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel

    transformer = UVit2DModel(
        hidden_size=16,
        cond_embed_dim=16,
        encoder_hidden_size=16,
        micro_cond_encode_dim=4,
        micro_cond_embed_dim=20,
        vocab_size=25,
        codebook_size=24,
        in_channels=8,
        block_out_channels=16,
        num_res_blocks=1,
        downsample=True,
        upsample=True,
        block_num_heads=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        sample_size=8,
    )
    return AmusedPipeline(
        vqvae=vqvae(),
        tokenizer=clip_tokenizer(),
        text_encoder=clip(True),
        transformer=lively(transformer, 2),
        scheduler=AmusedScheduler(mask_token_id=24),
    )


KNOWN = {
    "flux": lambda: flux(True),
    "flux_true_cfg": lambda: flux(False),
    "sd3": sd3,
    "sd1": sd1,
    "sdxl": sdxl,
    "pixart": pixart,
    "amused": amused,
}
