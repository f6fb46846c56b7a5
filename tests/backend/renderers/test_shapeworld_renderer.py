"""The embedded renderers' settings, on tiny pipelines of their classes; weights are tested elsewhere."""

from __future__ import annotations

from reprise.backend.core.registry import RENDERERS, resolve
from reprise.backend.core.types import Job


def test_it_is_a_flux_with_true_cfg(folders):
    renderer = resolve("renderer", RENDERERS, "shapeworld")(folders("flux_true_cfg"), steps=1)
    assert (renderer.width, renderer.true_cfg, renderer.max_sequence_length) == (128, 3.0, 48)
    assert renderer.STEPS == 16 and renderer.guided
    drawn = renderer.render([Job("a red circle", 0)])
    assert drawn.images[0].shape == (128, 128, 3) and drawn.denoiser_rows == 2


def test_the_second_is_a_stable_diffusion_with_guidance(folders):
    renderer = resolve("renderer", RENDERERS, "shapeworld-sd")(folders("sd1"), steps=1)
    assert (renderer.width, renderer.guidance, renderer.family.name) == (128, 3.0, "SD1.x")
    assert renderer.STEPS == 16 and renderer.guided
    drawn = renderer.render([Job("a red circle", 0)])
    assert drawn.images[0].shape == (128, 128, 3) and drawn.denoiser_rows == 2


def test_the_masked_one_is_an_amused_with_guidance(folders):
    renderer = resolve("renderer", RENDERERS, "shapeworld-masked")(folders("amused"), steps=1)
    assert (renderer.width, renderer.guidance) == (128, 1.25)
    assert renderer.STEPS == 16 and renderer.guided
    drawn = renderer.render([Job("a red circle", 0)])
    assert drawn.images[0].shape == (128, 128, 3) and drawn.denoiser_rows == 2
