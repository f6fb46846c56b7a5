"""Tiny pipelines of further flow models: FLUX.2, SANA-Sprint, Bria, HunyuanImage, ERNIE and others."""

# diffusers annotates many of its arguments too narrowly.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

from .known import flux
from .language import TextProcessor, byte_tokenizer, causal_config, gemma2, llama, qwen3, qwen3_vl, qwen25_vl
from .parts import (
    autoencoder,
    clip,
    clip_tokenizer,
    eightfold_vae,
    flow,
    flux2_vae,
    lively,
    qwen_vae,
    sana_vae,
    t5,
    t5_tokenizer,
    wan_vae,
)
from .recent import flux2_klein, flux2_transformer, sana_transformer


def flux2():
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    config = Mistral3Config(
        text_config={"model_type": "mistral", **causal_config(31)},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
            "image_size": 32,
            "patch_size": 8,
        },
    )
    return Flux2Pipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=lively(Mistral3ForConditionalGeneration(config), 2),
        tokenizer=TextProcessor(),
        transformer=flux2_transformer(48, guidance_embeds=True),
    )


def flux_kontext():
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**flux(True).components)


def sana_sprint():
    from diffusers import SanaSprintPipeline, SCMScheduler

    return SanaSprintPipeline(
        tokenizer=byte_tokenizer(),
        text_encoder=gemma2(),
        vae=sana_vae(),
        transformer=sana_transformer(guidance_embeds=True),
        scheduler=SCMScheduler(),
    )


def ovis():
    from diffusers import OvisImagePipeline, OvisImageTransformer2DModel

    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return OvisImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=autoencoder(4, shift_factor=0.1),
        text_encoder=qwen3(),
        tokenizer=byte_tokenizer(),
        transformer=lively(transformer, 2),
    )


def longcat():
    from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel

    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    return LongCatImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=autoencoder(16, shift_factor=0.1),
        text_encoder=qwen25_vl(),
        tokenizer=byte_tokenizer(),
        text_processor=TextProcessor(),
        transformer=lively(transformer, 2),
    )


def kandinsky5():
    from diffusers import Kandinsky5T2IPipeline, Kandinsky5Transformer3DModel

    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 4, 8),
    )
    pipe = Kandinsky5T2IPipeline(
        transformer=lively(transformer, 2),
        vae=eightfold_vae(4),
        text_encoder=qwen25_vl(),
        tokenizer=TextProcessor(),
        text_encoder_2=clip(length=77),
        tokenizer_2=clip_tokenizer(),
        scheduler=flow(),
    )
    pipe.resolutions = [(64, 64), (64, 128)]  # the real ones have a megapixel
    return pipe


