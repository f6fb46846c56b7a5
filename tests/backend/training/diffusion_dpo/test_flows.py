"""Diffusion-DPO on flows that are evaluated by their pipelines' own calls."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.core.config import save_config
from reprise.backend.core.errors import Unsupported
from reprise.backend.core.registry import REWARDS
from reprise.backend.lab.pipelines.every import EVERY
from reprise.backend.lab.pipelines.recent import flux2_klein
from reprise.backend.renderers.diffusers import loading
from reprise.backend.renderers.diffusers.call import CallArguments
from reprise.backend.renderers.diffusers.lora import apply_lora
from reprise.backend.renderers.diffusers.pipelines import family_of_pipeline
from reprise.backend.training.common.losses import denoising_target, noised
from reprise.backend.training.common.run_folder import claim_run_folder
from reprise.backend.training.diffusion_dpo.config import DiffusionDpoConfig
from reprise.backend.training.diffusion_dpo.denoisers import FlowDenoiser, noising_of, to_latents
from reprise.backend.training.diffusion_dpo.loop import DiffusionDpoLoop
from reprise.backend.training.diffusion_dpo.own_call import Condition, OwnCall
from reprise.backend.training.diffusion_dpo.train import train

from ..conftest import half_write
from .conftest import answer, lora_of, quiet, rows, same, settings
from .test_guidance import Colour

# What a model's output is multiplied by to be the velocity, and sigma by its time.
NEGATED = {"z-image", "lumina2"}
SIGMAS = {
    "z-image": lambda time: 1 - time,
    "lumina2": lambda time: 1 - time,
    "sana": lambda time: time / 1000,
}
SIZES = {"qwen-image-2.1": (96, 64), "sana": (96, 64), "lumina2": (96, 64)}
LENGTH = {"flux2": 150, "krea2": 40, "qwen-image": 60, "flux2-klein": 100, "chroma": 20}
QUICK = ["z-image", "krea2", "qwen-image", "flux2-klein"]
SLOW = ["qwen-image-2.1", "flux2", "chroma", "sana", "lumina2"]
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in SLOW)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipes():
    """family -> its tiny pipeline, shared: do not change it."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = EVERY[name]()
            made[name].set_progress_bar_config(disable=True)
        return made[name]

    return get


def own_call(name, pipe, guidance=None):
    return OwnCall(pipe, SIZES.get(name, (24, 16)), guidance, LENGTH.get(name))


