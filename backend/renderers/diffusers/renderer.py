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
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, RenderFailed, RepriseError, Unsupported
from ...core.types import SEED_RANGE, Job, RendererCapabilities, RenderResult
from ...storage.cache import Cache, picture_key
from . import call
from .batch_layout import FirstCall, Layout, NotMaskable, find_layout
from .distilled import distilled, embeds_guidance
from .drawing import new_generators
from .families import Family
from .img2img import check_init, img2img_class
from .loading import Loading, find_lora
from .pipelines import (
    borrowed,
    family_of_pipeline,
    new_scheduler,
    open_decoder,
    open_pipeline,
    quiet_copy,
    set_scheduler,
    shortened_warnings,
    silenced,
    tile,
)
from .previews import check_scheduler, knows_x0
from .prompts import NotJoinable, PromptEncoder, text_encoders
from .row_mask import Forwards
from .search_batch import SearchBatch
from .tokens import uses_masked_tokens

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from ...core.interfaces import Watcher

# The fields of `RendererSettings` that this renderer takes.
SETTINGS = frozenset(
    "steps size guidance true_cfg negative_prompt max_sequence_length scheduler lora base parts comfyui "
    "dtype quantize device offload chunk vae_tiling".split()
)
_PROBE = "a photo"  # the prompt with which a new pipeline is probed


