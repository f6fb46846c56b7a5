"""The tiny FLUX: rectified-flow training of a FluxTransformer2DModel on captioned scenes.

Source: Esser et al. 2024 (arXiv 2403.03206), eq. 13: x_t = (1 - s) x_0 + s e, target e - x_0, with s
logit-normal. One caption in twelve is empty, for classifier-free guidance. The text encoders are trained
further at a tenth of the learning rate. An auxiliary loss classifies what lies under each image token from
the features in the transformer's middle, as in representation alignment (Yu et al. 2024, arXiv 2410.06940),
but with the scene itself instead of another network's features. The committed model has averaged weights
(EMA).
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ...shapeworld.captions import training_caption
from ...shapeworld.scenes import COLORS, SHAPES, SIZE, Scene
from .autoencoder import SCENES, encoded_scenes
from .muon import Muon
from .text_encoders import CLIP_WIDTH, T5_WIDTH, tokenize
from .training import WeightsLoop, update_average

STEPS, BATCH, RATE, EMA = 13000, 32, 1.2e-3, 0.9995
LATENT_CHANNELS, LATENT_SIZE = 16, SIZE // 8
LAYOUT_WEIGHT = 0.1  # weight of the layout's cross-entropy (nats per token); the velocity's error has 1


def new_transformer():
    """2.6 M parameters: 2 double-stream and 5 single-stream blocks of width 128."""
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=LATENT_CHANNELS * 4,
        num_layers=2,
        num_single_layers=5,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        axes_dims_rope=(8, 12, 12),
    )
    gates = ("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear")
    # adaLN-Zero (Peebles & Xie 2023): every block starts as the identity. diffusers does not do this.
    for name, module in transformer.named_modules():
        if name.endswith(gates) or name == "proj_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, 16, 16, 16) -> tokens of 2 x 2 patches (B, 64, 64), packed as in FluxPipeline."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def image_ids() -> torch.Tensor:
    """Position ids (64, 3) of the image tokens: (0, row, column)."""
    side = LATENT_SIZE // 2
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()


def layout(scene: Scene) -> list[list[int]]:
    """(colour, shape) of the thing under each of the 64 image tokens, counted from 1; 0 is the ground."""
    side = LATENT_SIZE // 2
    cells = [[0, 0] for _ in range(side * side)]
    for thing in scene.things:
        answer = [1 + list(COLORS).index(thing.color), 1 + SHAPES.index(thing.shape)]
        for i in range(side * side):
            y, x = ((v + 0.5) * SIZE / side for v in divmod(i, side))
            if max(abs(x - thing.x), abs(y - thing.y)) < thing.radius:
                cells[i] = answer
    return cells


class LayoutHead(nn.Sequential):
    """Features (B, 64, width) of the image tokens -> logits of colour and shape."""

    def __init__(self, width: int):
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, len(COLORS) + len(SHAPES) + 2),
        )

    def loss(self, features: torch.Tensor, layouts: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats per token against `layouts` (B, 64, 2)."""
        colors, shapes = self(features).flatten(0, 1).split([len(COLORS) + 1, len(SHAPES) + 1], -1)
        answers = layouts.flatten(0, 1)
        return F.cross_entropy(colors, answers[:, 0]) + F.cross_entropy(shapes, answers[:, 1])


class FluxWithLayout(nn.Module):
    """Text encoders and transformer: token ids and noisy latents -> velocity.

    `layout` is a head on the features in the transformer's middle, used only in training.
    """

    def __init__(self, clip, t5, transformer):
        super().__init__()
        self.clip, self.t5, self.transformer = clip, t5, transformer
        self.layout = LayoutHead(transformer.inner_dim)
        self.register_buffer("img_ids", image_ids(), persistent=False)
        self.features: torch.Tensor | None = None
        transformer.single_transformer_blocks[1].register_forward_hook(self._keep_features)
        self.denoise = [transformer]  # a list, so that a compiled twin adds no parameters

    def compile_transformer(self) -> None:
        """Fuses the transformer's small operations, which saves a third of a step's time on a CPU."""
        self.denoise = [torch.compile(self.transformer)]

    def _keep_features(self, _block, _inputs, output) -> None:
        self.features = output[1]  # (text, image)

    def layout_loss(self, layouts: torch.Tensor) -> torch.Tensor:
        """The layout head's loss on the features of the last forward pass."""
        assert self.features is not None
        return self.layout.loss(self.features, layouts)

    def forward(self, noisy, sigma, clip_ids, t5_ids):
        features = self.t5(input_ids=t5_ids).last_hidden_state
        return self.denoise[0](
            hidden_states=noisy,
            timestep=sigma,
            encoder_hidden_states=features,
            pooled_projections=self.clip(input_ids=clip_ids).pooler_output,
            txt_ids=torch.zeros(features.shape[1], 3),
            img_ids=self.img_ids,
            return_dict=False,
        )[0]


def optimizers_for(model: FluxWithLayout) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformer's blocks, AdamW for everything else."""
    matrices, others = [], []
    for name, p in model.transformer.named_parameters():
        (matrices if p.ndim == 2 and "blocks." in name else others).append(p)
    others += model.layout.parameters()
    text = [*model.clip.parameters(), *model.t5.parameters()]
    adam = torch.optim.AdamW(
        [{"params": others, "lr": RATE}, {"params": text, "lr": RATE / 10}],
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
    return [Muon(matrices, lr=RATE), adam]


def train_renderer(
    work: Path, seed: int = 0, steps: int = STEPS, scenes: int = SCENES, compiled: bool = True, log=print
) -> Path:
    """Trains on the earlier stages' models in `work`; saves `work/transformer` and both text encoders."""
    from transformers import CLIPTextModel, T5EncoderModel

    from ...shapeworld.tokenizers import clip_tokenizer, t5_tokenizer

    done = work / "transformer"
    if done.exists():
        return done
    known, latents = encoded_scenes(work, seed, scenes, log)
    layouts = torch.tensor([layout(scene) for scene in known])
    torch.manual_seed(seed)
    clip = CLIPTextModel.from_pretrained(work / "text_encoder")
    t5 = T5EncoderModel.from_pretrained(work / "text_encoder_2")
    model = FluxWithLayout(clip, t5, new_transformer()).train()
    average = copy.deepcopy(model).requires_grad_(False)
    if compiled:
        model.compile_transformer()
    both = nn.ModuleDict({"model": model, "average": average})
    loop = WeightsLoop(both, optimizers_for(model), work / "renderer.ckpt", steps, seed, log=log)
    clip_tok, t5_tok = clip_tokenizer(), t5_tokenizer()

    def take_step(rng: random.Random, step: int) -> float:
        chosen = [rng.randrange(len(known)) for _ in range(BATCH)]
        ids = tokenize([training_caption(known[i], rng) for i in chosen], clip_tok, t5_tok)
        clean = pack(latents[chosen].float())
        noise = torch.randn_like(clean)
        sigma = torch.sigmoid(torch.randn(BATCH) * 1.2)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        loss = F.mse_loss(model(noisy, sigma, *ids), noise - clean)
        (loss + LAYOUT_WEIGHT * model.layout_loss(layouts[chosen])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update_average(average, model, EMA, step)
        return loss.item()

    loop.run(take_step)
    export(average, work)
    return done


def export(model: FluxWithLayout, folder: Path) -> None:
    """Saves transformer and text encoders into their Hugging Face folders."""
    model.clip.eval().save_pretrained(folder / "text_encoder")
    model.t5.eval().save_pretrained(folder / "text_encoder_2")
    model.transformer.eval().save_pretrained(folder / "transformer")
