"""Denoisers of current families in original names: recognised, configs read off, weights renamed."""

import pytest
import torch

from reprise.backend.renderers.diffusers.converters import build, convert
from reprise.backend.renderers.diffusers.layouts import recognise, under, vae_kind
from reprise.backend.renderers.diffusers.model_configs import autoencoder, wan_autoencoder

from . import original_layouts as original


def z_image():
    from diffusers import ZImageTransformer2DModel

    model = ZImageTransformer2DModel(
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=48,
        axes_dims=[8, 12, 12],
    )
    return "Z-Image", model, original.z_image(model.state_dict())


def qwen_image():
    from diffusers import QwenImageTransformer2DModel

    model = QwenImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=48,
        axes_dims_rope=(4, 14, 14),
    )
    return "Qwen-Image", model, dict(model.state_dict())


def krea2():
    from diffusers import Krea2Transformer2DModel

    model = Krea2Transformer2DModel(
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=80,
        timestep_embed_dim=32,
        text_hidden_dim=48,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=40,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(8, 12, 12),
    )
    return "Krea 2", model, original.krea2(model.state_dict())


def flux2():
    from diffusers import Flux2Transformer2DModel

    model = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )
    return "FLUX.2", model, original.flux2(model.state_dict())


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
@pytest.mark.parametrize("family", [z_image, qwen_image, krea2, flux2])
def test_a_denoiser_is_recognised_and_read(family, prefix):
    torch.manual_seed(0)
    name, model, tensors = family()
    shapes = {prefix + key: tuple(value.shape) for key, value in tensors.items()}
    found = recognise(shapes)
    assert found is not None
    layout, start = found
    assert (layout.name, start) == (name, prefix)
    config = layout.read(under(prefix, shapes))
    for key, value in config.items():
        known = model.config[key]
        assert value == (list(known) if isinstance(known, tuple) else known), key
    assert type(model).__name__ == layout.denoiser
    renamed = convert(layout.denoiser, dict(tensors), config)
    state = model.state_dict()
    assert renamed.keys() == state.keys()
    assert all(torch.equal(renamed[key], value) for key, value in state.items())


def test_the_vae_of_flux2(tmp_path):
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(0)
    model = AutoencoderKLFlux2(
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    state = {key: value.clone() for key, value in model.state_dict().items()}
    tensors = original.flux2_vae(state, 2)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    assert vae_kind(shapes) == ("AutoencoderKLFlux2", 8)
    read = build("AutoencoderKLFlux2", autoencoder(shapes), tensors, tmp_path / "vae", torch.float32)
    assert all(torch.equal(read.state_dict()[key], value) for key, value in state.items())


def test_the_vae_of_qwen_image_and_wan(tmp_path):
    from diffusers import AutoencoderKLQwenImage

    torch.manual_seed(0)
    model = AutoencoderKLQwenImage(base_dim=8)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    tensors = original.wan_vae(state)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    assert vae_kind(shapes) == ("AutoencoderKLQwenImage", 16)
    config = wan_autoencoder(shapes)
    read = build("AutoencoderKLQwenImage", config, tensors, tmp_path / "vae", torch.float32)
    assert read.state_dict().keys() == state.keys()
    assert all(torch.equal(read.state_dict()[key], value) for key, value in state.items())