def hunyuan_image():
    from diffusers import AutoencoderKLHunyuanImage, HunyuanImagePipeline, HunyuanImageTransformer2DModel
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=32,
        scaling_factor=0.75,
    )
    glyphs = T5EncoderModel(T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    return HunyuanImagePipeline(
        scheduler=flow(shift=5.0),
        vae=lively(vae, 1),
        text_encoder=qwen25_vl(3),
        tokenizer=byte_tokenizer(),
        text_encoder_2=lively(glyphs, 1),
        tokenizer_2=ByT5Tokenizer(),
        transformer=lively(transformer, 1.5),
    )


def bria():
    from diffusers import BriaPipeline, BriaTransformer2DModel

    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    return BriaPipeline(
        transformer=lively(transformer, 2),
        scheduler=flow(),
        vae=autoencoder(4, shift_factor=0.0),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )


def bria_fibo():
    from diffusers import BriaFiboPipeline, BriaFiboTransformer2DModel

    transformer = BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        text_encoder_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    vae = wan_vae(8, [False] * 4)
    return BriaFiboPipeline(
        transformer=lively(transformer, 2),
        scheduler=flow(use_dynamic_shifting=True),
        vae=lively(vae, 1.5),
        text_encoder=llama(2, causal=True, vocab_size=128_001),  # an empty prompt is token 128,000
        tokenizer=byte_tokenizer(),
    )


def t5_gemma():
    from transformers import T5GemmaConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    config = T5GemmaConfig(encoder=causal_config(2), decoder=causal_config(1), is_encoder_decoder=False)
    return lively(T5GemmaEncoder(config), 2)


def prx_transformer(channels: int, **more: Any):
    from diffusers import PRXTransformer2DModel

    return lively(
        PRXTransformer2DModel(
            in_channels=channels,
            patch_size=2,
            context_in_dim=16,
            hidden_size=32,
            mlp_ratio=2.0,
            num_heads=2,
            depth=1,
            axes_dim=[8, 8],
            **more,
        ),
        1.5,
    )


def prx():
    from diffusers import PRXPipeline

    return PRXPipeline(
        transformer=prx_transformer(4),
        scheduler=flow(),
        text_encoder=qwen3(),
        tokenizer=byte_tokenizer(256),
        vae=autoencoder(4, shift_factor=0.1),
        default_sample_size=32,
    )


def prx_pixel():
    from diffusers import PRXPixelPipeline

    return PRXPixelPipeline(
        transformer=prx_transformer(3),
        scheduler=flow(),
        text_encoder=qwen3(),
        tokenizer=byte_tokenizer(256),
        default_sample_size=32,
    )


def wan():
    from diffusers import WanPipeline, WanTransformer3DModel

    vae = wan_vae(4, [False, True, True])
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=64,
    )
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=lively(vae, 1.5),
        scheduler=flow(shift=3.0),
        transformer=lively(transformer, 2),
    )


def ernie():
    from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel

    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(8, 4, 4),
    )
    return ErnieImagePipeline(
        transformer=lively(transformer, 1.5, zeros=0.2),
        vae=flux2_vae(levels=4),
        text_encoder=llama(3),
        tokenizer=byte_tokenizer(),
        scheduler=flow(shift=3.0),
        pe=None,
        pe_tokenizer=None,
    )


def nucleus():
    from diffusers import NucleusMoEImagePipeline, NucleusMoEImageTransformer2DModel
    from torch import nn

    transformer = NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
    )
    for name, weight in transformer.named_parameters():
        if ".experts." in name:  # diffusers leaves these as the memory was
            nn.init.xavier_normal_(weight)
    return NucleusMoEImagePipeline(
        transformer=lively(transformer, 1),
        scheduler=flow(use_dynamic_shifting=True),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(8),
        processor=TextProcessor(),
    )


def ideogram4():
    from diffusers import Ideogram4Pipeline, Ideogram4Transformer2DModel

    def transformer():
        return lively(
            Ideogram4Transformer2DModel(
                in_channels=16,
                num_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                intermediate_size=32,
                adaln_dim=16,
                llm_features_dim=16 * 13,
                mrope_section=(4, 2, 2),
            ),
            1.5,
        )

    return Ideogram4Pipeline(
        scheduler=flow(),
        vae=flux2_vae(),
        text_encoder=qwen3_vl(36, bare=True),
        tokenizer=byte_tokenizer(),
        transformer=transformer(),
        unconditional_transformer=transformer(),
    )


def flux2_klein_kv():
    from diffusers import Flux2KleinKVPipeline

    return Flux2KleinKVPipeline(**flux2_klein().components)


FLOWS = {
    "sana-sprint": sana_sprint,
    "flux2": flux2,
    "flux2-klein-kv": flux2_klein_kv,
    "flux-kontext": flux_kontext,
    "ovis": ovis,
    "longcat": longcat,
    "kandinsky5": kandinsky5,
    "hunyuan-image": hunyuan_image,
    "bria": bria,
    "bria-fibo": bria_fibo,
    "prx": prx,
    "prx-pixel": prx_pixel,
    "wan": wan,
    "ernie": ernie,
    "nucleus": nucleus,
    "ideogram4": ideogram4,
}
