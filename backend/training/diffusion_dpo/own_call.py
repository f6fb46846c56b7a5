"""A flow's denoiser, evaluated by its pipeline's own call.

A pipeline knows how its denoiser is called: how latents are packed, in which unit the time is given, how the
text is masked, and which sign the output has (Z-Image's is negated). So no table says it here. For one
evaluation the pipeline is called for one step: its `prepare_latents` gives the noisy latents, its
`encode_prompt` the stored embeddings, and its scheduler takes the velocity and leaves. What it does after its
last step shows how its latents are laid out for the VAE.

Latents stay in the pipeline's own layout: a loss is a mean over all their elements, in whatever order.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import Unsupported
from ...renderers.diffusers.call import CallArguments, decoder
from ...renderers.diffusers.distilled import embeds_guidance
from ...renderers.diffusers.pipelines import quiet_copy, set_scheduler
from ...renderers.diffusers.prompts import embedding_layout, joined

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_STRUCTURE = "structure"  # in a file of embeddings: its other tensors' places, as JSON in bytes
_DIGITS = 1000  # numbers that float32 keeps exactly through a scale and an offset


class _Found(BaseException):
    """Leaves the pipeline with a value. No Exception, so that no pipeline logs it."""

    def __init__(self, value: Any):
        super().__init__("found")
        self.value = value


@dataclass(frozen=True)
class Condition:
    """What a pipeline's `encode_prompt` returns for one prompt, and which parts of it carry the batch."""

    value: Any  # tensors in lists and tuples
    layout: dict[tuple, int]  # of `prompts.embedding_layout`

    def rows(self, count: int, device: torch.device, dtype: torch.dtype) -> Any:
        """The same, for a batch of `count`, on a device; masks keep their dtype."""
        return joined([_moved(self.value, device, dtype)] * count, (), self.layout)

    def tensors(self) -> dict[str, Tensor]:
        """As tensors by name, which a file can hold."""
        import torch

        held: dict[str, Tensor] = {}
        structure = json.dumps(self._described(self.value, (), held))
        return {**held, _STRUCTURE: torch.tensor(list(structure.encode()), dtype=torch.uint8)}

    def _described(self, value: Any, path: tuple, held: dict[str, Tensor]) -> dict[str, Any]:
        import torch

        batch = self.layout.get(path)
        if isinstance(value, torch.Tensor):
            held[str(len(held))] = value.detach().cpu().contiguous().clone()
            return {"tensor": str(len(held) - 1), "batch": batch}
        if isinstance(value, (list, tuple)):
            items = [self._described(one, (*path, i), held) for i, one in enumerate(value)]
            return {type(value).__name__: items, "batch": batch}
        assert value is None or isinstance(value, (bool, int, float, str)), type(value)
        return {"value": value}

    @classmethod
    def of_tensors(cls, held: Mapping[str, Tensor]) -> Condition:
        layout: dict[tuple, int] = {}

        def read(one: Mapping[str, Any], path: tuple) -> Any:
            if one.get("batch") is not None:
                layout[path] = one["batch"]
            if "tensor" in one:
                return held[one["tensor"]]
            for kind in (list, tuple):
                if kind.__name__ in one:
                    return kind(read(item, (*path, i)) for i, item in enumerate(one[kind.__name__]))
            return one["value"]

        value = read(json.loads(bytes(held[_STRUCTURE].tolist())), ())
        return cls(value, layout)


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(one, device, dtype) for one in value)
    if hasattr(value, "is_floating_point"):
        return value.to(device, dtype if value.is_floating_point() else None)
    return value


