"""Small pipelines whose sizes follow the conventions of the published ones (heads of 64, groups of 32), so
that their configs can be read off their weights."""

import torch

from reprise.backend.lab.pipelines.parts import flow, lively, t5_tokenizer


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


def t5(width: int = 16):
    from transformers import T5Config, T5EncoderModel

    return lively(
        T5EncoderModel(
            T5Config(
                vocab_size=len(t5_tokenizer()),
                d_model=width,
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
    from diffusers import FluxPipeline, FluxTransformer2DModel

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
        scheduler=flow(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=flux_vae(),
        text_encoder=clip(64),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=lively(transformer, 2),
    )


def sd2():
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    text = clip(128).config
    text.hidden_act = "gelu"
    return StableDiffusionPipeline(
        unet=unet(128, linear=True),
        vae=autoencoder(4, scaling_factor=0.18215),
        text_encoder=lively(CLIPTextModel(text), 3),
        tokenizer=clip_tokenizer("!"),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd3(second: bool = False):
    """Stable Diffusion 3, or 3.5 medium with a second attention in its first block."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    first = clip(64).config
    transformer = SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=1,
        joint_attention_dim=192,
        caption_projection_dim=64,
        pooled_projection_dim=64 + 128,
        out_channels=16,
        pos_embed_max_size=8,
        dual_attention_layers=(0,) if second else (),
        qk_norm="rms_norm" if second else None,
    )
    return StableDiffusion3Pipeline(
        transformer=lively(transformer, 2),
        scheduler=flow(shift=3.0),
        vae=autoencoder(
            16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=lively(CLIPTextModelWithProjection(first), 3),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(128, projection=True),
        tokenizer_2=clip_tokenizer("!"),
        text_encoder_3=t5(192),
        tokenizer_3=t5_tokenizer(),
    )


def flux_vae():
    return autoencoder(
        16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
    )


def wan_vae():
    from diffusers import AutoencoderKLQwenImage

    return lively(AutoencoderKLQwenImage(base_dim=8), 1.5)


_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
_LANGUAGE = {
    "vocab_size": 270,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
}


def qwen_tokenizer():
    """A token for each byte, with the template that ComfyUI's has."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2TokenizerFast

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *_SPECIAL]
    tokenizer = Qwen2TokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": _SPECIAL})
    tokenizer.pad_token = _SPECIAL[0]
    tokenizer.chat_template = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    return tokenizer


def qwen3_tokenizer():
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    )
    return tokenizer


def qwen3(layers: int, causal: bool = False):
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(
        **_LANGUAGE,
        num_hidden_layers=layers,
        head_dim=8,
        rope_theta=1e6,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    )
    return lively((Qwen3ForCausalLM if causal else Qwen3Model)(config), 2)


_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": 16}


def z_image():
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=64,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 12, 12],
    )
    return ZImagePipeline(
        scheduler=flow(shift=3.0),
        vae=flux_vae(),
        text_encoder=qwen3(3),
        tokenizer=qwen3_tokenizer(),
        transformer=lively(transformer, 1.5),
    )


def flux2_klein():
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=32,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return Flux2KleinPipeline(
        scheduler=flow(shift=3.0, use_dynamic_shifting=True),
        vae=lively(vae, 1),
        text_encoder=qwen3(28, causal=True),
        tokenizer=qwen3_tokenizer(),
        transformer=lively(transformer, 2),
        is_distilled=True,
    )


def chroma():
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    transformer = ChromaTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 14, 14),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return ChromaPipeline(
        scheduler=flow(shift=1.0),
        vae=flux_vae(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=lively(transformer, 2),
    )


def qwen_image():
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    transformer = QwenImageTransformer2DModel(
        num_layers=1,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=128,
        axes_dims_rope=(4, 14, 14),
    )
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    language = {**_LANGUAGE, "hidden_size": 128, "num_attention_heads": 1, "num_hidden_layers": 2}
    text = Qwen2_5_VLConfig(
        text_config={**language, "rope_parameters": rope, "max_position_embeddings": 128000},
        vision_config={**_VISION, "out_hidden_size": 128, "fullatt_block_indexes": [0]},
    )
    return QwenImagePipeline(
        scheduler=flow(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        vae=wan_vae(),
        text_encoder=lively(Qwen2_5_VLForConditionalGeneration(text), 2),
        tokenizer=qwen_tokenizer(),
        transformer=lively(transformer, 2),
    )


def krea2():
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel
    from transformers import Qwen3VLConfig, Qwen3VLModel

    transformer = Krea2Transformer2DModel(
        in_channels=64,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=12,
        text_num_attention_heads=1,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    rope = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    }
    text = Qwen3VLConfig(
        text_config={
            **_LANGUAGE,
            "num_hidden_layers": 36,
            "head_dim": 128,
            "rope_parameters": rope,
            "max_position_embeddings": 262144,
        },
        vision_config={**_VISION, "deepstack_visual_indexes": [0]},
    )
    return Krea2Pipeline(
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=wan_vae(),
        text_encoder=lively(Qwen3VLModel(text), 2),
        tokenizer=qwen_tokenizer(),
        transformer=lively(transformer, 2),
        is_distilled=True,
    )


_FAMILIES = {
    "sd1": sd1,
    "sd2": sd2,
    "sdxl": sdxl,
    "sd3": sd3,
    "sd35": lambda: sd3(second=True),
    "flux": flux,
    "z-image": z_image,
    "flux2-klein": flux2_klein,
    "chroma": chroma,
    "qwen-image": qwen_image,
    "krea2": krea2,
}


def build(family: str):
    torch.manual_seed(0)
    pipe = _FAMILIES[family]()
    pipe.set_progress_bar_config(disable=True)
    return pipe
