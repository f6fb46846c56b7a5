"""Checkpoints of the real model families with random weights, in the key layouts that are published.

Every function returns tensors by key, in float16. A family is made small where ComfyUI reads its sizes
from the weights (widths of FLUX and SD3, the number of blocks, the VAE's decoder); what its loader expects
(CLIP-L, a UNet's 320 channels, the VAE's encoder) is as large as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

CONTEXT, POOLED = 768, 768  # CLIP-L's


POOL = 1_000_003  # prime, so that no matrix has two equal rows


class Weights(dict):
    """Random tensors by key, sized so that a signal keeps its size on the way through.

    They are cut out of one pool of a million normal numbers: drawing each would take half a minute.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.random = torch.Generator().manual_seed(seed)
        self.pool = torch.randn(POOL, generator=self.random).half()

    def normal(self, key: str, *shape: int, std: float, mean: float = 0.0) -> None:
        count = math.prod(shape)
        start = int(torch.randint(POOL, (), generator=self.random))
        rest = count - (POOL - start)  # beyond the pool's end it starts again
        parts = [self.pool[start : start + count], *[self.pool] * (rest // POOL if rest > 0 else 0)]
        parts += [self.pool[: rest % POOL]] if rest > 0 else []
        self[key] = torch.cat(parts).mul_(std).add_(mean).reshape(shape)

    def linear(self, key: str, n_in: int, n_out: int, bias: bool = True, gain: float = 1.0) -> None:
        self.normal(f"{key}.weight", n_out, n_in, std=gain * n_in**-0.5)
        if bias:
            self.normal(f"{key}.bias", n_out, std=0.02)

    def conv(
        self,
        key: str,
        n_in: int,
        n_out: int,
        size: int = 3,
        bias: bool = True,
        gain: float = 1.0,
        mean: float = 0.0,
    ) -> None:
        self.normal(f"{key}.weight", n_out, n_in, size, size, std=gain * (n_in * size * size) ** -0.5)
        if bias:
            self.normal(f"{key}.bias", n_out, std=0.02, mean=mean)

    def norm(self, key: str, width: int) -> None:
        self.normal(f"{key}.weight", width, std=0.05, mean=1.0)
        self.normal(f"{key}.bias", width, std=0.05)


def save(weights: dict, file: Path, prefix: str = "") -> None:
    """As safetensors, each key with `prefix` before it."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({prefix + key: tensor for key, tensor in weights.items()}, file, {"format": "pt"})


def clip_l(seed: int = 1) -> Weights:
    """CLIP-L as in SD3's clip_l.safetensors: the names of transformers' CLIPTextModelWithProjection."""
    w, width = Weights(seed), 768
    w.normal("text_model.embeddings.token_embedding.weight", 49408, width, std=0.5)
    w.normal("text_model.embeddings.position_embedding.weight", 77, width, std=0.2)
    for i in range(12):
        at = f"text_model.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            w.linear(f"{at}.self_attn.{name}", width, width)
        w.linear(f"{at}.mlp.fc1", width, 4 * width)
        w.linear(f"{at}.mlp.fc2", 4 * width, width)
        w.norm(f"{at}.layer_norm1", width)
        w.norm(f"{at}.layer_norm2", width)
    w.norm("text_model.final_layer_norm", width)
    w.linear("text_projection", width, width, bias=False)
    return w


def flux(channels_in: int = 16, seed: int = 2) -> Weights:
    """FLUX.1 dev as Black Forest Labs publish it: `img_in`, `double_blocks.…`, `single_blocks.…`.

    Real widths are 3072 and, for T5-XXL's text, 4096; ComfyUI takes both from the weights, and heads of 128.
    `channels_in` 96 is FLUX.1 Fill: noise, masked picture and mask.
    """
    w, width = Weights(seed), 256
    w.linear("img_in", 4 * channels_in, width)
    w.linear("txt_in", CONTEXT, width)
    for name, n_in in (("time_in", 256), ("vector_in", POOLED), ("guidance_in", 256)):
        w.linear(f"{name}.in_layer", n_in, width)
        w.linear(f"{name}.out_layer", width, width)
    for i in range(2):
        for side in ("img", "txt"):
            at = f"double_blocks.{i}.{side}"
            w.linear(f"{at}_mod.lin", width, 6 * width)
            w.linear(f"{at}_attn.qkv", width, 3 * width)
            w.linear(f"{at}_attn.proj", width, width)
            for name in ("query_norm", "key_norm"):
                w.normal(f"{at}_attn.norm.{name}.scale", 128, std=0.05, mean=1.0)
            w.linear(f"{at}_mlp.0", width, 4 * width)
            w.linear(f"{at}_mlp.2", 4 * width, width)
    for i in range(2):
        at = f"single_blocks.{i}"
        w.linear(f"{at}.modulation.lin", width, 3 * width)
        w.linear(f"{at}.linear1", width, 7 * width)
        w.linear(f"{at}.linear2", 5 * width, width)
        for name in ("query_norm", "key_norm"):
            w.normal(f"{at}.norm.{name}.scale", 128, std=0.05, mean=1.0)
    w.linear("final_layer.adaLN_modulation.1", width, 2 * width)
    w.linear("final_layer.linear", width, 64)
    return w


def sd3(seed: int = 3) -> Weights:
    """SD3 medium's MMDiT as Stability publish it: `joint_blocks.…` below `model.diffusion_model.`.

    As many blocks and heads as the width has 64s. Text is 4096 wide, and the pooled text 2048, as always.
    """
    w, depth, side = Weights(seed), 2, 32
    width = 64 * depth
    w.conv("x_embedder.proj", 16, width, 2)
    w.normal("pos_embed", 1, side * side, width, std=0.5)
    for name, n_in in (("t_embedder", 256), ("y_embedder", 2048)):
        w.linear(f"{name}.mlp.0", n_in, width)
        w.linear(f"{name}.mlp.2", width, width)
    w.linear("context_embedder", 4096, width)
    for i in range(depth):
        for side_name in ("context_block", "x_block"):
            at = f"joint_blocks.{i}.{side_name}"
            last = i == depth - 1 and side_name == "context_block"  # only read by the picture's tokens
            w.linear(f"{at}.attn.qkv", width, 3 * width)
            w.linear(f"{at}.adaLN_modulation.1", width, (2 if last else 6) * width)
            if not last:
                w.linear(f"{at}.attn.proj", width, width)
                w.linear(f"{at}.mlp.fc1", width, 4 * width)
                w.linear(f"{at}.mlp.fc2", 4 * width, width)
    w.linear("final_layer.adaLN_modulation.1", width, 2 * width)
    w.linear("final_layer.linear", width, 64)
    return w


@dataclass(frozen=True)
class UNet:
    """What sets a UNet of Stable Diffusion apart; transformer depths are per residual block.

    SD1.5 has 320 channels x (1, 2, 4, 4) and 12 + 1 + 12 blocks. Here fewer and narrower levels: ComfyUI
    knows SD1.5 by 320 channels, a context of 768 and convolutions around its transformers.
    """

    channels_in: int = 4
    context: int = CONTEXT
    levels: tuple[tuple[int, ...], ...] = ((1,), (0,))
    levels_out: tuple[tuple[int, ...], ...] = ((1, 1), (0, 0))  # in the order of `levels`
    middle: int = 1
    linear: bool = False  # around its transformers SDXL has linear layers, SD1.5 convolutions
    vector: int = 0  # width of SDXL's pooled text and sizes
    width: int = 320


SD15 = UNet()
SD15_INPAINTING = UNet(channels_in=9)  # noise, mask and masked picture
# ComfyUI knows SDXL by its depths of 2, 2, 10, 10. In the real one the widths are 320 x (1, 2, 4), and the
# middle and the way up are as deep.
SDXL = UNet(
    context=2048,
    levels=((0, 0), (2, 2), (10, 10)),
    levels_out=((0,) * 3, (1, 0, 0), (1, 0, 0)),
    linear=True,
    vector=2816,
)


def unet(kind: UNet, seed: int = 4) -> Weights:
    """A UNet as CompVis and Stability publish it: `input_blocks.…` below `model.diffusion_model.`."""
    w, width = Weights(seed), kind.width
    count = _way_down(w, kind)
    for level in reversed(range(len(kind.levels))):
        for i, depth in enumerate(kind.levels_out[level]):
            at = f"output_blocks.{len(kind.levels_out[level]) * (len(kind.levels) - 1 - level) + i}"
            _residual(w, f"{at}.0", 2 * width, width)
            if depth:
                _transformer(w, f"{at}.1", kind, depth)
            if level and i == len(kind.levels_out[level]) - 1:
                w.conv(f"{at}.{2 if depth else 1}.conv", width, width)
    assert count == sum(len(depths) for depths in kind.levels_out)
    w.norm("out.0", width)
    w.conv("out.2", width, 4)
    return w


def controlnet(kind: UNet = SD15, seed: int = 5) -> Weights:
    """A ControlNet for SD1.5 as lllyasviel publishes it: the UNet's way down below `control_model.`.

    Its "zero" convolutions are none here, so that the hint shows.
    """
    w, width = Weights(seed), kind.width
    count = _way_down(w, kind)
    widths = (3, 16, 16, 32, 32, 96, 96, 256, width)
    for i in range(8):
        w.conv(f"input_hint_block.{2 * i}", widths[i], widths[i + 1], gain=2.0)
    for i in range(count):
        w.conv(f"zero_convs.{i}.0", width, width, 1, gain=0.5)
    w.conv("middle_block_out.0", width, width, 1, gain=0.5)
    return w


def _way_down(w: Weights, kind: UNet) -> int:
    """`time_embed`, `label_emb`, `input_blocks`, `middle_block`; returns the number of input blocks."""
    width, count = kind.width, 1
    w.linear("time_embed.0", width, 4 * width)
    w.linear("time_embed.2", 4 * width, 4 * width)
    if kind.vector:
        w.linear("label_emb.0.0", kind.vector, 4 * width)
        w.linear("label_emb.0.2", 4 * width, 4 * width)
    w.conv("input_blocks.0.0", kind.channels_in, width)
    for level, depths in enumerate(kind.levels):
        for depth in depths:
            _residual(w, f"input_blocks.{count}.0", width, width)
            if depth:
                _transformer(w, f"input_blocks.{count}.1", kind, depth)
            count += 1
        if level < len(kind.levels) - 1:
            w.conv(f"input_blocks.{count}.0.op", width, width)
            count += 1
    _residual(w, "middle_block.0", width, width)
    _transformer(w, "middle_block.1", kind, kind.middle)
    _residual(w, "middle_block.2", width, width)
    return count


def _residual(w: Weights, at: str, n_in: int, n_out: int) -> None:
    w.norm(f"{at}.in_layers.0", n_in)
    w.conv(f"{at}.in_layers.2", n_in, n_out)
    w.linear(f"{at}.emb_layers.1", 1280, n_out)
    w.norm(f"{at}.out_layers.0", n_out)
    w.conv(f"{at}.out_layers.3", n_out, n_out)
    if n_in != n_out:
        w.conv(f"{at}.skip_connection", n_in, n_out, 1)


def _transformer(w: Weights, at: str, kind: UNet, depth: int) -> None:
    width = kind.width
    w.norm(f"{at}.norm", width)
    for name in ("proj_in", "proj_out"):
        if kind.linear:
            w.linear(f"{at}.{name}", width, width)
        else:
            w.conv(f"{at}.{name}", width, width, 1)
    for i in range(depth):
        block = f"{at}.transformer_blocks.{i}"
        for name, context in (("attn1", width), ("attn2", kind.context)):
            w.linear(f"{block}.{name}.to_q", width, width, bias=False)
            w.linear(f"{block}.{name}.to_k", context, width, bias=False)
            w.linear(f"{block}.{name}.to_v", context, width, bias=False)
            w.linear(f"{block}.{name}.to_out.0", width, width)
        w.linear(f"{block}.ff.net.0.proj", width, 8 * width)
        w.linear(f"{block}.ff.net.2", 4 * width, width)
        for name in ("norm1", "norm2", "norm3"):
            w.norm(f"{block}.{name}", width)


def kl_vae(channels: int, quant: bool, seed: int = 6) -> Weights:
    """AutoencoderKL as CompVis publish it: `encoder.down.…`, `decoder.up.…`.

    SD1.5's has 4 channels and `quant_conv`s; FLUX's `ae.safetensors` and SD3's 16 and none. ComfyUI reads
    the decoder's width (128 in the real ones) from the weights, the encoder's is fixed.
    """
    w, mults = Weights(seed), (1, 2, 4, 4)
    ends = {}
    for half, base, n_in in (("encoder", 128, 3), ("decoder", 32, channels)):
        up = half == "decoder"
        widths = [base * mult for mult in mults]
        now = widths[-1] if up else base
        w.conv(f"{half}.conv_in", n_in, now)
        for i in reversed(range(4)) if up else range(4):
            for j in range(3 if up else 2):
                _vae_residual(w, f"{half}.{'up' if up else 'down'}.{i}.block.{j}", now, widths[i])
                now = widths[i]
            if up and i > 0:
                w.conv(f"decoder.up.{i}.upsample.conv", now, now)
            if not up and i < 3:
                w.conv(f"encoder.down.{i}.downsample.conv", now, now)
        wide = widths[-1]
        for name in ("block_1", "block_2"):
            _vae_residual(w, f"{half}.mid.{name}", wide, wide)
        w.norm(f"{half}.mid.attn_1.norm", wide)
        for name in ("q", "k", "v", "proj_out"):
            w.conv(f"{half}.mid.attn_1.{name}", wide, wide, 1)
        ends[half] = now
        w.norm(f"{half}.norm_out", now)
    w.conv("encoder.conv_out", ends["encoder"], 2 * channels)
    w.conv("decoder.conv_out", ends["decoder"], 3)
    if quant:
        w.conv("quant_conv", 2 * channels, 2 * channels, 1)
        w.conv("post_quant_conv", channels, channels, 1)
    return w


def _vae_residual(w: Weights, at: str, n_in: int, n_out: int) -> None:
    w.norm(f"{at}.norm1", n_in)
    w.conv(f"{at}.conv1", n_in, n_out)
    w.norm(f"{at}.norm2", n_out)
    w.conv(f"{at}.conv2", n_out, n_out)
    if n_in != n_out:
        w.conv(f"{at}.nin_shortcut", n_in, n_out, 1)


def taesd(channels: int, seed: int = 7) -> tuple[Weights, Weights]:
    """Encoder and decoder of a TAESD as madebyollin publishes them: two files, keys `1.conv.0.weight`, …"""
    encoder, decoder = Weights(seed), Weights(seed + 1)
    for w, first, last, plain, blocks in (
        (encoder, (0, 3), (14, channels), (2, 6, 10), (1, 3, 4, 5, 7, 8, 9, 11, 12, 13)),
        (decoder, (1, channels), (19, 3), (7, 12, 17), (3, 4, 5, 8, 9, 10, 13, 14, 15, 18)),
    ):
        w.conv(str(first[0]), first[1], 64)
        for i in blocks:
            for j in (0, 2, 4):
                w.conv(f"{i}.conv.{j}", 64, 64)
        for i in plain:
            w.conv(str(i), 64, 64, bias=False)
        # The picture is the decoder's output as it is: grey, and some contrast around it, but no colour cast.
        w.conv(str(last[0]), 64, last[1], mean=0.5 if w is decoder else 0.0, gain=1.5)
        w[f"{last[0]}.weight"] -= w[f"{last[0]}.weight"].mean(1, keepdim=True)
    return encoder, decoder


def sd15_lora(rank: int = 4, seed: int = 9) -> Weights:
    """A LoRA of SD1.5's UNet and text encoder as kohya's scripts save it: `lora_unet_…`, `lora_te_…`."""
    w, width = Weights(seed), SD15.width
    for block in ("down_blocks_0_attentions_0", "mid_block_attentions_0", "up_blocks_1_attentions_0"):
        at = f"lora_unet_{block}"
        for name, n_in in (("attn1", width), ("attn2", CONTEXT)):
            inside = f"{at}_transformer_blocks_0_{name}"
            for part, width_in in (("to_q", width), ("to_k", n_in), ("to_v", n_in), ("to_out_0", width)):
                _kohya(w, f"{inside}_{part}", width_in, width, rank)
        _kohya(w, f"{at}_transformer_blocks_0_ff_net_0_proj", width, 8 * width, rank)
    for i in range(12):
        for part in ("q_proj", "v_proj"):
            _kohya(w, f"lora_te_text_model_encoder_layers_{i}_self_attn_{part}", 768, 768, rank)
    return w


def _kohya(w: Weights, key: str, n_in: int, n_out: int, rank: int) -> None:
    w.normal(f"{key}.lora_down.weight", rank, n_in, std=n_in**-0.5)
    w.normal(f"{key}.lora_up.weight", n_out, rank, std=1.0)
    w[f"{key}.alpha"] = torch.tensor(float(rank), dtype=torch.float16)


def flux_lora(rank: int = 4, seed: int = 10) -> Weights:
    """A LoRA of FLUX as diffusers and PEFT save it: `transformer.….lora_A`, split where FLUX's are fused."""
    w, width = Weights(seed), 256
    for i in range(2):
        at = f"transformer.transformer_blocks.{i}"
        for part in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"):
            _peft(w, f"{at}.attn.{part}", width, width, rank)
        _peft(w, f"{at}.ff.net.0.proj", width, 4 * width, rank)
        at = f"transformer.single_transformer_blocks.{i}"
        for part in ("to_q", "to_k", "to_v"):
            _peft(w, f"{at}.attn.{part}", width, width, rank)
        _peft(w, f"{at}.proj_mlp", width, 4 * width, rank)
        _peft(w, f"{at}.proj_out", 5 * width, width, rank)
    return w


def _peft(w: Weights, key: str, n_in: int, n_out: int, rank: int) -> None:
    w.normal(f"{key}.lora_A.weight", rank, n_in, std=n_in**-0.5)
    w.normal(f"{key}.lora_B.weight", n_out, rank, std=0.5)


def sdxl_dataset(seed: int = 11) -> dict:
    """A shard of LoadTrainingDataset: one prompt as SDXL's text encoders give it, 2048 wide, 1280 pooled."""
    random = torch.Generator().manual_seed(seed)
    text = torch.randn(1, 77, 2048, generator=random)
    conditioning = [[text, {"pooled_output": torch.randn(1, 1280, generator=random)}]]
    return {"latents": [{"samples": torch.zeros(1, 4, 8, 8)}], "conditioning": [conditioning]}