@dataclass(frozen=True)
class Tail:
    """How a pipeline lays out one sample's latents for its VAE: element i of what it decodes is
    `scale[i] latents[place[i]] + offset[i]`."""

    latents: tuple[int, ...]  # shape of a sample in the sampler's layout
    decoded: tuple[int, ...]  # and as it is decoded
    place: Tensor
    scale: Tensor
    offset: Tensor

    def to_vae(self, latents: Tensor) -> Tensor:
        """(B, *latents) -> (B, *decoded)."""
        place, scale, offset = (one.to(latents.device) for one in (self.place, self.scale, self.offset))
        return (latents.flatten(1)[:, place] * scale + offset).unflatten(1, self.decoded)

    def from_vae(self, decoded: Tensor) -> Tensor:
        """(B, *decoded) -> (B, *latents)."""
        import torch

        place, scale, offset = (one.to(decoded.device) for one in (self.place, self.scale, self.offset))
        flat = (decoded.flatten(1) - offset) / scale
        return torch.empty_like(flat).index_copy(1, place, flat).unflatten(1, self.latents)


@dataclass
class OwnCall:
    """A pipeline's call for pictures of one size, without classifier-free guidance."""

    pipeline: Any
    size: tuple[int, int]  # (width, height) in pixels
    guidance: float | None = None  # of an embedding; None: the pipeline's default
    length: int | None = None  # tokens of text; None: the pipeline's default

    def encode(self, text: str, layout: dict[tuple, int] | None = None) -> Condition:
        """What the pipeline makes of a prompt. `layout` is that of another of its prompts; None: found out
        by encoding the prompt a second time."""
        one = self._encoded([text])
        if layout is None:
            layout = embedding_layout(one, self._encoded([text] * 2))
        return Condition(one, layout)

    def mu(self, condition: Condition | None = None) -> float | None:
        """By how much it shifts the sigmas of its default number of steps, where it tells its scheduler."""

        def set_up(twin: Any) -> None:
            def set_timesteps(*_: Any, mu: float | None = None, **__: Any) -> None:
                raise _Found(mu)

            own = twin.scheduler.set_timesteps
            twin.scheduler.set_timesteps = functools.wraps(own)(set_timesteps)
            _give_condition(twin, condition, 1)

        return self._left(1, set_up)

    def tail(self, condition: Condition) -> Tail:
        """Its way from latents to what its VAE decodes, found by probing. Raises Unsupported where it is no
        permutation, scale and offset."""
        import torch

        shape = self._latents_shape(condition)
        count = int(torch.tensor(shape).prod())

        def decoded(latents: Tensor) -> Tensor:
            return self._decoded(latents.reshape(1, *shape), condition)[0]

        offset = decoded(torch.zeros(count))
        scale = decoded(torch.ones(count)) - offset
        kind, offset, scale = tuple(offset.shape), offset.flatten(), scale.flatten()
        index, place, unit = torch.arange(count), torch.zeros(count, dtype=torch.long), 1
        while unit < count and len(offset) == count and bool(scale.ne(0).all()):
            digits = (decoded((index // unit % _DIGITS).float()).flatten() - offset) / scale
            place += digits.round().long() * unit
            unit *= _DIGITS
        probe = torch.randn(count, generator=torch.Generator().manual_seed(0))
        fits = len(offset) == count and torch.equal(place.sort()[0], index)
        made = Tail(shape, kind, place, scale, offset)
        if not fits or not torch.allclose(made.to_vae(probe[None])[0], decoded(probe), atol=1e-3):
            raise Unsupported(
                f"{type(self.pipeline).__name__} lays out its latents for its VAE in a way that "
                "training does not know"
            )
        return made

    def velocity(self, latents: Tensor, time: float, condition: Condition) -> Tensor:
        """Noisy latents (B, …) at a time in the scheduler's unit -> noise minus picture (B, …), with a
        gradient where it is enabled."""
        import torch

        count = len(latents)

        def set_up(twin: Any) -> None:
            _give_latents(twin, latents)
            _give_condition(twin, condition, count)
            _give_times(twin, torch.tensor([time], device=latents.device))

            def step(model_output: Tensor, *_: Any, **__: Any) -> None:
                raise _Found(model_output)

            twin.scheduler.step = step

        return self._left(count, set_up)

    def _encoded(self, texts: Sequence[str]) -> Any:
        import torch

        def set_up(twin: Any) -> None:
            own = twin.encode_prompt

            @functools.wraps(own)
            def encode_prompt(*args: Any, **kwargs: Any) -> None:
                raise _Found(own(*args, **kwargs))

            twin.encode_prompt = encode_prompt

        with torch.no_grad():
            return self._left(len(texts), set_up, texts)

    def _latents_shape(self, condition: Condition) -> tuple[int, ...]:
        def set_up(twin: Any) -> None:
            own = twin.prepare_latents

            def prepare_latents(*args: Any, **kwargs: Any) -> None:
                made = own(*args, **kwargs)
                raise _Found((made[0] if isinstance(made, tuple) else made).shape[1:])

            twin.prepare_latents = prepare_latents
            _give_condition(twin, condition, 1)

        return tuple(self._left(1, set_up))

    def _decoded(self, latents: Tensor, condition: Condition) -> Tensor:
        """What the VAE is given to decode, in float32 on the CPU."""
        import torch

        vae = decoder(self.pipeline)

        def set_up(twin: Any) -> None:
            _give_latents(twin, latents.to(twin._execution_device))
            _give_condition(twin, condition, 1)
            _give_times(twin, torch.zeros(0, device=twin._execution_device))

        def decode(decoded: Tensor, *_: Any, **__: Any) -> None:
            raise _Found(decoded)

        vae.decode = decode
        try:
            with torch.no_grad():
                return self._left(1, set_up).float().cpu()
        finally:
            del vae.decode

    def _left(self, count: int, set_up: Callable[[Any], None], texts: Sequence[str] | None = None) -> Any:
        """The value with which a call is left that `set_up` has prepared."""
        import torch

        twin = quiet_copy(self.pipeline)
        set_scheduler(twin, copy.deepcopy(twin.scheduler))
        set_up(twin)
        call = CallArguments(twin)
        embeds = embeds_guidance(twin)
        default = call.known.get("guidance_scale")
        # A scale of 0 turns classifier-free guidance off, in all of them.
        scale = (self.guidance if self.guidance is not None else default) if embeds else default and 0.0
        arguments = call.of(
            texts or [""] * count,
            [torch.Generator().manual_seed(0) for _ in range(count)],
            steps=call.known["num_inference_steps"],
            size=self.size,
            guidance=scale,
            true_cfg=1.0 if call.true_cfg else None,
            negative="",
            length=self.length,
        )
        if "use_kv_cache" in call.known:
            arguments["use_kv_cache"] = False  # there is only one step
        try:
            # Without the decorator that turns gradients off.
            inspect.unwrap(type(twin).__call__)(twin, **arguments, return_dict=False)
        except _Found as found:
            return found.value
        raise Unsupported(f"{type(self.pipeline).__name__} draws in a way that training does not know")


def _give_latents(twin: Any, latents: Tensor) -> None:
    """Have the pipeline start from these latents."""
    own = twin.prepare_latents

    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        made = own(*args, **kwargs)
        return (latents, *made[1:]) if isinstance(made, tuple) else latents

    twin.prepare_latents = prepare_latents


def _give_condition(twin: Any, condition: Condition | None, count: int) -> None:
    """Have the pipeline's prompts be these embeddings; None: as it encodes them itself."""
    if condition is not None:
        rows = condition.rows(count, twin._execution_device, twin.transformer.dtype)
        twin.encode_prompt = functools.wraps(twin.encode_prompt)(lambda *_, **__: rows)


def _give_times(twin: Any, times: Tensor) -> None:
    """Have the scheduler take these timesteps, whatever it is asked for."""
    scheduler, own = twin.scheduler, twin.scheduler.set_timesteps

    @functools.wraps(own)  # pipelines inspect its signature
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        own(*args, **kwargs)
        scheduler.timesteps = times

    scheduler.set_timesteps = set_timesteps


class Waiting:
    """Stands in a pipeline for a module that waits in main memory: it has the module's attributes, and the
    pipeline does not take its device for its own."""

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)
