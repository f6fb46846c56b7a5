"""Single files, recognised by their keys: which pipeline they belong to, and where its parts lie in them.

An all-in-one checkpoint holds denoiser, VAE and text encoders under prefixes; ComfyUI's `diffusion_models`
hold the denoiser alone, with its prefix or without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import model_configs as configs

Shapes = Mapping[str, tuple[int, ...]]
DENOISER = ("model.diffusion_model.", "diffusion_model.", "")
VAE = ("first_stage_model.", "vae.")


@dataclass(frozen=True)
class Text:
    """A text encoder of a pipeline, with its tokenizer."""

    kind: str  # of `text_kind`
    model: str  # class of transformers
    tokenizer: str  # component of the pipeline
    inside: str  # its prefix in an all-in-one checkpoint
    width: Callable[[Mapping[str, Any]], int | None]  # hidden size that goes with a denoiser's config
    length: int = 77  # of the tokenizer
    pad: str = "<|endoftext|>"
    unused: int = 0  # last layers that are not evaluated


@dataclass(frozen=True)
class Layout:
    """A family of single files."""

    name: str
    pipeline: str  # class of diffusers
    denoiser: str  # class of diffusers
    marks: tuple[str, ...]  # keys that it alone has, all of them
    read: configs.Reader
    vae: str  # class of diffusers
    vae_config: Mapping[str, Any]
    scheduler: tuple[str, Mapping[str, Any]]
    text: Mapping[str, Text]
    vae_hints: tuple[str, ...] = ()  # words in the names of its VAE's files
    needs_hint: bool = False  # VAEs of other families have the same shapes
    packed: bool = False  # in_channels counts 2 x 2 patches of latents
    base_only: bool = False  # its configs are not read off its weights
    fits: Callable[[Shapes], bool] = lambda shapes: True  # beside `marks`
    component: str = "transformer"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline's constructor


_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_FLOW = "FlowMatchEulerDiscreteScheduler"
_FLUX_VAE = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
_DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True}
_UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _clip_l(inside: str) -> Text:
    return Text(
        "clip", "CLIPTextModel", "tokenizer", inside, lambda config: config.get("pooled_projection_dim", 768)
    )


def _projected(kind: str, tokenizer: str, inside: str, width: int, pad: str) -> Text:
    return Text(kind, "CLIPTextModelWithProjection", tokenizer, inside, lambda config: width, pad=pad)


def _linear(shapes: Shapes) -> bool:
    """Whether a UNet projects by linear layers, as all but SD 1."""
    return len(shapes["middle_block.1.proj_in.weight"]) == 2


def _t5(tokenizer: str, length: int) -> Text:
    inside = "text_encoders.t5xxl.transformer."
    return Text("t5", "T5EncoderModel", tokenizer, inside, lambda c: c["joint_attention_dim"], length)


LAYOUTS = (
    Layout(
        "Chroma",
        "ChromaPipeline",
        "ChromaTransformer2DModel",
        ("distilled_guidance_layer.in_proj.bias",),
        configs.chroma,
        "AutoencoderKL",
        _FLUX_VAE,
        # comfy/supported_models.py: Chroma has no shift of its own, and its template there sets none.
        (_FLOW, {"shift": 1.0}),
        {"text_encoder": _t5("tokenizer", 512)},
        vae_hints=("flux", "ae"),
        packed=True,
    ),
    Layout(
        "FLUX.2",
        "Flux2KleinPipeline",
        "Flux2Transformer2DModel",
        ("single_stream_modulation.lin.weight",),
        configs.flux2,
        "AutoencoderKLFlux2",
        {},
        (_FLOW, _DYNAMIC),  # the pipeline computes the shift (compute_empirical_mu)
        # The hidden states of three layers, side by side.
        {
            "text_encoder": Text(
                "qwen3",
                "Qwen3ForCausalLM",
                "tokenizer",
                "text_encoders.qwen3_4b.transformer.",
                lambda config: config["joint_attention_dim"] // 3,
                512,
            )
        },
        vae_hints=("flux2", "flux.2"),
        packed=True,
    ),
    Layout(
        "FLUX",
        "FluxPipeline",
        "FluxTransformer2DModel",
        ("double_blocks.0.img_attn.norm.query_norm.scale", "vector_in.in_layer.weight"),
        configs.flux,
        "AutoencoderKL",
        _FLUX_VAE,
        (_FLOW, {**_DYNAMIC, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256}),
        {
            "text_encoder": _clip_l("text_encoders.clip_l.transformer."),
            "text_encoder_2": _t5("tokenizer_2", 512),
        },
        vae_hints=("ae", "flux"),
        packed=True,
    ),
    Layout(
        "Krea 2",
        "Krea2Pipeline",
        "Krea2Transformer2DModel",
        ("txtfusion.projector.weight",),
        configs.krea2,
        "AutoencoderKLQwenImage",
        {},
        # comfy/supported_models.py: 1.15, which the pipeline takes for the distilled one at any size.
        (_FLOW, {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}),
        {
            "text_encoder": Text(
                "qwen3-vl",
                "Qwen3VLModel",
                "tokenizer",
                "text_encoders.qwen3vl_4b.transformer.",
                lambda config: config["text_hidden_dim"],
                512,
            )
        },
        vae_hints=("qwen",),
        packed=True,
    ),
    Layout(
        "Z-Image",
        "ZImagePipeline",
        "ZImageTransformer2DModel",
        ("layers.0.adaLN_modulation.0.weight", "cap_embedder.0.weight"),
        configs.z_image,
        "AutoencoderKL",
        _FLUX_VAE,
        (_FLOW, {"shift": 3.0}),
        {
            "text_encoder": Text(
                "qwen3",
                "Qwen3Model",
                "tokenizer",
                "text_encoders.qwen3_4b.transformer.",
                lambda config: config["cap_feat_dim"],
                512,
            )
        },
        vae_hints=("ae", "flux", "z_image"),
    ),
    Layout(
        "Qwen-Image",
        "QwenImagePipeline",
        "QwenImageTransformer2DModel",
        ("transformer_blocks.0.img_mod.1.weight", "txt_norm.weight"),
        configs.qwen_image,
        "AutoencoderKLQwenImage",
        {},
        (
            _FLOW,
            {
                "use_dynamic_shifting": True,
                "base_shift": 0.5,
                "max_shift": 0.9,
                "max_image_seq_len": 8192,
                "shift_terminal": 0.02,
            },
        ),
        {
            "text_encoder": Text(
                "qwen2.5-vl",
                "Qwen2_5_VLForConditionalGeneration",
                "tokenizer",
                "text_encoders.qwen25_7b.transformer.",
                lambda config: config["joint_attention_dim"],
                1024,
            )
        },
        vae_hints=("qwen",),
        packed=True,
    ),
    Layout(
        "SDXL",
        "StableDiffusionXLPipeline",
        "UNet2DConditionModel",
        ("input_blocks.0.0.weight", "label_emb.0.0.weight", "middle_block.1.proj_in.weight"),
        configs.unet,
        "AutoencoderKL",
        {"scaling_factor": 0.13025, "force_upcast": True},
        ("EulerDiscreteScheduler", _BETAS),
        {
            "text_encoder": _clip_l("conditioner.embedders.0.transformer."),
            "text_encoder_2": _projected(
                "open-clip", "tokenizer_2", "conditioner.embedders.1.model.", 1280, "!"
            ),
        },
        component="unet",
        options={"add_watermarker": False},
    ),
    Layout(
        "SD3",
        "StableDiffusion3Pipeline",
        "SD3Transformer2DModel",
        ("joint_blocks.0.context_block.attn.qkv.weight", "y_embedder.mlp.0.weight"),
        configs.sd3,
        "AutoencoderKL",
        {"scaling_factor": 1.5305, "shift_factor": 0.0609},  # comfy/latent_formats.py, SD3
        (_FLOW, {"shift": 3.0}),  # comfy/supported_models.py, SD3
        {
            "text_encoder": _projected(
                "clip", "tokenizer", "text_encoders.clip_l.transformer.", 768, "<|endoftext|>"
            ),
            "text_encoder_2": _projected(
                "open-clip", "tokenizer_2", "text_encoders.clip_g.transformer.", 1280, "!"
            ),
            "text_encoder_3": _t5("tokenizer_3", 512),
        },
        vae_hints=("sd3",),
        needs_hint=True,
    ),
    Layout(
        "SANA",
        "SanaPipeline",
        "SanaTransformer2DModel",
        ("attention_y_norm.weight", "blocks.0.mlp.inverted_conv.conv.weight"),
        lambda shapes: {},
        "AutoencoderDC",
        {},
        ("DPMSolverMultistepScheduler", {}),
        {"text_encoder": Text("gemma2", "Gemma2Model", "tokenizer", "text_encoders.", lambda config: None)},
        base_only=True,
    ),
    Layout(
        "SD2.x",
        "StableDiffusionPipeline",
        "UNet2DConditionModel",
        ("input_blocks.0.0.weight", "middle_block.1.proj_in.weight"),
        configs.unet,
        "AutoencoderKL",
        {"scaling_factor": 0.18215},
        ("DDIMScheduler", {**_BETAS, "clip_sample": False, "set_alpha_to_one": False}),
        {
            # The last but one layer's states, normed: its last layer is not used.
            "text_encoder": Text(
                "open-clip",
                "CLIPTextModel",
                "tokenizer",
                "cond_stage_model.model.",
                lambda config: config["cross_attention_dim"],
                pad="!",
                unused=1,
            )
        },
        fits=_linear,
        component="unet",
        options=_UNCHECKED,
    ),
    Layout(
        "SD1.x",
        "StableDiffusionPipeline",
        "UNet2DConditionModel",
        ("input_blocks.0.0.weight", "middle_block.1.proj_in.weight"),
        configs.unet,
        "AutoencoderKL",
        {"scaling_factor": 0.18215},
        ("PNDMScheduler", {**_BETAS, "skip_prk_steps": True, "set_alpha_to_one": False}),
        {"text_encoder": _clip_l("cond_stage_model.transformer.")},
        component="unet",
        options=_UNCHECKED,
    ),
)


def recognise(shapes: Shapes) -> tuple[Layout, str] | None:
    """(layout, prefix of the denoiser's keys) of a file with a denoiser in its original names."""
    for prefix in DENOISER:
        for layout in LAYOUTS:
            if all(prefix + mark in shapes for mark in layout.marks) and layout.fits(under(prefix, shapes)):
                return layout, prefix
    return None


def under(prefix: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """What stands under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in shapes.items() if key.startswith(prefix)}


def text_kind(shapes: Shapes) -> tuple[str, int] | None:
    """(kind, hidden size) of a file with one text encoder, in transformers' or OpenCLIP's names."""
    if "text_model.embeddings.position_embedding.weight" in shapes:
        return "clip", shapes["text_model.embeddings.position_embedding.weight"][1]
    if "positional_embedding" in shapes and "transformer.resblocks.0.attn.in_proj_weight" in shapes:
        return "open-clip", shapes["positional_embedding"][1]
    if "encoder.block.0.layer.0.SelfAttention.q.weight" in shapes:
        return "t5", shapes["shared.weight"][1] if "shared.weight" in shapes else 0
    for prefix in ("model.language_model.", "language_model.", "model."):
        embedding = shapes.get(f"{prefix}embed_tokens.weight")
        if embedding is None:
            continue
        sees = any(".visual." in f".{key}" for key in shapes)
        if f"{prefix}layers.0.self_attn.q_norm.weight" in shapes:
            return ("qwen3-vl" if sees else "qwen3"), embedding[1]
        if sees and f"{prefix}layers.0.self_attn.q_proj.bias" in shapes:
            return "qwen2.5-vl", embedding[1]
    return None


def vae_kind(shapes: Shapes) -> tuple[str, int] | None:
    """(class of diffusers, channels of its latents) of a file with a VAE in its original names."""
    if "decoder.middle.0.residual.0.gamma" in shapes and "conv2.weight" in shapes:
        return "AutoencoderKLQwenImage", shapes["conv2.weight"][0]
    if "decoder.conv_in.weight" not in shapes or "encoder.down.0.block.0.conv1.weight" not in shapes:
        return None
    kind = "AutoencoderKLFlux2" if "bn.running_mean" in shapes else "AutoencoderKL"
    return kind, shapes["decoder.conv_in.weight"][1]
