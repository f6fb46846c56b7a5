"""LoRA files as other trainers write them."""

import torch


def pair(out, into, rank=2):
    made = torch.Generator().manual_seed(out * 1000 + into)
    return torch.randn(rank, into, generator=made) * 0.3, torch.randn(out, rank, generator=made) * 0.3


def lora(name, out, into, dotted=True):
    down, up = pair(out, into)
    ends = ("lora_A", "lora_B") if dotted else ("lora_down", "lora_up")
    return {
        f"{name}.{ends[0]}.weight": down,
        f"{name}.{ends[1]}.weight": up,
        f"{name}.alpha": torch.tensor(1.0),
    }


def loha(name, out, into):
    first, second = pair(out, into, 3), pair(out + 1, into + 1, 3)
    return {
        f"{name}.hada_w1_a": first[1],
        f"{name}.hada_w1_b": first[0],
        f"{name}.hada_w2_a": second[1][:out],
        f"{name}.hada_w2_b": second[0][:, :into],
        f"{name}.alpha": torch.tensor(2.0),
    }


def conv(name, out, into, side=3):
    down, up = pair(out, into * side * side)
    return {
        f"{name}.lora_down.weight": down.unflatten(1, (into, side, side)),
        f"{name}.lora_up.weight": up[:, :, None, None],
        f"{name}.alpha": torch.tensor(1.0),
    }


def dora(name, out, into, columns=False):
    lengths = torch.rand(into if columns else out, generator=torch.Generator().manual_seed(1)) + 0.5
    scale = {f"{name}.dora_scale": lengths[None] if columns else lengths[:, None]}
    return {**lora(name, out, into, False), **scale}


