"""Tiny modular pipelines, for models that diffusers has in no other form: FLUX 3 and Anima."""

# diffusers annotates many of its arguments too narrowly.
# pyright: reportArgumentType=false

from __future__ import annotations

from .language import TextProcessor, byte_tokenizer, qwen3, qwen3_vl
from .parts import flow, flux2_vae, lively, qwen_vae, t5_tokenizer


def flux3():
    from diffusers import Flux3Transformer2DModel
    from diffusers.modular_pipelines import Flux3AutoBlocks

    transformer = Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16 * 8,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    pipe = Flux3AutoBlocks().init_pipeline()
    pipe.update_components(
        transformer=lively(transformer, 1.5),
        vae=flux2_vae(levels=4),
        text_encoder=qwen3_vl(33),
        tokenizer=TextProcessor(),
        scheduler=flow(shift=3.0),
    )
    return pipe


def anima():
    from diffusers import AnimaTextConditioner, CosmosTransformer3DModel
    from diffusers.modular_pipelines import AnimaAutoBlocks

    transformer = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        encoder_hidden_states_channels=16,
        extra_pos_embed_type=None,
        concat_padding_mask=False,  # with one it needs torchvision
        adaln_lora_dim=4,
        max_size=(8, 64, 64),
        patch_size=(1, 2, 2),
    )
    pipe = AnimaAutoBlocks().init_pipeline()
    pipe.update_components(
        transformer=lively(transformer, 1.5),
        text_conditioner=lively(
            AnimaTextConditioner(
                source_dim=16,
                target_dim=16,
                model_dim=16,
                num_layers=1,
                num_attention_heads=2,
                target_vocab_size=64,
                min_sequence_length=32,
            ),
            1,
        ),
        vae=qwen_vae(),
        text_encoder=qwen3(),
        tokenizer=byte_tokenizer(),
        t5_tokenizer=t5_tokenizer(),
        scheduler=flow(shift=3.0),
    )
    return pipe


MODULAR = {"flux3": flux3, "anima": anima}
