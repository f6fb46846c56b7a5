"""Text encoders, tokenizers, autoencoders and a scheduler: what pipelines share, at a few thousand random
weights.

Weights are scaled up so that the text and the guidance visibly change the picture; at their default
initialisation the tiny models would draw the same grey for everything.
"""

# diffusers annotates many of its arguments too narrowly.
# pyright: reportArgumentType=false

from __future__ import annotations

import string
from typing import Any


def clip_tokenizer():
    from transformers import CLIPTokenizer

    letters = list(string.ascii_lowercase + string.digits + ",.")
    pieces = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=24)


def t5_tokenizer(length: int = 24):
    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("\u2581", -2.0)]
    vocab += [(letter, -4.0) for letter in string.ascii_lowercase + string.digits + ",."]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=length)


def clip(projection: bool = False, length: int = 24):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=16,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return lively((CLIPTextModelWithProjection if projection else CLIPTextModel)(config), 3)


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
                relative_attention_num_buckets=8,
                relative_attention_max_distance=16,
            )
        ),
        1,
    )


def autoencoder(channels: int, levels: int = 2, **more: Any):
    from diffusers import AutoencoderKL

    return lively(
        AutoencoderKL(
            block_out_channels=(8,) * levels,
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            scaling_factor=0.7,
            **more,
        ),
        1,
    )


def eightfold_vae(channels: int):
    """An autoencoder of the usual scale, for pipelines that take it for granted."""
    return autoencoder(channels, levels=4, shift_factor=0.0)


def flux2_vae(levels: int = 2):
    from diffusers import AutoencoderKLFlux2

    return lively(
        AutoencoderKLFlux2(
            block_out_channels=(8,) * levels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        ),
        1,
    )


def qwen_vae():
    from diffusers import AutoencoderKLQwenImage

    return lively(
        AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.1, 0.2, 0.0],
            latents_std=[1.0, 1.1, 0.9, 1.0],
        ),
        1.5,
    )


def sana_vae():
    from diffusers import AutoencoderDC

    return lively(
        AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.5,
        ),
        1.5,
    )


def wan_vae(width: int, downsample: list[bool]):
    """Not `lively` yet."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=width,
        z_dim=4,
        dim_mult=[1] * (len(downsample) + 1),
        num_res_blocks=1,
        temperal_downsample=downsample,
        latents_mean=[0.1, 0.0, 0.0, 0.1],
        latents_std=[1.0, 1.0, 1.1, 1.0],
    )


def unet(cross: int, **more):
    from diffusers import UNet2DConditionModel

    return lively(
        UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            norm_num_groups=2,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            cross_attention_dim=cross,
            **more,
        ),
        1.5,
    )


def lively(model: Any, gain: float, zeros: float = 0.0) -> Any:
    """The model with weights times `gain`, and biases away from zero. Weights that start as zero, such as
    gates, stay so unless they get a spread of `zeros`."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and zeros and not weight.any():
                weight.normal_(0, zeros)
            elif weight.ndim > 1:
                weight.mul_(gain)
            else:
                weight.add_(torch.randn_like(weight) * 0.05)
    return model.eval()


def t5_wide():
    """SD3 pads both CLIPs' features to T5's width."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer()),
            d_model=32,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
        )
    ).eval()


def vqvae():
    import torch
    from diffusers import VQModel

    model = lively(
        VQModel(
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            num_vq_embeddings=24,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        ),
        1,
    )
    with torch.no_grad():  # codes far apart, and pictures around the middle of 0..1, as if trained
        model.quantize.embedding.weight.normal_()
        model.decoder.conv_out.weight.mul_(0.3)
        model.decoder.conv_out.bias.add_(0.5)
    return model


def flow(**config: Any):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)
