"""x0 previews of many candidates, decoded by TAESD, by latent-to-RGB factors or by the VAE."""

from __future__ import annotations

from typing import Any

import comfy.model_management as management
import comfy.utils
import folder_paths
import torch
from comfy.taesd.taesd import TAESD

from ..backend.core.errors import BadInput

METHODS = ("auto", "TAESD", "latent to RGB", "VAE")
GRID_SIDE = 768  # pixels on the longer side of the live preview


class Previewer:
    """Decodes x0 latents (B, C, h, w), in the model's own space, to pictures (B, H, W, 3) in 0..1.

    Raises BadInput for the method TAESD if its decoder is not installed.
    """

    def __init__(self, model: Any, vae: Any, method: str = "auto"):
        self.latent_format, self.vae, self.device = model.model.latent_format, vae, model.load_device
        self.method = method if method != "auto" else self._best()
        if self.method == "TAESD":
            found = _taesd_file(self.latent_format)
            if found is None:
                raise BadInput(
                    "no TAESD decoder for this model in models/vae_approx; put "
                    f"{self.latent_format.taesd_decoder_name}.safetensors there, or choose another preview"
                )
            channels = self.latent_format.latent_channels
            self.taesd = TAESD(None, found, latent_channels=channels).to(self.device).eval()

    def _best(self) -> str:
        if _taesd_file(self.latent_format):
            return "TAESD"
        return "latent to RGB" if self.latent_format.latent_rgb_factors is not None else "VAE"

    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        if self.method == "TAESD":
            pictures = self.taesd.decode(x0.to(self.device, torch.float32)).movedim(1, -1)
            return ((pictures + 1) / 2).clamp(0, 1).cpu()
        if self.method == "latent to RGB":
            factors = torch.tensor(self.latent_format.latent_rgb_factors, dtype=torch.float32)
            bias = self.latent_format.latent_rgb_factors_bias
            picture = x0.float().cpu().movedim(1, -1) @ factors  # (B, h, w, 3) in -1..1
            picture = picture if bias is None else picture + torch.tensor(bias)
            return ((picture + 1) / 2).clamp(0, 1)
        return decode_latents(self.vae, self.latent_format.process_out(x0.float()))


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents in the VAE's own space -> pictures (B, H, W, 3) in 0..1, one for each. Raises BadInput."""
    pictures = vae.decode(latents)
    if pictures.ndim == 5:  # VAEs made from video VAEs return frames, of an image one
        pictures = pictures.flatten(0, 1)
    if len(pictures) != len(latents):
        raise BadInput(
            f"expected one picture for each latent, got {len(pictures)} for {len(latents)}; use an image "
            "model, videos are not supported"
        )
    return pictures[..., :3].float().cpu().clamp(0, 1)


def check_vae(model: Any, vae: Any) -> None:
    """Raises BadInput if the VAE has another number of latent channels than the model."""
    expected, channels = model.model.latent_format.latent_channels, getattr(vae, "latent_channels", None)
    if channels is not None and expected != channels:
        raise BadInput(
            f"the model has latents of {expected} channels, this VAE takes {channels}; connect the model's "
            "own VAE"
        )


def _taesd_file(latent_format: Any) -> str | None:
    name = latent_format.taesd_decoder_name
    if not name:
        return None
    found = [f for f in folder_paths.get_filename_list("vae_approx") if f.startswith(name)]
    return folder_paths.get_full_path("vae_approx", found[0]) if found else None


class PreviewGrid:
    """The live preview: all candidates in a grid, pruned ones dimmed. It is sent with the progress."""

    def __init__(self, count: int, steps: int):
        self.bar = comfy.utils.ProgressBar(steps)
        self.count, self.steps = count, steps
        self.pictures: list[torch.Tensor | None] = [None] * count
        self.pruned: set[int] = set()

    def show(self, step: int, rows: list[int] = (), pictures: torch.Tensor | None = None) -> None:  # type: ignore[assignment]
        """Send the grid after `step` (1-based) of the sampler.

        `pictures` (len(rows), H, W, 3) are new previews of `rows`, if there are any.
        """
        management.throw_exception_if_processing_interrupted()
        if pictures is not None:
            for row, picture in zip(rows, pictures, strict=True):
                self.pictures[row] = picture
        preview = ("JPEG", self.image(), GRID_SIDE) if any(p is not None for p in self.pictures) else None
        self.bar.update_absolute(step, self.steps, preview)

    def image(self):
        """The grid as a PIL image, about square."""
        import math

        from PIL import Image

        shown = [p for p in self.pictures if p is not None]
        height, width = shown[0].shape[:2]
        columns = math.ceil(math.sqrt(self.count * height / width))
        lines = math.ceil(self.count / columns)
        scale = min(1.0, GRID_SIDE / max(columns * width, lines * height))
        w, h = max(1, round(width * scale)), max(1, round(height * scale))
        canvas = Image.new("RGB", (columns * w, lines * h), (24, 24, 24))
        for i, picture in enumerate(self.pictures):
            if picture is not None:
                light = picture * 0.25 if i in self.pruned else picture
                tile = Image.fromarray((light * 255).round().byte().numpy()).resize((w, h))
                canvas.paste(tile, (i % columns * w, i // columns * h))
        return canvas
