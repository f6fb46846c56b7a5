"""The embedded tiny FLUX as ComfyUI's MODEL, CLIP and VAE, from weights in the diffusers format.

Stock loaders expect FLUX's head size and text encoders, so the objects are built here, at the sizes in the
weights' configs. Everything stays float32: the models are a few megabytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_management as management
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.text_encoders.t5
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..backend.core.model_files import EMBEDDED_WEIGHTS
from ..backend.storage.checksums import check_folder

WEIGHTS = EMBEDDED_WEIGHTS / "renderer"
TEXT_LENGTH = 48  # T5 tokens that the renderer was trained on


def load(folder: Path = WEIGHTS) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of the renderer in `folder` (diffusers layout)."""
    check_folder(folder)
    return load_model(folder), load_clip(folder), load_vae(folder)


def _config(folder: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / part / name).read_text(encoding="utf-8"))


def _weights(folder: Path, part: str, name: str) -> dict[str, torch.Tensor]:
    found = comfy.utils.load_torch_file(str(folder / part / name), safe_load=True)
    return {key: value.float() for key, value in found.items()}


def load_model(folder: Path = WEIGHTS) -> ModelPatcher:
    """The transformer as comfy's Flux, without a time shift, as it was trained."""
    made, vae = _config(folder, "transformer"), _config(folder, "vae")

    class Latents(comfy.latent_formats.Flux):
        def __init__(self):
            super().__init__()
            self.scale_factor, self.shift_factor = vae["scaling_factor"], vae["shift_factor"]
            # FLUX's preview factors and TAESD belong to another latent space.
            self.latent_rgb_factors = self.latent_rgb_factors_bias = self.taesd_decoder_name = None

    class TinyFlux(comfy.supported_models.Flux):
        sampling_settings = {"shift": 0.0}
        latent_format = Latents
        supported_inference_dtypes = [torch.float32]

    heads, width = made["num_attention_heads"], made["attention_head_dim"]
    config = TinyFlux(
        {
            "image_model": "flux",
            "in_channels": made["in_channels"] // 4,
            "out_channels": made["in_channels"] // 4,
            "vec_in_dim": made["pooled_projection_dim"],
            "context_in_dim": made["joint_attention_dim"],
            "hidden_size": heads * width,
            "mlp_ratio": 4.0,
            "num_heads": heads,
            "depth": made["num_layers"],
            "depth_single_blocks": made["num_single_layers"],
            "axes_dim": list(made["axes_dims_rope"]),
            "theta": 10000,
            "patch_size": 2,
            "qkv_bias": True,
            "guidance_embed": made["guidance_embeds"],
            "txt_ids_dims": [],
        }
    )
    config.set_inference_dtype(torch.float32, None)
    weights = _weights(folder, "transformer", "diffusion_pytorch_model.safetensors")
    converted = comfy.model_detection.convert_diffusers_mmdit(weights, "")
    model = comfy.model_base.Flux(config, device=management.unet_offload_device())
    model.load_model_weights(converted, "")
    return ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


