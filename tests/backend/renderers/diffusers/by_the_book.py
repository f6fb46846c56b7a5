"""Small pipelines whose sizes follow the conventions of the published ones (heads of 64, groups of 32), so
that their configs can be read off their weights."""

import torch

from reprise.backend.lab.pipelines.parts import lively, t5_tokenizer


def clip(hidden: int, projection: bool = False):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=hidden,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=hidden // 64,
        max_position_embeddings=77,
        projection_dim=hidden,
        hidden_act="gelu" if projection else "quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return lively((CLIPTextModelWithProjection if projection else CLIPTextModel)(config), 3)


def clip_tokenizer(pad: str = "<|endoftext|>"):
    from transformers import CLIPTokenizer

    from reprise.backend.core.clip_vocabulary import clip_vocabulary

    pieces, merges = clip_vocabulary()
    words = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=words, merges=merges, model_max_length=77, pad_token=pad)


def t5():
    from transformers import T5Config, T5EncoderModel

    return lively(
        T5EncoderModel(
            T5Config(
                vocab_size=len(t5_tokenizer()),
                d_model=16,
                d_kv=8,
                d_ff=16,
                num_layers=1,
                num_heads=2,
                feed_forward_proj="gated-gelu",
                relative_attention_num_buckets=8,
            )
        ),
        1,
    )


def autoencoder(channels: int, **more):
    from diffusers import AutoencoderKL

    return lively(
        AutoencoderKL(
            block_out_channels=(32, 64),
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=32,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            **more,
        ),
        1,
    )


def unet(cross: int, linear: bool, **more):
    from diffusers import UNet2DConditionModel

    return lively(
        UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=2,
            sample_size=64,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D")
            if linear
            else ("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")
            if linear
            else ("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(1, 1) if linear else 8,
            use_linear_projection=linear,
            cross_attention_dim=cross,
            **more,
        ),
        1.5,
    )


def sd1():
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        unet=unet(64, linear=False),
        vae=autoencoder(4, scaling_factor=0.18215),
        text_encoder=clip(64),
        tokenizer=clip_tokenizer(),
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl():
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        unet=unet(
            64 + 128,
            linear=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=128 + 6 * 256,
            transformer_layers_per_block=(1, 2),
        ),
        vae=autoencoder(4, scaling_factor=0.13025),
        text_encoder=clip(64),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(128, projection=True),
        tokenizer_2=clip_tokenizer("!"),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
        ),
        add_watermarker=False,
    )


def flux(guidance_embeds: bool = True):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=64,
        axes_dims_rope=(4, 14, 14),
        guidance_embeds=guidance_embeds,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=autoencoder(
            16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip(64),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=lively(transformer, 2),
    )


def build(family: str):
    torch.manual_seed(0)
    pipe = {"sd1": sd1, "sdxl": sdxl, "flux": flux}[family]()
    pipe.set_progress_bar_config(disable=True)
    return pipe