class DiffusersRenderer:
    """Draws with a diffusers pipeline: `model` is its folder, its Hugging Face id, a single file of weights,
    or the object itself.

    - `steps` and `guidance`, the pipeline's guidance_scale (for FLUX the embedded one): None takes its
      default; of a model that was distilled to few steps (`distilled`), few steps without guidance.
    - `true_cfg` > 1 guides FLUX by a second evaluation against `negative_prompt`.
    - `scheduler` is a class of diffusers that steps instead of the pipeline's own, with its config.
    - `vae_tiling` decodes pictures in tiles.
    - `quantize` is nf4, int8 or fp8; see `quantization`.
    - `size` is a side in pixels or (width, height).
    - `chunk` is the number of rows the denoiser evaluates at once (None: depends on the picture's size). It
      is halved when memory runs out.
    - `preview_decoder` decodes previews instead of the VAE; it is a TAESD (an AutoencoderTiny) or its folder.
    - A single file may need `base`, `parts` or `comfyui`; see `RendererSettings`.
    - `lora` is a LoRA file, or several, each FILE or FILE:STRENGTH (`lora_files` lists the layouts).

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
        true_cfg: float | None = None,
        size: int | tuple[int, int] | None = None,
        negative_prompt: str = "",
        max_sequence_length: int | None = None,
        scheduler: str | None = None,
        dtype: str = "auto",
        quantize: str | None = None,
        device: str = "auto",
        offload: str = "auto",
        chunk: int | None = None,
        vae_tiling: bool = False,
        preview_decoder: Any = None,
        lora: Sequence[str | Path] | str | Path | None = None,
        base: str | Path | None = None,
        parts: Mapping[str, Path] | None = None,
        comfyui: Path | None = None,
        cache: Cache | None = None,
    ):
        lora = [lora] if isinstance(lora, (str, Path)) else lora
        loras = tuple(find_lora(one, comfyui) for one in lora or ())
        self.pipeline, weights = open_pipeline(
            model, dtype, device, offload, Loading(loras, base, parts or {}, comfyui, quantize)
        )
        pipe = self.pipeline
        if scheduler is not None:
            pipe.scheduler = new_scheduler(scheduler, pipe.scheduler)
        if vae_tiling:
            tile(pipe)
        self.vae_tiling = vae_tiling
        self.denoisers = call.denoisers(pipe)
        self.img2img = img2img_class(pipe)
        self.arguments = call.CallArguments(pipe)
        self.distilled = distilled(pipe, str(model) if isinstance(model, (str, Path)) else "")
        usual = self.distilled.steps if self.distilled else self.arguments.known["num_inference_steps"]
        self.steps = usual if steps is None else steps
        _check_count("steps", self.steps)
        if chunk is not None:
            _check_count("chunk", chunk)
        self.width, self.height = _check_size(
            call.default_side(pipe) if size is None else size, call.multiple(pipe), pipe
        )
        if self.distilled and not embeds_guidance(pipe):
            guidance, true_cfg = self.arguments.without_guidance(guidance, true_cfg)
        self.guidance, self.true_cfg = self.arguments.check_guidance(guidance, true_cfg)
        self.negative_prompt = negative_prompt.strip()
        if self.negative_prompt and not self.guided:
            option = "true_cfg > 1" if self.arguments.true_cfg else "guidance > 1"
            raise Unsupported(f"a negative prompt needs guidance against it; give {option}")
        if max_sequence_length is not None:
            _check_count("max_sequence_length", max_sequence_length)
            if "max_sequence_length" not in self.arguments.known:
                raise Unsupported(f"{type(pipe).__name__} has a fixed text length; drop max_sequence_length")
        self.max_sequence_length = max_sequence_length
        check_scheduler(pipe.scheduler, watched=False)
        self.capabilities = replace(
            self.capabilities,
            image_to_image=self.img2img is not None,
            previews=knows_x0(pipe.scheduler),
            no_previews=""
            if knows_x0(pipe.scheduler)
            else f"the clean picture that {type(pipe.scheduler).__name__} predicts at a step is not known",
        )
        # 8 pictures of 512 x 512 at once, or the same number of pixels; decoding takes more memory per
        # picture.
        area = 512 * 512 / (self.width * self.height)
        self.chunk = chunk or max(1, round(8 * area))
        self.decode_chunk = min(self.chunk, max(1, round(4 * area)))
        if preview_decoder is not None and uses_masked_tokens(pipe.scheduler):
            raise Unsupported(
                f"{type(pipe).__name__} draws tokens, which only its own {call.decoder_name(pipe)} "
                "can decode; drop preview_decoder"
            )
        self.preview_decoder = open_decoder(preview_decoder, pipe)
        self.cache = cache
        self.fingerprint = self._fingerprint(weights)
        self.prompts = PromptEncoder(pipe)
        self._encoders = text_encoders(pipe)
        self._layout: Layout | None = None
        self._probed = False

    @property
    def model(self) -> Any:
        """The pipeline; None where it moves its parts by itself."""
        return None if getattr(self.pipeline, "_all_hooks", None) else self.pipeline

    @property
    def family(self) -> Family:
        """What training knows of its family. Raises Unsupported."""
        return family_of_pipeline(self.pipeline)

    @property
    def guided(self) -> bool:
        """Whether each step also evaluates the negative prompt: two rows a candidate instead of one."""
        if self.arguments.true_cfg:
            return (self.true_cfg or 1.0) > 1
        return self.guidance is not None and self.guidance > 1 and not embeds_guidance(self.pipeline)

    @property
    def layout(self) -> Layout | None:
        """Which arguments of the denoiser carry the batch; None where its rows cannot be masked, so that each
        candidate is drawn by a call of its own. Found out at the first picture, without evaluating the
        denoiser.
        """
        if not self._probed:
            try:
                if "pag_scale" in self.arguments.known:
                    raise NotMaskable("its attention ties a candidate's rows together")
                self._layout = find_layout(self._first_call([1, 2]), self._first_call([3, 2, 4]))
            except NotJoinable:
                self.prompts.stop_joining()
                return self.layout
            except NotMaskable:
                self._layout = None
            except Exception:
                if call.is_modular(self.pipeline) and not self.arguments.one_prompt:
                    # FLUX 3 takes one prompt, and several pictures of it.
                    self.arguments.one_prompt = True
                    self.prompts.stop_joining()
                    return self.layout
                self._first_call([1])  # raises the same, unless the pipeline draws only one picture a call
                self._layout = None
            self._probed = True
        return self._layout

    def _first_call(self, seeds: Sequence[int]) -> dict[Any, Any]:
        """The arguments of the denoiser's first call for candidates with these seeds."""

        def stop(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            raise FirstCall(args, kwargs)

        jobs = [Job(_PROBE, seed) for seed in seeds]
        pipe, arguments = self.prepare(jobs, new_generators(jobs))
        set_scheduler(pipe, copy.deepcopy(pipe.scheduler))
        call.check_size_prepared(pipe, self.width, self.height)
        quiet = silenced("diffusers.modular_pipelines.modular_pipeline")
        with Forwards(self.denoisers, stop), self.encoding(), quiet:
            try:
                call.invoke(pipe, arguments)
            except FirstCall as first:
                return first.arguments
        raise NotMaskable("it never calls its denoiser")

    def prepare(
        self, jobs: Sequence[Job], generators: Sequence[torch.Generator]
    ) -> tuple[Any, dict[str, Any]]:
        """A copy of the pipeline for one call, which shares its parts, and the arguments of the call."""
        pipe = quiet_copy(self.pipeline)
        self.prompts.install(pipe)
        if self.arguments.guider is not None:
            pipe.guider = self.arguments.guider.new(guidance_scale=self.guidance)
        return pipe, self.call_arguments([job.prompt for job in jobs], generators)

    def call_arguments(self, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> dict[str, Any]:
        """The arguments of a call of the pipeline for these prompts, each with its generator."""
        return self.arguments.of(
            prompts,
            generators,
            steps=self.steps,
            size=(self.width, self.height),
            guidance=self.guidance,
            true_cfg=self.true_cfg,
            negative=self.negative_prompt,
            length=self.max_sequence_length,
        )

    @contextlib.contextmanager
    def encoding(self):
        """A context for the pipeline's calls, in which each prompt is encoded alone and its log lines are
        short."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(shortened_warnings(type(self.pipeline).__module__))
            if not self.prompts.wraps:
                stack.enter_context(self.prompts.once(self._encoders))
            yield

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
        check_init(jobs, self.pipeline, self.img2img, self.steps, (self.width, self.height))
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
        check_scheduler(pipe.scheduler, watched=watcher is not None)
        batch = SearchBatch(self, jobs, watcher, progress)
        try:
            with torch.no_grad(), borrowed(pipe):
                return batch.draw()
        except RepriseError:
            raise
        except Exception as error:
            if error is batch.error:  # a host's interrupt, or a judge's error
                raise
            names = f"{type(pipe).__name__} with {type(pipe.scheduler).__name__}"
            if isinstance(error, torch.OutOfMemoryError):
                raise RenderFailed(
                    f"{names} ran out of memory; use a smaller size, fewer candidates, "
                    "--offload model or a smaller chunk"
                ) from error
            cause = " ".join(str(error).split()) or type(error).__name__
            if type(error) is NameError:  # diffusers imports a package only where it is installed
                package = "torchvision" if error.name == "transforms" else error.name
                cause = f"it needs the package {package}: pip install {package}"
            raise RenderFailed(f"{names} broke while drawing: {cause[:300]}") from error

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
            *(["tiled"] if self.vae_tiling else []),
            str(self.denoisers[0].dtype),
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
