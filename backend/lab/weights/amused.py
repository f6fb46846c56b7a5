"""The third renderer: a tiny aMUSEd, the kind of model that PARM was made for.

A picture is 16 x 16 tokens of a codebook (van den Oord et al. 2017, arXiv 1711.00937). A transformer predicts
masked tokens (MaskGIT, Chang et al. 2022, arXiv 2202.04200; aMUSEd, Patil et al. 2024, arXiv 2401.01808): a
share cos(u pi / 2) of a picture's tokens is masked, with u uniform, and the loss is their cross-entropy.
Scenes, layout loss, and the pre-trained and frozen text encoder are as in the second renderer. More captions
are loose or empty than elsewhere: tokens sampled at once must fit those already there, and if captions always
give each thing's colour and place, the model does not learn to look at the other tokens.

Departs from both papers' autoencoders: no adversarial and no perceptual loss, which plain shapes do not need.
Codes are initialised at latents (k-means++, Arthur & Vassilvitskii 2007), and unused ones are moved to where
the error is largest; otherwise most would stand for grounds, which fill most of a picture. Codes are learned
with `LocalEncoder`, which sees a window of WINDOW pixels; VQModel's own encoder is trained to predict them
afterwards. It normalises over the whole picture: codes learned with it had some thirty values for one plain
ground, depending on the rest of the picture, and the codes of an outline hardly differed from their
neighbours'.

Tokens are sampled at a temperature below 1, for which aMUSEd's sampler has no setting. The shipped weights
of the head are divided by the temperature, which is equivalent.
"""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...shapeworld.captions import training_caption
from ...shapeworld.drawing import draw
from ...shapeworld.scenes import SIZE, Scene, random_scene
from ...shapeworld.tokenizers import clip_tokenizer
from .assemble import write_pipeline
from .autoencoder import SCENES, reconstruction_error, to_tensor
from .flux import LayoutHead, layout
from .muon import Muon, muon_and_adamw
from .stable_diffusion import TEXT_LENGTH, TEXT_STEPS, TEXT_WIDTH, ground_text_encoder, read_text, tokenize
from .training import WeightsLoop, update_average

CODE_STEPS, CODE_BATCH, CODE_RATE, CROP = 3000, 16, 1.5e-3, 64
ENCODER_STEPS, ENCODER_BATCH = 1200, 6
CODES, CODE_WIDTH = 1024, 8
WINDOW = 12  # pixels; side of the window that a code is chosen by. The code stands for the middle 8
STEPS, BATCH, RATE, EMA = 10000, 24, 1.2e-3, 0.998
EMPTY, INCOMPLETE = 0.15, 0.55  # shares of captions: empty; empty or loose
SIDE = SIZE // 8  # tokens along a side
MASK = CODES  # the id of a masked token
TEMPERATURE = 0.5  # of sampling tokens; at 1 some are wrong, and few pictures are right
LAYOUT_WEIGHT = 0.3  # weight of the layout's cross-entropy; the tokens' has 1, both in nats


def new_vqvae() -> Any:  # diffusers types its outputs as tuples too
    """A VQModel of 0.7 M parameters, most of whose computation is at 64 x 64 and above, for outlines.

    Norms have one group, and residual branches start at zero: with more groups, or diffusers' own
    initialisation, it takes many hundred steps until a ground's colour is reproduced.
    """
    from diffusers import VQModel

    vqvae: Any = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 32, 64),
        layers_per_block=1,
        norm_num_groups=1,
        mid_block_add_attention=False,
        latent_channels=CODE_WIDTH,
        num_vq_embeddings=CODES,
        scaling_factor=1.0,
        sample_size=SIZE,
        lookup_from_codebook=True,
    )
    for name, weight in vqvae.named_parameters():
        if name.endswith("conv2.weight"):
            nn.init.zeros_(weight)
    nn.init.constant_(vqvae.decoder.conv_out.bias, 0.6)  # about the mean of all pictures
    return vqvae


def to_pictures(pictures: list) -> torch.Tensor:
    """uint8 pictures (H, W, 3) -> (B, 3, H, W) in 0..1, the range of aMUSEd's VQModel."""
    return to_tensor(pictures) / 2 + 0.5


