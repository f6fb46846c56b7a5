"""Tiny pipelines of older models: of the UNet kind, and of the first transformers."""

# diffusers annotates many of its arguments too narrowly.
# pyright: reportArgumentType=false

from __future__ import annotations

from .known import pixart, sd1, sd3, sdxl
from .language import byte_tokenizer, causal_config, llama
from .parts import autoencoder, clip, clip_tokenizer, eightfold_vae, flow, lively, t5, t5_tokenizer, unet
from .recent import sana


def pixart_alpha():
    from diffusers import PixArtAlphaPipeline

    return PixArtAlphaPipeline(**pixart().components)


def latent_consistency():
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    return LatentConsistencyModelPipeline(
        unet=unet(16, time_cond_proj_dim=8),
        vae=autoencoder(4),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        scheduler=LCMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def aura_flow():
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    return AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=autoencoder(4),
        transformer=lively(transformer, 2),
        scheduler=flow(shift=1.73),
    )


def hunyuan_dit():
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    transformer = HunyuanDiT2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        hidden_size=24,
        activation_fn="gelu-approximate",
        use_style_cond_and_image_meta_size=False,
        text_len=77,
        text_len_t5=256,
    )
    return HunyuanDiTPipeline(
        vae=eightfold_vae(4),
        text_encoder=bert(),
        tokenizer=bert_tokenizer(),
        transformer=lively(transformer, 1.5),
        scheduler=DDPMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.018, prediction_type="v_prediction"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(length=256),
    )


def bert_tokenizer():
    import string

    from transformers import BertTokenizer

    letters = list(string.ascii_lowercase + string.digits + ",.")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *["##" + letter for letter in letters]]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=77)


def bert():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(bert_tokenizer()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=77,
    )
    return lively(BertModel(config), 2)


def cogview4():
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel
    from transformers import GlmConfig, GlmModel

    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        rope_axes_dim=(16, 16),
    )
    return CogView4Pipeline(
        tokenizer=byte_tokenizer(begins=True),
        text_encoder=lively(GlmModel(GlmConfig(**causal_config(2))), 2),
        vae=autoencoder(4, shift_factor=0.0),
        transformer=lively(transformer, 1.5),
        scheduler=flow(use_dynamic_shifting=True, time_shift_type="linear"),
    )


def cogview3_plus():
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusPipeline, CogView3PlusTransformer2DModel

    transformer = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=32,
        sample_size=16,
    )
    return CogView3PlusPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=autoencoder(4, shift_factor=0.0),
        transformer=lively(transformer, 1.5),
        scheduler=CogVideoXDDIMScheduler(),
    )


def hidream():
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel

    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=32,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
        force_inference_output=True,
    )
    pipe = HiDreamImagePipeline(
        scheduler=flow(),
        vae=autoencoder(4, shift_factor=0.0),
        text_encoder=clip(True, length=128),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(True, length=128),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=llama(2, causal=True),
        tokenizer_4=byte_tokenizer(),
        transformer=lively(transformer, 1.5),
    )
    pipe.default_sample_size = 16  # draws pictures of this many latents, whatever is asked for
    return pipe


def omnigen():
    from diffusers import OmniGenPipeline, OmniGenTransformer2DModel

    transformer = OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=1,
        pad_token_id=0,
        vocab_size=262,
        time_step_dim=16,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
    )
    return OmniGenPipeline(
        transformer=lively(transformer, 1.5),
        scheduler=flow(invert_sigmas=True, num_train_timesteps=1),
        vae=autoencoder(4),
        tokenizer=byte_tokenizer(),
    )


def lumina():
    from diffusers import LuminaNextDiT2DModel, LuminaPipeline
    from transformers import GemmaConfig, GemmaModel

    transformer = LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=8,
        cross_attention_dim=16,
    )
    return LuminaPipeline(
        transformer=lively(transformer, 1),
        scheduler=flow(),
        vae=eightfold_vae(4),
        text_encoder=lively(GemmaModel(GemmaConfig(**causal_config(2))), 1),
        tokenizer=byte_tokenizer(begins=True),
    )


def kandinsky3():
    from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet, VQModel

    denoiser = Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(16, 32),
        cross_attention_dim=4,
        encoder_hid_dim=16,
    )
    movq = VQModel(
        block_out_channels=(32, 32, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    return Kandinsky3Pipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=lively(denoiser, 1.5),
        scheduler=DDPMScheduler(beta_start=0.00085, beta_end=0.012, thresholding=False, clip_sample=False),
        movq=lively(movq, 1.5),
    )


def deepfloyd():
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel

    denoiser = UNet2DConditionModel(
        sample_size=32,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=3,
        out_channels=6,
        cross_attention_dim=32,
        encoder_hid_dim=16,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        norm_num_groups=4,
    )
    return IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=lively(denoiser, 1),
        scheduler=DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            thresholding=True,
            dynamic_thresholding_ratio=0.95,
            sample_max_value=1.0,
            variance_type="learned_range",
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def sd1_pag():
    from diffusers import StableDiffusionPAGPipeline

    return StableDiffusionPAGPipeline(**sd1().components, requires_safety_checker=False)


def sdxl_pag():
    from diffusers import StableDiffusionXLPAGPipeline

    return StableDiffusionXLPAGPipeline(**sdxl().components, add_watermarker=False)


def sd3_pag():
    from diffusers import StableDiffusion3PAGPipeline

    parts = sd3().components
    return StableDiffusion3PAGPipeline(
        **{name: parts[name] for name in parts if name not in ("image_encoder", "feature_extractor")}
    )


def pixart_sigma_pag():
    from diffusers import PixArtSigmaPAGPipeline

    return PixArtSigmaPAGPipeline(**pixart().components)


def sana_pag():
    from diffusers import SanaPAGPipeline

    return SanaPAGPipeline(**sana().components)


def hunyuan_dit_pag():
    from diffusers import HunyuanDiTPAGPipeline

    return HunyuanDiTPAGPipeline(**hunyuan_dit().components, requires_safety_checker=False)


OLDER = {
    "pixart-alpha": pixart_alpha,
    "lcm": latent_consistency,
    "aura-flow": aura_flow,
    "hunyuan-dit": hunyuan_dit,
    "cogview4": cogview4,
    "cogview3-plus": cogview3_plus,
    "hidream": hidream,
    "omnigen": omnigen,
    "lumina": lumina,
    "kandinsky3": kandinsky3,
    "deepfloyd": deepfloyd,
    "sd1-pag": sd1_pag,
    "sdxl-pag": sdxl_pag,
    "sd3-pag": sd3_pag,
    "pixart-sigma-pag": pixart_sigma_pag,
    "sana-pag": sana_pag,
    "hunyuan-dit-pag": hunyuan_dit_pag,
}