def draw(name, pipe, steps=3, **more):
    """The call of a user, without guidance; (what its VAE decodes, what its scheduler was given)."""
    call, seen, decoded = CallArguments(pipe), [], []
    width, height = SIZES.get(name, (24, 16))
    arguments = call.of(
        ["a red cat"],
        [torch.Generator().manual_seed(3)],
        steps=steps,
        size=(width, height),
        guidance=more.pop("guidance", None if name.startswith("qwen") else 0.0),
        true_cfg=1.0 if call.true_cfg else None,
        negative="",
        length=LENGTH.get(name),
    )
    pipe = copy.copy(pipe)
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    step, decode = pipe.scheduler.step, pipe.vae.decode

    def spy(model_output, timestep, sample, *args, **kwargs):
        seen.append((model_output.clone(), float(timestep), sample.clone()))
        return step(model_output, timestep, sample, *args, **kwargs)

    def spy_decode(latents, *args, **kwargs):
        decoded.append(latents.clone())
        return decode(latents, *args, **kwargs)

    pipe.scheduler.step = spy
    pipe.vae.decode = spy_decode
    try:
        pipe(**arguments, **more, output_type="pt")
    finally:
        del pipe.vae.decode
    return decoded[0], seen


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_called_as_when_it_draws(name, pipes):
    """What a scheduler gets at the second step of a drawing, asked through ours; alone and in a batch."""
    pipe = pipes(name)
    guidance = 2.5 if name == "flux2" else None
    _, seen = draw(name, pipe, **({"guidance": guidance} if guidance else {}))
    said, time, sample = seen[1]
    call = own_call(name, pipe, guidance)
    condition = Condition.of_tensors(call.encode("a red cat").tensors())
    other = call.encode("two dogs on a hill")
    with torch.no_grad():
        found = call.velocity(sample, time, condition)
        noisy = torch.cat([sample, torch.randn_like(sample), sample])
        times = torch.tensor([time, 30.0, time])
        batch = FlowDenoiser(call)(noisy, times, [condition, other, condition])
    torch.testing.assert_close(found, said, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(batch[[0, 2]], said.expand_as(batch[:2]), rtol=1e-4, atol=1e-4)
    assert (batch[1] - batch[0]).abs().max() > 0.01
    if guidance:
        call.guidance = 4.0
        assert (call.velocity(sample, time, condition) - said).abs().max() > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_a_perfect_denoiser_has_no_error_and_draws_the_picture(name, pipes, monkeypatch):
    """An oracle in the model's own convention, which knows the clean latents: the velocity that it means
    is our target, and the sampler follows it to the picture's latents."""
    pipe = pipes(name)
    call = own_call(name, pipe)
    width, height = call.size
    condition = call.encode("a red cat")
    tail = call.tail(condition)
    picture = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(1))
    clean = to_latents(pipe, picture, tail)
    pixels = picture.permute(2, 0, 1)[None] * 2 - 1
    if name == "qwen-image-2.1":
        pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
    with torch.no_grad():
        encoded = pipe.vae.encode(pixels if len(tail.decoded) == 3 else pixels[:, :, None])
    raw = encoded.latent if name == "sana" else encoded.latent_dist.mode()

    def oracle(hidden_states, timestep, *args, **kwargs):
        """(x - x0) / sigma, as the model would say it."""
        listed = isinstance(hidden_states, list)
        noisy = torch.stack([one[:, 0] for one in hidden_states]) if listed else hidden_states
        time = torch.as_tensor(timestep).float()
        sigma = SIGMAS[name](time) if name in SIGMAS else time
        said = (noisy - clean) / sigma.reshape(-1, *[1] * clean.ndim)
        said = -said if name in NEGATED else said
        return ([one[:, None] for one in said],) if listed else (said,)

    def forward(*args, **kwargs):
        names = ("hidden_states", "timestep") if name != "sana" else ("hidden_states",)
        return oracle(**{**dict(zip(names, args)), **kwargs})

    monkeypatch.setattr(pipe.transformer, "forward", forward)
    decoded, _ = draw(name, pipe, steps=4)
    # SANA's scheduler tells times in whole numbers.
    torch.testing.assert_close(decoded, raw, rtol=1e-3, atol=0.02 if name == "sana" else 1e-3)

    noising = noising_of(pipe, (0, 0), None, call.mu(condition))
    noise = torch.randn(3, *clean.shape, generator=torch.Generator().manual_seed(2))
    signal, sigma, times = noising.at(torch.tensor([0.05, 0.5, 0.9]))
    clean_rows = clean.expand_as(noise)
    target = denoising_target("flow", clean_rows, noise, signal, sigma)
    found = FlowDenoiser(call)(noised(clean_rows, noise, signal, sigma), times, [condition] * 3)
    torch.testing.assert_close(found, target, rtol=1e-3, atol=1e-3)


def test_the_shift_is_the_one_of_the_pipeline(pipes):
    """The sigmas of the training at even steps are those that the pipeline draws with."""
    for name in ("z-image", "krea2", "qwen-image", "flux2-klein"):
        pipe = pipes(name)
        call = own_call(name, pipe)
        steps = call_steps = CallArguments(pipe).known["num_inference_steps"]
        _, seen = draw(name, pipe, steps=call_steps)
        times = torch.tensor([time for _, time, _ in seen])
        noising = noising_of(pipe, (0, 0), None, call.mu())
        even = torch.linspace(1, 1 / steps, steps) if name != "z-image" else None
        if even is None:  # its own sigmas are even, too, from 1 to its last
            even = times / 1000 / (3 - 2 * times / 1000)
        torch.testing.assert_close(noising.at(even)[2], times, rtol=1e-4, atol=1e-2)