def load_clip(folder: Path = WEIGHTS) -> comfy.sd.CLIP:
    """Both text encoders behind one CLIP: T5's features, CLIP's pooled vector."""
    from transformers import AutoTokenizer

    clip_config, t5_config = _config(folder, "text_encoder"), _config(folder, "text_encoder_2")
    t5_config["dense_act_fn"] = "gelu_pytorch_tanh"  # what transformers calls gelu_new

    class Tokenizer:
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            common = {"embedding_directory": embedding_directory, "tokenizer_class": AutoTokenizer}
            self.clip_l = comfy.sd1_clip.SDTokenizer(
                str(folder / "tokenizer"), embedding_size=clip_config["hidden_size"], **common
            )
            self.t5xxl = comfy.sd1_clip.SDTokenizer(
                str(folder / "tokenizer_2"),
                embedding_size=t5_config["d_model"],
                embedding_key="t5xxl",
                has_start_token=False,
                pad_with_end=False,
                max_length=TEXT_LENGTH,
                **common,
            )

        def tokenize_with_weights(self, text: str, return_word_ids=False, **options):
            return {
                "l": self.clip_l.tokenize_with_weights(text, return_word_ids, **options),
                "t5xxl": self.t5xxl.tokenize_with_weights(text, return_word_ids, **options),
            }

        def untokenize(self, pairs):
            return self.clip_l.untokenize(pairs)

        def state_dict(self):
            return {}

    class T5(comfy.text_encoders.t5.T5):
        """comfy's T5 assumes 32 buckets of relative distance; this takes the config's number."""

        def __init__(self, config, dtype, device, operations):
            super().__init__(config, dtype, device, operations)
            attention = self.encoder.block[0].layer[0].SelfAttention
            buckets = config["relative_attention_num_buckets"]
            attention.relative_attention_num_buckets = buckets
            attention.relative_attention_max_distance = config["relative_attention_max_distance"]
            attention.relative_attention_bias = operations.Embedding(
                buckets, config["num_heads"], device=device, dtype=dtype
            )

    class ClipText(comfy.clip_model.CLIPTextModel):
        """comfy's CLIP assumes a vocabulary of 49,408 tokens; this takes the config's size."""

        def __init__(self, config, dtype, device, operations):
            super().__init__(config, dtype, device, operations)
            self.set_input_embeddings(
                operations.Embedding(config["vocab_size"], config["hidden_size"], device=device, dtype=dtype)
            )

    class Encoders(nn.Module):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__()
            start, end = clip_config["bos_token_id"], clip_config["eos_token_id"]
            self.clip_l = comfy.sd1_clip.SDClipModel(
                device=device,
                dtype=dtype,
                textmodel_json_config=clip_config,
                return_projected_pooled=False,
                model_class=ClipText,
                special_tokens={"start": start, "end": end, "pad": clip_config["pad_token_id"]},
            )
            self.t5xxl = comfy.sd1_clip.SDClipModel(
                device=device,
                dtype=dtype,
                textmodel_json_config=t5_config,
                model_class=T5,
                special_tokens={"end": t5_config["eos_token_id"], "pad": t5_config["pad_token_id"]},
            )
            self.dtypes = {dtype}

        def set_clip_options(self, options):
            self.clip_l.set_clip_options(options)
            self.t5xxl.set_clip_options(options)

        def reset_clip_options(self):
            self.clip_l.reset_clip_options()
            self.t5xxl.reset_clip_options()

        def encode_token_weights(self, pairs):
            features, _ = self.t5xxl.encode_token_weights(pairs["t5xxl"])
            _, pooled = self.clip_l.encode_token_weights(pairs["l"])
            return features, pooled

        def load_sd(self, weights):
            return (self.clip_l if "text_projection.weight" in weights else self.t5xxl).load_sd(weights)

    target = comfy.supported_models_base.ClipTarget(Tokenizer, Encoders)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    text = _weights(folder, "text_encoder", "model.safetensors")
    text = {key if key.startswith("text_model.") else f"text_model.{key}": v for key, v in text.items()}
    text["text_projection.weight"] = torch.eye(clip_config["hidden_size"])  # not used: pooled is unprojected
    for part in (text, _weights(folder, "text_encoder_2", "model.safetensors")):
        missing, unexpected = clip.load_sd(part)
        assert not missing and not unexpected, (missing, unexpected)
    return clip


class TinyAutoencoder(nn.Module):
    """TAESD's architecture with the widths and depths of a diffusers AutoencoderTiny config."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        conv, block = comfy.taesd.taesd.conv, comfy.taesd.taesd.Block
        channels = config["latent_channels"]
        encoder, width = [], config["in_channels"]
        for level, (out, blocks) in enumerate(
            zip(config["encoder_block_out_channels"], config["num_encoder_blocks"])
        ):
            encoder.append(conv(width, out) if level == 0 else conv(width, out, stride=2, bias=False))
            encoder += [block(out, out) for _ in range(blocks)]
            width = out
        self.encoder = nn.Sequential(*encoder, conv(width, channels))
        widths = config["decoder_block_out_channels"]
        decoder: list[nn.Module] = [conv(channels, widths[0]), nn.ReLU()]
        for level, (out, blocks) in enumerate(zip(widths, config["num_decoder_blocks"])):
            decoder += [block(out, out) for _ in range(blocks)]
            if level == len(widths) - 1:
                decoder.append(conv(out, config["out_channels"]))
            else:
                decoder += [nn.Upsample(scale_factor=2), conv(out, widths[level + 1], bias=False)]
        self.clamp, self.decoder = comfy.taesd.taesd.Clamp(), nn.Sequential(*decoder)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in -1..1 -> latents (B, 16, H/8, W/8)."""
        return self.encoder(pixels * 0.5 + 0.5)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents -> (B, 3, H, W) in -1..1."""
        return self.decoder(self.clamp(latents)).mul(2).sub(1)


def load_vae(folder: Path = WEIGHTS) -> comfy.sd.VAE:
    """The tiny autoencoder as comfy's VAE, which is set up as for a TAESD of 16 channels."""
    config = _config(folder, "vae")
    weights = _weights(folder, "vae", "diffusion_pytorch_model.safetensors")
    model = TinyAutoencoder(config).eval().requires_grad_(False)
    model.load_state_dict({key.replace(".layers.", "."): value for key, value in weights.items()})
    standard = comfy.taesd.taesd.TAESD(latent_channels=config["latent_channels"])
    vae = comfy.sd.VAE(sd=standard.state_dict(), dtype=torch.float32)
    vae.first_stage_model = model
    vae.patcher = ModelPatcher(model, vae.device, management.vae_offload_device())
    return vae