class LocalEncoder(nn.Sequential):
    """Images (B, 3, H, W) in 0..1 -> latents (B, CODE_WIDTH, H/8, W/8), each from WINDOW x WINDOW pixels."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 128, WINDOW, 8, (WINDOW - 8) // 2),
            nn.GELU(),
            nn.Conv2d(128, 128, 1),
            nn.GELU(),
            nn.Conv2d(128, CODE_WIDTH, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images * 2 - 1)


class Quantizer(nn.Module):
    """Codebook, the encoder that it is learned with, and the decoder; in training also each code's usage."""

    def __init__(self):
        super().__init__()
        self.vqvae, self.local = new_vqvae(), LocalEncoder()
        self.used: torch.Tensor
        self.register_buffer("used", torch.ones(CODES))  # tokens per batch, a moving average

    def loss(self, images: torch.Tensor, quantized: bool) -> torch.Tensor:
        """The loss for images (B, 3, H, W) in 0..1. The codebook's part is VQModel's own; without `quantized`
        it is a plain autoencoder's."""
        latents = self.local(images)
        beside: torch.Tensor = 1e-3 * latents.square().mean()
        if quantized:
            latents, beside, (_, _, codes) = self.vqvae.quantize(latents)
            self.used.lerp_(torch.bincount(codes, minlength=CODES).float(), 0.01)
        decoded = self.vqvae.decoder(self.vqvae.post_quant_conv(latents))
        return reconstruction_error(decoded * 2 - 1, images * 2 - 1) + beside

    @torch.no_grad()
    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in 0..1 -> codes (B, H/8, W/8)."""
        latents = self.local(images)
        return self.vqvae.quantize(latents)[2][2].view(len(images), *latents.shape[2:])

    @torch.no_grad()
    def place_codes(self, images: torch.Tensor, which: torch.Tensor) -> None:
        """Moves the codes with ids `which` to latents of `images` far from all other codes, by k-means++."""
        latents = self.local(images).permute(0, 2, 3, 1).reshape(-1, CODE_WIDTH)
        codes = self.vqvae.quantize.embedding.weight
        kept = torch.ones(CODES, dtype=torch.bool)
        kept[which] = False
        far = torch.cdist(latents, codes[kept]).square().amin(1) if kept.any() else torch.ones(len(latents))
        for code in which.tolist():
            codes[code] = latents[torch.multinomial(far + 1e-12, 1)]
            far = torch.minimum(far, (latents - codes[code]).square().sum(1))
            self.used[code] = 1.0


def _crops(rng: random.Random, count: int) -> torch.Tensor:
    """Crops (count, 3, CROP, CROP) around things: most of a picture is plain ground, which teaches little."""
    crops = []
    while len(crops) < count:
        scene = random_scene(rng)
        picture = draw(scene)
        for thing in scene.things:
            y, x = (
                min(SIZE - CROP, max(0, round(v + rng.uniform(-24, 24)) - CROP // 2))
                for v in (thing.y, thing.x)
            )
            crops.append(picture[y : y + CROP, x : x + CROP])
    return to_pictures(crops[:count])


def _optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the kernels, AdamW for everything else, over the trainable parameters."""
    kernels, others = [], []
    for p in model.parameters():
        if p.requires_grad:
            (kernels if p.ndim == 4 else others).append(p)
    return [
        Muon(kernels, lr=2 * CODE_RATE),
        torch.optim.AdamW(others, lr=CODE_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_codes(work: Path, seed: int = 0, steps: int = CODE_STEPS, log=print) -> Path:
    """Trains codebook and decoder; saves `work/masked/codes.safetensors`, a `Quantizer`.

    The first tenth of the steps trains without codes. After that, until four fifths of the steps, every
    hundredth step moves the codes that occur less than once in sixty batches of 1,024 tokens.
    """
    from safetensors.torch import save_file

    done = work / "masked" / "codes.safetensors"
    if done.exists():
        return done
    done.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = Quantizer().train()
    for part in (model.vqvae.encoder, model.vqvae.quant_conv):
        part.requires_grad_(False)
    checkpoint = work / "masked" / "codes.ckpt"
    loop = WeightsLoop(model, _optimizers(model), checkpoint, steps, seed, warmup=50, log=log)
    first = steps // 10

    def take_step(rng: random.Random, step: int) -> float:
        if step == first:
            model.place_codes(_crops(rng, 16 * CODE_BATCH), torch.arange(CODES))
        elif first < step < 0.8 * steps and step % 100 == 0:
            model.place_codes(_crops(rng, 4 * CODE_BATCH), (model.used < 1 / 60).nonzero().flatten())
        loss = model.loss(_crops(rng, CODE_BATCH), step >= first)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return loss.item()

    loop.run(take_step)
    log(f"{int((model.used > 1 / 60).sum())} of {CODES} codes in use")
    save_file(model.state_dict(), done.with_suffix(".tmp"))
    done.with_suffix(".tmp").replace(done)
    return done


def read_codes(work: Path) -> Quantizer:
    """The frozen `Quantizer` that `train_codes` saved."""
    from safetensors.torch import load_file

    model = Quantizer()
    model.load_state_dict(load_file(work / "masked" / "codes.safetensors"))
    return model.eval().requires_grad_(False)


def train_encoder(work: Path, seed: int = 0, steps: int = ENCODER_STEPS, log=print) -> Path:
    """Trains VQModel's encoder to predict pictures' codes, for image to image; saves `work/masked/vqvae`."""
    done = work / "masked" / "vqvae"
    if done.exists():
        return done
    torch.manual_seed(seed)
    model = read_codes(work)
    vqvae, codes = model.vqvae, model.vqvae.quantize.embedding.weight
    encoder = nn.ModuleList([vqvae.encoder, vqvae.quant_conv]).train().requires_grad_(True)
    spread, checkpoint = codes.var(), work / "masked" / "encoder.ckpt"
    loop = WeightsLoop(encoder, _optimizers(encoder), checkpoint, steps, seed, warmup=50, log=log)

    def take_step(rng: random.Random, step: int) -> float:
        images = to_pictures([draw(random_scene(rng)) for _ in range(ENCODER_BATCH)])
        target = codes[model.tokens(images)].movedim(-1, 1)
        loss = F.mse_loss(vqvae.encode(images).latents, target) / spread
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        return loss.item()

    loop.run(take_step)
    vqvae.eval().save_pretrained(done)
    return done


def tokenized_scenes(work: Path, seed: int, count: int, log=print) -> tuple[list[Scene], torch.Tensor]:
    """(scenes, tokens (count, SIDE, SIDE)); the tokens are cached in `work/masked`."""
    from safetensors.torch import load_file, save_file

    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    kept = work / "masked" / f"tokens-{count}-{seed}.safetensors"
    if not kept.exists():
        model, parts = read_codes(work), []
        for start in range(0, count, 32):
            images = to_pictures([draw(scene) for scene in scenes[start : start + 32]])
            parts.append(model.tokens(images).short())
            if start % 3200 == 0:
                log(f"tokenized {start}/{count} scenes")
        save_file({"tokens": torch.cat(parts)}, kept.with_suffix(".tmp"))
        kept.with_suffix(".tmp").replace(kept)
    return scenes, load_file(kept)["tokens"].long()


def train_text_encoder(work: Path, seed: int = 0, steps: int = TEXT_STEPS, log=print) -> Path:
    """Trains the second renderer's text encoder with a projection; saves `work/masked/text_encoder`."""
    return ground_text_encoder(work / "masked", True, seed, steps, log)


def new_transformer() -> Any:
    """A transformer of 4.0 M parameters. All blocks work at 8 x 8, each position on 2 x 2 tokens.

    UVit2DModel has no position embeddings; positions follow from the convolutions' zero padding.
    """
    from diffusers import UVit2DModel

    return UVit2DModel(
        hidden_size=160,
        cond_embed_dim=TEXT_WIDTH,
        encoder_hidden_size=TEXT_WIDTH,
        micro_cond_encode_dim=16,
        micro_cond_embed_dim=5 * 16,
        vocab_size=CODES + 1,
        codebook_size=CODES,
        in_channels=128,
        block_out_channels=160,
        num_res_blocks=2,
        downsample=True,
        upsample=True,
        block_num_heads=5,
        num_hidden_layers=3,
        num_attention_heads=5,
        intermediate_size=320,
        sample_size=SIDE,
    )


class AmusedWithLayout(nn.Module):
    """The transformer, with the layout head on the features in its middle, used only in training."""

    def __init__(self):
        super().__init__()
        self.transformer = new_transformer()
        self.layout = LayoutHead(self.transformer.config.hidden_size)
        # AmusedPipeline's default conditions for size, crop and aesthetic score.
        self.register_buffer("micro", torch.tensor([[SIZE, SIZE, 0.0, 0.0, 6.0]]), persistent=False)
        self.micro: torch.Tensor
        self.features: torch.Tensor | None = None
        self.transformer.transformer_layers[1].register_forward_hook(self._keep_features)

    def _keep_features(self, _block, _inputs, output) -> None:
        self.features = output  # (B, 64, width)

    def forward(self, tokens: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """Ids (B, SIDE, SIDE), some of them MASK -> logits (B, CODES, SIDE, SIDE)."""
        return self.transformer(tokens, text, pooled, self.micro.expand(len(tokens), -1))

    def layout_loss(self, layouts: torch.Tensor) -> torch.Tensor:
        """The layout head's loss on the features of the last forward pass."""
        assert self.features is not None
        return self.layout.loss(self.features, layouts)


def random_mask(tokens: torch.Tensor) -> torch.Tensor:
    """A random mask (B, SIDE, SIDE) of tokens: a share cos(u pi / 2) of each picture's, at least one."""
    count = len(tokens)
    share = torch.cos(torch.rand(count, 1) * math.pi / 2)
    rank = torch.rand(count, SIDE * SIDE).argsort(-1).argsort(-1)
    return (rank < (share * SIDE * SIDE).ceil().clamp(min=1)).view_as(tokens)


def train_transformer(work: Path, seed: int = 0, steps: int = STEPS, scenes: int = SCENES, log=print) -> Path:
    """Trains on autoencoder and frozen text encoder in `work/masked`; saves `work/masked/transformer`."""
    from transformers import CLIPTextModelWithProjection

    done = work / "masked" / "transformer"
    if done.exists():
        return done
    known, tokens = tokenized_scenes(work, seed, scenes, log)
    layouts = torch.tensor([layout(scene) for scene in known])
    torch.manual_seed(seed)
    clip = CLIPTextModelWithProjection.from_pretrained(work / "masked" / "text_encoder").eval()
    model, words = AmusedWithLayout().train(), clip_tokenizer(TEXT_LENGTH)
    average = copy.deepcopy(model).requires_grad_(False)
    both = nn.ModuleDict({"model": model, "average": average})
    optimizers = muon_and_adamw(model, "_block.", "transformer_layers.", rate=RATE)
    loop = WeightsLoop(both, optimizers, work / "masked" / "transformer.ckpt", steps, seed, log=log)

    def take_step(rng: random.Random, step: int) -> float:
        chosen = [rng.randrange(len(known)) for _ in range(BATCH)]
        captions = [training_caption(known[i], rng, EMPTY, INCOMPLETE) for i in chosen]
        with torch.no_grad():
            text = read_text(clip, tokenize(captions, words))
        mask = random_mask(tokens[chosen])
        logits = model(tokens[chosen].masked_fill(mask, MASK), *text).permute(0, 2, 3, 1)
        loss = F.cross_entropy(logits[mask], tokens[chosen][mask])
        (loss + LAYOUT_WEIGHT * model.layout_loss(layouts[chosen])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update_average(average, model, EMA, step)
        return loss.item()

    loop.run(take_step)
    average.transformer.eval().save_pretrained(done)
    return done


@torch.no_grad()
def sharpen(transformer: Any, temperature: float = TEMPERATURE) -> Any:
    """Divides the transformer's logits by `temperature`, in place. Guidance is linear, so it scales too."""
    head = transformer.mlm_layer.conv2
    for p in head.parameters():
        p.div_(temperature)
    return transformer


def assemble_masked(work: Path, out: Path) -> Path:
    """Writes `out`, an AmusedPipeline's folder, from the models in `work/masked`."""
    from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
    from transformers import CLIPTextModelWithProjection

    folder = work / "masked"
    parts: dict[str, Any] = {
        "vqvae": VQModel.from_pretrained(folder / "vqvae"),
        "tokenizer": clip_tokenizer(TEXT_LENGTH),
        "text_encoder": CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        "transformer": sharpen(UVit2DModel.from_pretrained(folder / "transformer")),
        "scheduler": AmusedScheduler(mask_token_id=MASK),
    }
    return write_pipeline(AmusedPipeline(**parts), folder / "pipeline", out)