def test_a_guidance_without_its_embedding_is_refused(pipes):
    from reprise.backend.training.diffusion_dpo.denoisers import guidance_of

    pipe = pipes("flux2-klein")
    with pytest.raises(Unsupported, match="no guidance embedding"):
        guidance_of(pipe, family_of_pipeline(pipe), 3.5)


@pytest.fixture(scope="module")
def folders(pipes, tmp_path_factory):
    saved = {}

    def get(name):
        if name not in saved:
            saved[name] = tmp_path_factory.mktemp(name) / "model"
            pipes(name).save_pretrained(saved[name])
        return saved[name]

    return get


def flow_settings(name, folder, store, **changes):
    length = {} if name in ("qwen-image-2.1", "z-image") else {"max_sequence_length": LENGTH.get(name, 40)}
    side = {"size": 64} if name in SIZES else {}
    return settings(folder, store, **{**length, **side, **changes})


@pytest.fixture
def loaded(monkeypatch, pipes):
    """Pipelines whose processors cannot be saved are given as they are."""

    def load(name):
        if name in ("qwen-image-2.1", "flux2"):
            monkeypatch.setattr(loading, "load_pipeline", lambda *_: copy.deepcopy(pipes(name)))

    return load


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name, pipes, folders, loaded, store, tmp_path):
    """It starts at log 2, only the adapter learns, and the file makes of the renderer what was trained, in
    our reader and in diffusers' own."""
    loaded(name)
    config = flow_settings(
        name,
        folders(name),
        store,
        max_steps=3,
        learning_rate=2e-3,
        lora={"r": 2, "alpha": 4, "targets": "blocks"},
    )
    claim_run_folder(tmp_path, save_config(config), False)
    loop = DiffusionDpoLoop(config, tmp_path, False, quiet)
    assert loop.weights and all("lora_" in weight for weight in loop.weights) and loop.beta == 100
    frozen = {key: weight.clone() for key, weight in loop.model.state_dict().items() if "lora_" not in key}
    reference = answer(loop)
    torch.testing.assert_close(answer(loop, adapter=False), reference, rtol=0, atol=0)
    loop.run()
    found = rows(tmp_path)
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-7) and found[0]["margin"] == 0.0
    assert found[-1]["loss"] != found[0]["loss"] and all(row["grad_norm"] > 0 for row in found)
    for key, weight in loop.model.state_dict().items():
        assert "lora_" in key or torch.equal(weight, frozen[key]), key
    torch.testing.assert_close(answer(loop, adapter=False), reference, rtol=0, atol=0)
    trained = answer(loop)
    assert (trained - reference).abs().max() > 1e-4

    plain = copy.deepcopy(pipes(name))
    apply_lora(lora_of(tmp_path), plain.transformer)
    loop.pipeline.transformer = plain.transformer
    torch.testing.assert_close(answer(loop), trained, rtol=1e-3, atol=1e-4)
    theirs = copy.deepcopy(pipes(name))
    theirs.load_lora_weights(lora_of(tmp_path).parent, weight_name="lora.safetensors")
    loop.pipeline.transformer = theirs.transformer
    torch.testing.assert_close(answer(loop), trained, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["krea2", pytest.param("z-image", marks=pytest.mark.long)])
def test_it_learns_to_prefer_the_better_pictures(name, folders, store, tmp_path):
    config = flow_settings(
        name,
        folders(name),
        store,
        max_steps=12,
        batch_size=2,
        beta=200,
        learning_rate=1e-2,
        eval_share=0.3,
        eval_every=12,
        lora={"r": 4, "targets": "blocks"},
    )
    train(config, tmp_path / "run", log=quiet)
    looks = rows(tmp_path / "run", "evaluations.jsonl")
    assert looks[0]["held-out/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert looks[-1]["held-out/loss"] < 0.9 * math.log(2) and looks[-1]["held-out/accuracy"] > 0.7


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["z-image", pytest.param("flux2-klein", marks=pytest.mark.long)])
def test_killed_and_resumed_equals_never_killed(name, folders, store, tmp_path):
    config = flow_settings(name, folders(name), store, max_steps=4)
    train(config, tmp_path / "whole", log=quiet)

    def log(line):
        if line.startswith("step 3/"):
            raise Killed

    with pytest.raises(Killed):
        train(config, tmp_path / "run", log=log)
    half_write(tmp_path / "run", "adapter.safetensors")
    said = []
    train(config, tmp_path / "run", resume=True, log=said.append)
    assert "going on from checkpoint-2" in " ".join(said)
    assert same(tmp_path / "run", tmp_path / "whole")


