"""Diffusers' text-to-image pipelines as a renderer, with seeds per candidate, previews and row pruning.

Source: PARM (Guo et al. 2025, arXiv 2501.13926) judges pictures while they are drawn.
Departs from it: a pruned row is no longer evaluated (`row_mask`), and the sampler itself is unchanged. So
survivors are exactly the pictures of an unpruned run, with every scheduler (`sampling`).

The pipeline draws each candidate's noise separately, from a CPU generator with the candidate's seed: the
plain `pipeline(prompt, generator=torch.Generator().manual_seed(seed))` draws the same picture. Each prompt is
encoded separately, too. The batch matters only through rounding in the matrix kernels, which depends on the
number of rows: in float32, latents differ by at most 1e-5 of their spread (measured over all families and
chunks of 1, 5 and 64; the tests require 1e-4), and after rounding to 8 bits one value in 20,000 differs by
1/255. With `chunk=1` all evaluations have the same shape, and pictures are bit-identical in any batch, pruned
or not. Where tokens are sampled (aMUSEd), rounding changes a token only if two are nearly tied, but then the
rest of the picture differs visibly; none of 48 pictures did, in chunks of 1, 5 and 64.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, RenderFailed, RepriseError, Unsupported
from ...core.types import SEED_RANGE, Job, RendererCapabilities, RenderResult
from ...storage.cache import Cache, picture_key
from .families import Family
from .img2img import accepted_arguments, check_init, img2img_pipeline, init_arguments, skipped_calls
from .loading import Loading
from .pipelines import (
    borrowed,
    family_of_pipeline,
    open_decoder,
    open_pipeline,
    shortened_warnings,
    unscale_latents,
)
from .previews import check_scheduler
from .row_mask import RowMask
from .sampling import AllPruned, Sampling
from .tokens import decode_tokens

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from ...core.interfaces import Watcher

# The fields of `RendererSettings` that this renderer takes.
SETTINGS = frozenset(
    "steps size guidance true_cfg max_sequence_length lora base parts comfyui dtype offload chunk".split()
)
_CACHED_PROMPTS = 64  # prompts whose embeddings stay in memory


class DiffusersRenderer:
    """Draws with a diffusers pipeline: `model` is its folder, its Hugging Face id, a single file of weights,
    or the object itself.

    - `guidance` is the pipeline's guidance_scale (for FLUX the embedded one); None takes its default.
    - `true_cfg` > 1 guides FLUX by a second evaluation against `negative_prompt`.
    - `size` is a side in pixels or (width, height).
    - `chunk` is the number of rows the denoiser evaluates at once (None: depends on the picture's size). It
      is halved when memory runs out.
    - `preview_decoder` decodes previews instead of the VAE; it is a TAESD (an AutoencoderTiny) or its folder.
    - A single file may need `base`, `parts` or `comfyui`; see `RendererSettings`.
    - `lora` is a file of `reprise train diffusion-dpo`, which is added to the denoiser (`lora.apply_lora`).

    A pipeline passed as an object keeps its device and dtype unless `device` or `dtype` is given. Its
    scheduler and modules are restored after each call. Do not change it while this renderer is in use:
    `fingerprint` is computed once.

    The cache is read only without a watcher. A watcher needs previews, which are not cached, so every row is
    drawn then; the survivors are stored.
    """

    name = "diffusers"
    capabilities = RendererCapabilities(
        image_to_image=True,  # of most families; an object's own says it of its pipeline
        weights=True,
        keeps_pictures=True,
        settings=SETTINGS,
    )
    folder: Path | None = None  # of weights that come with the package

    def __init__(
        self,
        model: str | Path | DiffusionPipeline,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        true_cfg: float = 1.0,
        size: int | tuple[int, int] | None = None,
        negative_prompt: str = "",
        max_sequence_length: int | None = None,
        dtype: str = "auto",
        device: str = "auto",
        offload: str = "auto",
        chunk: int | None = None,
        preview_decoder: Any = None,
        lora: str | Path | None = None,
        base: str | Path | None = None,
        parts: Mapping[str, Path] | None = None,
        comfyui: Path | None = None,
        cache: Cache | None = None,
    ):
        self.pipeline, weights = open_pipeline(
            model, dtype, device, offload, Loading(lora, base, parts or {}, comfyui)
        )
        pipe, family = self.pipeline, family_of_pipeline(self.pipeline)
        self.family: Family = family
        self.capabilities = replace(self.capabilities, image_to_image=family.img2img is not None)
        defaults = inspect.signature(pipe.__call__).parameters
        self.steps = defaults["num_inference_steps"].default if steps is None else steps
        _check_count("steps", self.steps)
        if chunk is not None:
            _check_count("chunk", chunk)
        self.width, self.height = _check_size(
            family.default_size(pipe) if size is None else size, family.multiple(pipe), pipe
        )
        self.guidance, self.true_cfg = self._check_guidance(guidance, true_cfg)
        self.negative_prompt = negative_prompt.strip()
        if self.negative_prompt and not self.guided:
            raise Unsupported(f"a negative prompt needs guidance against it; give {self._guidance_option}")
        if max_sequence_length is not None:
            _check_count("max_sequence_length", max_sequence_length)
            if not family.has_text_length:
                raise Unsupported(f"{type(pipe).__name__} has a fixed text length; drop max_sequence_length")
        self.max_sequence_length = max_sequence_length
        check_scheduler(pipe.scheduler, watched=False)
        # 8 pictures of 512 x 512 at once, or the same number of pixels; decoding takes more memory per
        # picture.
        area = 512 * 512 / (self.width * self.height)
        self.chunk = chunk or max(1, round(8 * area))
        self.decode_chunk = min(self.chunk, max(1, round(4 * area)))
        if preview_decoder is not None and family.tokens:
            raise Unsupported(
                f"{type(pipe).__name__} draws tokens, which only its own {family.vae} "
                "can decode; drop preview_decoder"
            )
        self.preview_decoder = open_decoder(preview_decoder, pipe)
        self.cache = cache
        self.fingerprint = self._fingerprint(weights)
        self._embeddings: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    @property
    def model(self) -> Any:
        """The pipeline; None where it moves its parts by itself."""
        return None if getattr(self.pipeline, "_all_hooks", None) else self.pipeline

    @property
    def guided(self) -> bool:
        """Whether each step also evaluates the negative prompt: two rows a candidate instead of one."""
        if self.family.single_encode:
            return self.true_cfg > 1
        distilled = getattr(self.pipeline, self.family.denoiser).config.get("time_cond_proj_dim") is not None
        return self.guidance is not None and self.guidance > 1 and not distilled

    def render(
        self,
        jobs: Sequence[Job],
        watcher: Watcher | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> RenderResult:
        """Draws all jobs in one sampler batch; see `interfaces.Renderer`.

        Pictures are rounded to 8 bits, so that a cached one equals a new one. Raises BadInput for a blank
        prompt, a seed out of range or a watcher's step that does not exist, RenderFailed if the pipeline
        fails or its result is not finite.
        """
        check_jobs(jobs, watcher, self.steps)
        check_init(jobs, self.pipeline, self.family, self.steps, (self.width, self.height))
        cached: dict[int, tuple[Tensor, int]] = {}  # {job index: (image, denoiser rows it cost)}
        if self.cache is not None and watcher is None:
            for i, job in enumerate(jobs):
                entry = self.cache.get_image(self._key(job))
                if entry is not None and entry[1].get("rows", "").isdigit():
                    cached[i] = entry[0], int(entry[1]["rows"])
        todo = [i for i in range(len(jobs)) if i not in cached]
        result = RenderResult([None] * len(jobs), [None] * len(jobs), 0, 0)
        for i, (image, rows) in cached.items():
            result.images[i] = image
            result.denoiser_rows_full += rows
        if not todo:
            return result
        drawn = self._draw([jobs[i] for i in todo], watcher, progress)
        result.denoiser_rows = drawn.denoiser_rows
        result.denoiser_rows_full += drawn.denoiser_rows_full
        each = drawn.denoiser_rows_full // len(todo)
        for i, image, pruned_at in zip(todo, drawn.images, drawn.pruned_at, strict=True):
            result.images[i], result.pruned_at[i] = image, pruned_at
            if image is not None and self.cache is not None:
                self.cache.put_image(self._key(jobs[i]), image, {"rows": each})
        return result

    def _draw(
        self, jobs: Sequence[Job], watcher: Watcher | None, progress: Callable[[int, int], None] | None
    ) -> RenderResult:
        import torch

        pipe = self.pipeline
        generators = [torch.Generator().manual_seed(job.seed) for job in jobs]
        mask = RowMask(getattr(pipe, self.family.denoiser), len(jobs), self.chunk)
        vae = getattr(pipe, self.family.vae)
        preview = self.preview_decoder or vae
        sampling = Sampling(
            pipe.scheduler,
            mask,
            self.steps,
            generators,
            watcher,
            lambda latents: self._decode(latents, preview),
            progress,
        )
        images: list[Tensor | None] = [None] * len(jobs)
        try:
            with torch.no_grad(), borrowed(pipe, sampling.scheduler):
                conditions = self._conditions(jobs)
                draw, start = pipe, {}
                if jobs[0].init is not None:
                    draw, start = img2img_pipeline(pipe, self.family), init_arguments(jobs)
                    sampling.skipped_calls = lambda: skipped_calls(draw, jobs, sampling.total_calls)
                size = {"width": self.width, "height": self.height}
                with mask, contextlib.suppress(AllPruned):
                    latents = draw(
                        **conditions,
                        **dict(self.family.call),
                        **accepted_arguments(draw, size),
                        **start,
                        num_inference_steps=self.steps,
                        generator=generators,
                        output_type="latent",
                        return_dict=False,
                    )[0]
                if mask.alive:
                    decoded = self._decode(latents[mask.alive], vae)
                    for row, image in zip(mask.alive, decoded.mul(255).round() / 255, strict=True):
                        images[row] = image
        except RepriseError:
            raise
        except Exception as error:
            if error is sampling.callback_error:  # a host's interrupt, or a judge's error
                raise
            names = f"{type(pipe).__name__} with {type(pipe.scheduler).__name__}"
            if isinstance(error, torch.OutOfMemoryError):
                raise RenderFailed(
                    f"{names} ran out of memory; use a smaller size, fewer candidates, "
                    "offload='model' or a smaller chunk"
                ) from error
            cause = " ".join(str(error).split()) or type(error).__name__
            raise RenderFailed(f"{names} broke while drawing: {cause[:300]}") from error
        # All calls of a run request the same number of rows, so a run that ended early can be extrapolated.
        full = (
            mask.rows_full
            * (sampling.total_calls - sampling.first_call)
            // (sampling.calls - sampling.first_call)
        )
        return RenderResult(images, sampling.pruned_at, mask.rows, full)

    def _conditions(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The pipeline's arguments for prompts and guidance. Each distinct prompt is encoded once."""
        import torch

        texts = [job.prompt for job in jobs]
        encoded = {text: self._encode(text) for text in dict.fromkeys(texts)}
        rows = {name: torch.cat([encoded[text][name] for text in texts]) for name in self.family.embeddings}
        arguments: dict[str, Any] = dict(rows)
        if self.guided:
            negative = self._encode(self.negative_prompt)
            for name, positive in rows.items():
                one = negative[name]
                if not self.negative_prompt and self.family.zero_negative(self.pipeline):
                    one = torch.zeros_like(one)
                arguments[f"negative_{name}"] = one.expand_as(positive)
        if self.family.single_encode:
            arguments["true_cfg_scale"] = self.true_cfg
        if self.guidance is not None:
            arguments["guidance_scale"] = self.guidance
        return arguments

    def _encode(self, text: str) -> dict[str, Tensor]:
        """A prompt's embeddings, encoded separately so that they never depend on other prompts."""
        if text not in self._embeddings:
            with shortened_warnings(type(self.pipeline).__module__):
                self._embeddings[text] = self.family.encode(self.pipeline, text, self.max_sequence_length)
            if len(self._embeddings) > _CACHED_PROMPTS:
                self._embeddings.popitem(last=False)
        self._embeddings.move_to_end(text)
        return self._embeddings[text]

    def _decode(self, latents: Tensor, vae: Any) -> Tensor:
        """Latents in the sampler's layout -> pictures (B, H, W, 3) in 0..1, float32, on the CPU."""
        import torch

        if not torch.isfinite(latents).all():
            raise RenderFailed(
                f"{type(self.pipeline).__name__} gave latents that are not finite; its weights are damaged, "
                "or its dtype is too narrow (try dtype='bfloat16' or 'float32')"
            )
        upcast = vae.dtype == torch.float16 and self.family.upcasts_vae and vae.config.get("force_upcast")
        if upcast:
            vae.to(torch.float32)
        try:
            latents = self.family.unpack(self.pipeline, latents, self.width, self.height)
            parts = []
            for part in latents.split(self.decode_chunk):
                if self.family.tokens:
                    pixels = decode_tokens(vae, part)
                else:
                    latent = unscale_latents(part.to(vae.dtype), vae.config)
                    pixels = vae.decode(latent, return_dict=False)[0] / 2 + 0.5
                parts.append(pixels.clamp(0, 1).permute(0, 2, 3, 1).cpu().float())
        finally:
            if upcast:
                vae.to(torch.float16)
        return torch.cat(parts)

    @property
    def _guidance_option(self) -> str:
        return "true_cfg > 1" if self.family.single_encode else "guidance > 1"

    def _check_guidance(self, guidance: float | None, true_cfg: float) -> tuple[float | None, float]:
        pipe = self.pipeline
        for name, value in (("guidance", guidance), ("true_cfg", true_cfg)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise BadInput(f"{name} is a number of 0 or more; got {value}")
        if not self.family.single_encode and true_cfg != 1.0:
            raise Unsupported(f"true_cfg is FLUX's; {type(pipe).__name__} is guided by guidance={true_cfg}")
        embeds = not self.family.single_encode or pipe.transformer.config.guidance_embeds
        if not embeds:
            if guidance is not None:
                raise Unsupported(
                    f"this {type(pipe).__name__} has no guidance embedding (it is distilled, like FLUX "
                    f"schnell, or plain), so guidance={guidance} would do nothing; use true_cfg={guidance}"
                )
            return None, true_cfg
        if guidance is None:
            guidance = inspect.signature(pipe.__call__).parameters["guidance_scale"].default
        return guidance, true_cfg

    def _fingerprint(self, weights: str) -> str:
        import diffusers
        import torch
        import transformers

        scheduler = self.pipeline.scheduler
        return Cache.key(
            type(self.pipeline).__name__,
            weights,
            type(scheduler).__name__,
            str(dict(scheduler.config)),
            self.steps,
            self.guidance,
            self.true_cfg,
            self.width,
            self.height,
            self.negative_prompt,
            self.max_sequence_length,
            str(getattr(self.pipeline, self.family.denoiser).dtype),
            self.pipeline._execution_device.type,
            diffusers.__version__,
            torch.__version__,
            transformers.__version__,
        )

    def _key(self, job: Job) -> str:
        return picture_key(self.fingerprint, job)


def check_jobs(jobs: Sequence[Job], watcher: Watcher | None, steps: int) -> None:
    """Raises BadInput for blank prompts, seeds out of range, or watched steps that do not exist."""
    for job in jobs:
        if not job.prompt.strip():
            raise BadInput("a prompt is blank; say in a few words what to draw")
        if isinstance(job.seed, bool) or not isinstance(job.seed, int) or not 0 <= job.seed < SEED_RANGE:
            raise BadInput(f"a seed is a whole number from 0 to 2**63 - 1; got {job.seed!r}")
    beyond = sorted(step for step in (watcher.steps if watcher else ()) if not 1 <= step <= steps)
    if beyond:
        raise BadInput(f"there is no step {beyond[0]} to look at: this renderer takes steps 1 to {steps}")


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"{name} is a whole number of 1 or more; got {value!r}")


def _check_size(size: int | tuple[int, int], multiple: int, pipe: Any) -> tuple[int, int]:
    width, height = (size, size) if isinstance(size, int) else size
    for side in (width, height):
        _check_count("size", side)
        if side % multiple:
            near = max(multiple, round(side / multiple) * multiple)
            raise BadInput(
                f"{type(pipe).__name__} draws sides that are multiples of {multiple} pixels; "
                f"got {side}, use {near}"
            )
    return width, height