def lokr(name, out, into, whole=False):
    random = torch.Generator().manual_seed(out + into)
    first = torch.randn(4, 4, generator=random) * 0.3
    if whole:
        second = torch.randn(out // 4, into // 4, generator=random) * 0.3
        return {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second, f"{name}.alpha": torch.tensor(7.0)}
    down, up = pair(out // 4, into // 4)
    return {
        f"{name}.lokr_w1": first,
        f"{name}.lokr_w2_a": up,
        f"{name}.lokr_w2_b": down,
        f"{name}.alpha": torch.tensor(1.0),
    }


# {case: (model, its tensors)}; sizes are those of `lora_models.MODELS`.
def cases():
    wide = 256
    yield (
        "Z-Image kohya",
        "Z-Image",
        {
            **lora("lora_unet_layers_0_attention_qkv", 1152, 384, False),
            **lora("lora_unet_layers_0_attention_out", 384, 384, False),
            **lora("lora_unet_layers_0_feed_forward_w1", 1024, 384, False),
        },
    )
    yield (
        "Z-Image original",
        "Z-Image",
        {
            **lora("diffusion_model.noise_refiner.0.attention.qkv", 1152, 384),
            **lora("diffusion_model.layers.0.attention.out", 384, 384),
        },
    )
    yield (
        "Z-Image LyCORIS",
        "Z-Image",
        {
            **lokr("lycoris_layers_0_attention_to_q", 384, 384),
            **loha("lycoris_layers_0_attention_to_out_0", 384, 384),
        },
    )
    yield (
        "Krea 2 original",
        "Krea 2",
        {
            **lora("diffusion_model.blocks.0.attn.wq", wide, wide),
            **lora("diffusion_model.blocks.0.attn.wk", wide // 2, wide),
            **lora("diffusion_model.blocks.0.mlp.down", wide, 768),
        },
    )
    yield "Krea 2 LyCORIS", "Krea 2", lokr("lycoris_transformer_blocks_0_attn_to_v", wide // 2, wide, True)
    yield (
        "Qwen-Image kohya",
        "Qwen-Image",
        {
            **lora("lora_unet_transformer_blocks_0_attn_to_q", wide, wide, False),
            **lora("lora_unet_transformer_blocks_0_img_mlp_net_0_proj", 4 * wide, wide, False),
        },
    )
    yield (
        "Qwen-Image LyCORIS",
        "Qwen-Image",
        {
            **lokr("lycoris_transformer_blocks_0_attn_add_k_proj", wide, wide),
            **loha("lycoris_transformer_blocks_0_txt_mlp_net_2", wide, 4 * wide),
        },
    )
    yield (
        "FLUX.2 original",
        "FLUX.2",
        {
            **lora("diffusion_model.double_blocks.0.img_attn.qkv", 3 * wide, wide),
            **lora("diffusion_model.double_blocks.0.txt_mlp.0", 6 * wide, wide),
            **lora("diffusion_model.single_blocks.0.linear1", 9 * wide, wide),
            **lora("diffusion_model.single_blocks.0.linear2", wide, 4 * wide),
        },
    )
    yield (
        "FLUX.2 kohya",
        "FLUX.2",
        {
            **lora("lora_unet_double_blocks_0_txt_attn_qkv", 3 * wide, wide, False),
            **lora("lora_unet_double_blocks_0_img_attn_proj", wide, wide, False),
            **lora("lora_unet_single_blocks_0_linear1", 9 * wide, wide, False),
        },
    )
    yield "FLUX.2 LyCORIS", "FLUX.2", lokr("lycoris_transformer_blocks_0_ff_linear_in", 6 * wide, wide)
    yield (
        "FLUX kohya",
        "FLUX",
        {
            **lora("lora_unet_double_blocks_0_img_attn_qkv", 3 * wide, wide, False),
            **lora("lora_unet_single_blocks_0_linear1", 7 * wide, wide, False),
            **loha("lora_unet_double_blocks_0_txt_attn_qkv", 3 * wide, wide),
            **lokr("lora_unet_single_blocks_0_linear2", wide, 5 * wide),
        },
    )
    yield (
        "FLUX original",
        "FLUX",
        {
            **lora("diffusion_model.double_blocks.0.img_mlp.0", 4 * wide, wide),
            **lora("diffusion_model.single_blocks.0.modulation.lin", 3 * wide, wide),
        },
    )
    yield (
        "FLUX OneTrainer",
        "FLUX",
        {
            **lora("lora_transformer_transformer_blocks_0_attn_to_k", wide, wide, False),
            **loha("lora_transformer_single_transformer_blocks_0_proj_mlp", 4 * wide, wide),
        },
    )
    yield (
        "Chroma kohya",
        "Chroma",
        {
            **lora("lora_unet_double_blocks_0_txt_attn_qkv", 3 * wide, wide, False),
            **lora("lora_unet_single_blocks_0_linear1", 7 * wide, wide, False),
        },
    )
    yield (
        "SD1.x LoCon, LoHa and LoKr",
        "SD1.x",
        {
            **conv("lora_unet_down_blocks_0_resnets_0_conv1", 32, 32),
            **conv("lora_unet_down_blocks_1_resnets_0_conv_shortcut", 64, 32, 1),
            **loha("lora_unet_mid_block_resnets_0_conv2", 64, 64 * 9),
            **lokr("lora_unet_mid_block_resnets_1_conv1", 64, 64 * 9),
            **lora("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 64, 16, False),
            **loha("lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2", 64, 256),
        },
    )
    yield (
        "SD1.x of Stability",
        "SD1.x",
        lora("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q", 64, 64, False),
    )
    yield (
        "FLUX DoRA by columns",
        "FLUX",
        dora("lora_transformer_transformer_blocks_0_attn_to_out_0", wide, wide, columns=True),
    )


CASES = {case: (name, tensors) for case, name, tensors in cases()}
DORA = ("FLUX", dora("lora_transformer_transformer_blocks_0_attn_to_out_0", 256, 256))
CLIP = {
    key: value.contiguous()
    for part, wide in (("lora_te1", 768), ("lora_te2", 1280))
    for key, value in {
        **lora(f"{part}_text_model_encoder_layers_0_self_attn_q_proj", wide, wide, False),
        **lokr(f"{part}_text_model_encoder_layers_0_mlp_fc1", 4 * wide, wide),
    }.items()
}