def test_bfloat16_and_checkpointing(folders, store, tmp_path):
    """As on a GPU: frozen weights in bfloat16, the adapter in float32."""
    config = flow_settings(
        "z-image", folders("z-image"), store, dtype="bfloat16", gradient_checkpointing=True, max_steps=2
    )
    train(config, tmp_path / "run", log=quiet)
    found = rows(tmp_path / "run")
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and found[1]["loss"] != found[0]["loss"]
    assert {one.dtype for one in load_file(lora_of(tmp_path / "run")).values()} == {torch.float32}


@pytest.mark.parametrize("name", ["z-image", pytest.param("krea2", marks=pytest.mark.long)])
def test_a_judges_gradient_reaches_the_adapter(name, folders, store, tmp_path, monkeypatch):
    monkeypatch.setitem(REWARDS, "colour", f"{Colour.__module__}:Colour")
    config = flow_settings(
        name, folders(name), store, times="logit_normal", judge={"reward": "colour", "until": 1}
    )
    loop = DiffusionDpoLoop(config, tmp_path, False, quiet)
    clean = loop.encoded.latent(loop.pairs[0].chosen.image)[None]
    picture = loop.encoded.picture(loop.pairs[0].chosen.image)
    decoded = loop.guide.vae.decode(loop.guide.to_vae(clean))[0]
    vae = loop.guide.vae
    pixels = picture.permute(2, 0, 1)[None] * 2 - 1
    latents = vae.encode(pixels if decoded.ndim == 4 else pixels[:, :, None]).latent_dist.mode()
    torch.testing.assert_close(decoded, vae.decode(latents)[0], rtol=1e-3, atol=1e-3)
    noise, u = loop._noise([0, 1])
    losses, figures = loop._losses(loop.pairs[:2], noise, u)
    assert 0 < figures["judge"] < 1 and figures["loss"] == pytest.approx(math.log(2), abs=1e-6)
    losses.sum().backward()
    assert any(one.grad is not None and one.grad.abs().max() > 0 for one in loop.weights.values())


@pytest.mark.long
def test_rounds(values, folders, tmp_path):
    """It draws, judges, pairs and learns, twice over, with the LoRA of the round before."""
    given = {key: value for key, value in values.items() if key != "max_sequence_length"}
    given["rounds"] = {**values["rounds"], "renderer": {"steps": 2, "size": 64, "guidance": 1.0, "batch": 8}}
    config = DiffusionDpoConfig(**{**given, "model": str(folders("z-image"))})
    final = train(config, tmp_path / "run", log=quiet)
    looks = rows(tmp_path / "run", "evaluations.jsonl")
    assert [row["round"] for row in looks] == [0, 1, 2]
    assert len({row["held-out/redness"] for row in looks}) == 3, "every round drew with another LoRA"
    assert (final / "lora.safetensors").is_file()


@pytest.mark.long
def test_the_distilled_twin_draws_with_it(pipes, folders, store, tmp_path):
    """Trained on klein base, loaded by the renderer on klein, which is the same class with other settings."""
    from reprise.backend.core.types import Job
    from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer

    final = train(flow_settings("flux2-klein", folders("flux2-klein"), store), tmp_path / "run", log=quiet)
    torch.manual_seed(7)
    flux2_klein(distilled=True).save_pretrained(tmp_path / "twin")
    options = {"steps": 2, "size": 16, "device": "cpu", "max_sequence_length": 100}
    plain, with_lora = (
        DiffusersRenderer(tmp_path / "twin", lora=lora, **options)
        for lora in (None, final / "lora.safetensors")
    )
    one, other = (renderer.render([Job("a red cat", 3)]).images[0] for renderer in (plain, with_lora))
    assert (one - other).abs().max() > 0.003
