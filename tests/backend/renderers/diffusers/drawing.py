"""Drawing with a plain pipeline of diffusers, as the tests of loading compare it."""

import torch

from reprise.backend.renderers.diffusers.pipelines import family_of_pipeline


def denoiser_of(pipe):
    return getattr(pipe, family_of_pipeline(pipe).denoiser)


def drawn(pipe):
    """A picture's latents, two steps, without guidance."""
    family = family_of_pipeline(pipe)
    rows = family.encode(pipe, "a red cat", 20 if family.has_text_length else None)
    guidance = {} if family.single_encode else {"guidance_scale": 1.0}
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        **rows,
        **({"use_resolution_binning": False} if family.name == "PixArt-Sigma" else {}),
        **guidance,
        width=16,
        height=16,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        return_dict=False,
    )[0]
