"""Tiny, randomly initialised pipelines of every family, built in code, without a hub.

Weights are scaled up so that the text and the guidance visibly change the picture; at their default
initialisation the tiny models would draw the same grey for everything.
"""

from __future__ import annotations

import json
import string

import pytest
import torch

FAMILIES = ["flux", "flux_true_cfg", "sd3", "sd1", "sdxl", "pixart", "amused"]
# How each is rendered in the tests; 3 steps and 16-pixel pictures keep them fast.
SETTINGS = {
    "flux": {"guidance": 3.5, "max_sequence_length": 20},
    "flux_true_cfg": {"true_cfg": 3.0, "max_sequence_length": 20},
    "sd3": {"guidance": 4.0, "max_sequence_length": 20},
    "sd1": {"guidance": 5.0},
    "sdxl": {"guidance": 5.0},
    "pixart": {"guidance": 4.0, "max_sequence_length": 20},
    "amused": {"guidance": 3.0},
}
# Denoiser rows of one candidate at one step.
ROWS = {"flux": 1, "flux_true_cfg": 2, "sd3": 2, "sd1": 2, "sdxl": 2, "pixart": 2, "amused": 2}

# What the constructor wants beside components.
EXTRA = {"sd1": {"requires_safety_checker": False}, "sdxl": {"add_watermarker": False}}


def clip_tokenizer():
    from transformers import CLIPTokenizer

    letters = list(string.ascii_lowercase + string.digits + ",.")
    pieces = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=24)


def t5_tokenizer():
    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("\u2581", -2.0)]
    vocab += [(letter, -4.0) for letter in string.ascii_lowercase + string.digits + ",."]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=24)


def clip(projection: bool = False):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
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


def autoencoder(channels: int, **more):
    from diffusers import AutoencoderKL

    return lively(
        AutoencoderKL(
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            scaling_factor=0.7,
            **more,
        ),
        1,
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


def lively(model, gain: float):
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(gain)
            else:
                weight.add_(torch.randn_like(weight) * 0.05)
    return model.eval()


def flux(guidance_embeds: bool):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

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
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(4, shift_factor=0.1),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=lively(transformer, 2),
    )


def sd3():
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

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
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(4, shift_factor=0.1),
        text_encoder=clip(True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_wide(),
        tokenizer_3=t5_tokenizer(),
    )


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


def vqvae():
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


BUILDERS = {
    "flux": lambda: flux(True),
    "flux_true_cfg": lambda: flux(False),
    "sd3": sd3,
    "sd1": sd1,
    "sdxl": sdxl,
    "pixart": pixart,
    "amused": amused,
}


def build(family: str):
    torch.manual_seed(0)
    pipe = BUILDERS[family]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def pipelines():
    """family -> its tiny pipeline; shared, because a render leaves it as it was (and a test proves it)."""
    built = {}

    def get(family: str):
        if family not in built:
            built[family] = build(family)
        return built[family]

    return get


@pytest.fixture(scope="session")
def folders(pipelines, tmp_path_factory):
    """family -> a folder that its pipeline was saved to. Do not change it: copy it."""
    saved = {}

    def get(family: str):
        if family not in saved:
            saved[family] = tmp_path_factory.mktemp(family) / "model"
            pipelines(family).save_pretrained(saved[family])
            assert json.loads((saved[family] / "model_index.json").read_text())
        return saved[family]

    return get


@pytest.fixture
def renderer(pipelines):
    """(family, **settings) -> a renderer on the shared tiny pipeline, 3 steps, 16 pixels."""
    from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer

    def make(family: str, scheduler=None, **settings):
        pipe = pipelines(family)
        if scheduler is not None:
            pipe = type(pipe)(**{**pipe.components, "scheduler": scheduler}, **EXTRA.get(family, {}))
        return DiffusersRenderer(pipe, **{"steps": 3, "size": 16, **SETTINGS[family], **settings})

    return make


class Cuts:
    """A watcher that keeps, at each of its steps, the rows it is told to, and remembers what it saw."""

    def __init__(self, keep: dict[int, list[int]]):
        self.keep = keep
        self.steps = frozenset(keep)
        self.seen: list[tuple[int, list[int], torch.Tensor]] = []

    def look(self, step, rows, previews):
        self.seen.append((step, rows, previews))
        return [row for row in rows if row in self.keep[step]]


@pytest.fixture
def cuts():
    return Cuts
