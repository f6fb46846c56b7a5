"""The predicted clean latent (x0) at a step of diffusers' schedulers.

With x = a x0 + s e: from noise e, x0 = (x - s e) / a; from velocity v = a e - s x0,
x0 = a x - s v (Salimans & Ho 2022, arXiv 2202.00512); from a flow's v = e - x0 at sigma,
x0 = x - sigma v (Liu et al. 2022, arXiv 2209.03003). Schedulers differ in where they keep a and s,
and whether their sample is scaled (x, variance preserving) or not (x / a, variance exploding).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.errors import Unsupported
from .tokens import uses_masked_tokens

if TYPE_CHECKING:
    from torch import Tensor

# Variance exploding: the sample is x0 + sigma e; the model gets it divided by sqrt(sigma^2 + 1).
_EXPLODING = frozenset(
    {
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
    }
)
# They draw one noise tensor for the whole batch, so a candidate would depend on its neighbours.
_BATCH_NOISE = frozenset({"DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"})


def reports_x0(scheduler: Any) -> bool:
    """Whether a scheduler's step returns x0 beside the next sample, and no formula is known here
    (SANA-Sprint)."""
    return type(scheduler).__name__ == "SCMScheduler"


def check_scheduler(scheduler: Any, watched: bool) -> None:
    """Raises Unsupported for a scheduler that breaks seeds per candidate or, if watched, whose x0 is
    unknown."""
    name = type(scheduler).__name__
    if name in _BATCH_NOISE:
        raise Unsupported(
            f"{name} draws one noise for the whole batch, so candidates would depend on each other; "
            "use DPMSolverMultistepScheduler with algorithm_type='sde-dpmsolver++'"
        )
    if watched and not knows_x0(scheduler):
        raise Unsupported(f"previews, and so pruning, are not known for {name}; render without a watcher")


def knows_x0(scheduler: Any) -> bool:
    """Whether previews are known for this scheduler."""
    name = type(scheduler).__name__
    known = (
        "FlowMatch" in name
        or name in _EXPLODING
        or hasattr(scheduler, "_sigma_to_alpha_sigma_t")
        or hasattr(scheduler, "alphas_cumprod")
        or uses_masked_tokens(scheduler)
        or reports_x0(scheduler)
    )
    return known and "EDM" not in name


def predict_x0(scheduler: Any, output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """x0 (B, …) in float32, just before the scheduler takes this step. `output` includes CFG."""
    name = type(scheduler).__name__
    output, sample = output.float(), sample.float()
    if output.shape[1] == 2 * sample.shape[1] and "learned" in str(scheduler.config.get("variance_type")):
        output = output.chunk(2, dim=1)[0]  # the other half predicts the variance (DeepFloyd IF)
    kind = scheduler.config.get("prediction_type", "epsilon")
    if "FlowMatch" in name or kind == "flow_prediction":
        return sample - float(_sigma(scheduler, timestep)) * output
    if kind == "sample":
        return output
    if name in _EXPLODING:
        sigma = float(_sigma(scheduler, timestep))
        a = (sigma**2 + 1) ** -0.5
        s, sample = sigma * a, sample * a
    elif hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        a, s = map(float, scheduler._sigma_to_alpha_sigma_t(_sigma(scheduler, timestep)))
    else:
        square = float(scheduler.alphas_cumprod[int(timestep)])
        a, s = square**0.5, (1 - square) ** 0.5
    if kind == "v_prediction":
        return a * sample - s * output
    return (sample - s * output) / a


def _sigma(scheduler: Any, timestep: Any) -> Tensor:
    """The noise level of the sample before the scheduler's step."""
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)  # what `step` would do first
    index = scheduler.step_index
    assert index is not None
    # KDPM2's second evaluation of a step lies between two of its sigmas.
    if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
        behind = 1 if "Ancestral" in type(scheduler).__name__ else 0
        return scheduler.sigmas_interpol[index - behind]
    return scheduler.sigmas[index]
