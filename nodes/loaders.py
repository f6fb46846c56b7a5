"""Nodes that load rewriters, refiners, judges and the embedded renderer. Drop-downs list
`models/reprise/…`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..backend.core.errors import BadInput, CheckpointError, RepriseError, Unsupported
from ..backend.core.model_files import embedded_models
from ..backend.factory import RewardName, RewriterName, picture_rewards
from ..backend.factory.names import split_name
from . import sockets
from .sockets import CATEGORY, EMBEDDED

LOADERS = f"{CATEGORY}/loaders"
KINDS = ("rewriters", "refiners", "judges")
REFINERS = ("prip", "promptist")
LOOKS = {"plain": "renderer", "styled": "renderer-styled"}  # look of the embedded renderer -> its folder
VLM = "vlm: "  # start of the label of a vision-language model


def _folder_key(kind: str) -> str:
    """ComfyUI's key of a kind's folders: models/reprise/KIND, and those from extra_model_paths.yaml."""
    name = f"reprise_{kind}"
    folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / "reprise" / kind))
    return name


def installed_folders(kind: str) -> dict[str, Path]:
    """Name -> folder of each model of a kind: the embedded ones, then every folder with a config.json that is
    not inside another model's. Names are relative paths with "/"."""
    found = embedded_models(kind)
    for root in map(Path, folder_paths.get_folder_paths(_folder_key(kind))):
        folders = {config.parent for config in root.rglob("config.json")} - {root}
        for folder in sorted(folders):
            if folders.isdisjoint(folder.parents):
                found.setdefault(folder.relative_to(root).as_posix(), folder)
    return found


def _installed_folder(kind: str, name: str) -> Path:
    """The folder of an installed model. Raises CheckpointError.

    A workflow may come from a stranger, so it can name no other folder, and nothing that is downloaded.
    """
    known = installed_folders(kind)
    if name not in known:
        raise CheckpointError(
            f"there is no {kind[:-1]} {name!r} in models/reprise/{kind}; put its folder there, or choose "
            "another one in the drop-down"
        )
    return known[name]


def parse_rewriter_label(label: str) -> RewriterName:
    """The rewriter that a label of Load Rewriter names.

    A label is a line of the drop-down or, in a workflow written by hand, a name as on the command line.
    Raises BadInput, UnknownName and CheckpointError.
    """
    from ..backend.factory import REWRITERS, parse_rewriter

    kind, name, url = split_name(label)
    if label == EMBEDDED:
        return parse_rewriter("reprompt")
    known = installed_folders("rewriters")
    if url or (label in REWRITERS and label not in known):
        return parse_rewriter(label)
    if kind and label not in known:
        return parse_rewriter(f"{kind}:{_installed_folder('rewriters', name)}")
    return parse_rewriter(str(_installed_folder("rewriters", label)))


def parse_refiner_label(label: str) -> RewriterName:
    """The refiner that a label of Load Refiner names; see `parse_rewriter_label`.

    Raises also Unsupported, for a rewriter that is no refiner.
    """
    from ..backend.factory import parse_rewriter
    from ..backend.rewriters.prip.rewriter import is_refiner

    if label in (EMBEDDED, "prip"):
        return parse_rewriter("prip")
    kind, name, url = split_name(label)
    if url or (kind and kind not in REFINERS):
        raise Unsupported(f"{label!r} is no refiner; name it in Load Rewriter")
    folder = _installed_folder("refiners", name)
    return parse_rewriter(f"{kind or ('prip' if is_refiner(folder) else 'promptist')}:{folder}")


def parse_judge_label(label: str) -> RewardName:
    """The judge that a label of Load Judge names; see `parse_rewriter_label`.

    Raises also Unsupported, for a reward that does not score pictures.
    """
    from ..backend.factory import parse_reward
    from ..backend.rewards.vlm.judge import embedded_judges

    kind, name, url = split_name(label)
    if kind != "vlm" or url:
        return parse_reward(label)
    name, hashed, mode = name.rpartition("#") if "#" in name else (name, "", "")
    where = name if name in embedded_judges() else _installed_folder("judges", name)
    return parse_reward(f"vlm:{where}{hashed}{mode}")


def _validate(parse: Callable[[str], object], label: str | None) -> bool | str:
    """The answer of `validate_inputs`: True, or why `parse` refuses the label."""
    if label is None:  # linked from another node, not known yet
        return True
    try:
        parse(label)
    except RepriseError as error:
        return str(error)
    return True


def _dtype(name: str) -> str:
    """The dtype for a model: half precision on a GPU, but float32 for the small embedded models."""
    from .memory import language_model_dtype

    return "float32" if name == EMBEDDED or name.startswith("embedded-") else language_model_dtype()


class LoadRewriter(io.ComfyNode):
    """A causal language model that rewrites prompts."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseLoadRewriter",
            display_name="Load Rewriter",
            category=LOADERS,
            description="Loads a prompt rewriter: the embedded one, or a folder of models/reprise/rewriters.",
            search_aliases=["reprompt", "prompt model", "LLM loader"],
            inputs=[
                io.Combo.Input(
                    "rewriter",
                    options=[EMBEDDED, *installed_folders("rewriters")],
                    default=EMBEDDED,
                    tooltip="Folders in models/reprise/rewriters: any chat model in the Hugging Face layout, "
                    "or one trained by `reprise train`. The embedded one knows coloured shapes only.",
                ),
            ],
            outputs=[sockets.Rewriter.Output("rewriter", tooltip="For RePrompt Rewriter.")],
        )

    @classmethod
    def validate_inputs(cls, rewriter=None) -> bool | str:
        """Replaces ComfyUI's own check, which only accepts lines of the drop-down."""
        return _validate(parse_rewriter_label, rewriter)

    @classmethod
    def execute(cls, rewriter: str) -> io.NodeOutput:
        from ..backend.factory import open_rewriter
        from .memory import manage

        found = open_rewriter(parse_rewriter_label(rewriter), device="cpu", dtype=_dtype(rewriter))
        return io.NodeOutput(manage(found))


class LoadRefiner(io.ComfyNode):
    """A PRIP model, or a Promptist model, with which PRIP is compared."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseLoadRefiner",
            display_name="Load Refiner",
            category=LOADERS,
            description="Loads a prompt refiner (PRIP): the embedded one, or a folder of "
            "models/reprise/refiners.",
            search_aliases=["PRIP", "Promptist", "prompt model"],
            inputs=[
                io.Combo.Input(
                    "refiner",
                    options=[EMBEDDED, *installed_folders("refiners")],
                    default=EMBEDDED,
                    tooltip="Folders in models/reprise/refiners: PRIP models, or language models in "
                    "Promptist's format. The embedded one knows coloured shapes and their styles.",
                ),
            ],
            outputs=[sockets.Refiner.Output("refiner", tooltip="For PRIP Refiner and PRIP Describe.")],
        )

    @classmethod
    def validate_inputs(cls, refiner=None) -> bool | str:
        """As in Load Rewriter."""
        return _validate(parse_refiner_label, refiner)

    @classmethod
    def execute(cls, refiner: str) -> io.NodeOutput:
        from ..backend.factory import open_rewriter
        from .memory import manage

        found = open_rewriter(parse_refiner_label(refiner), device="cpu", dtype=_dtype(refiner))
        return io.NodeOutput(manage(found))


class LoadJudge(io.ComfyNode):
    """A reward that scores pictures."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseLoadJudge",
            display_name="Load Judge",
            category=LOADERS,
            description="Loads a judge, which scores pictures against a prompt.",
            search_aliases=["reward", "scorer", "ImageReward", "HPSv2", "PickScore", "aesthetic", "VLM"],
            inputs=[
                io.Combo.Input(
                    "judge",
                    options=[*picture_rewards(), *vlm_judges()],
                    default="shapeworld",
                    tooltip="shapeworld scores pictures of the embedded renderer: 0 to 1, above .5 is "
                    "right. vlm: is a vision-language model in models/reprise/judges and the "
                    "question it is asked. With #checklist it also says what is missing; with "
                    "#critique it says what is wrong, if `reprise train judge` has trained it.",
                ),
            ],
            outputs=[sockets.Judge.Output("judge", tooltip="For Reward Scorer, PARM and Reflection Loop.")],
        )

    @classmethod
    def validate_inputs(cls, judge=None) -> bool | str:
        """As in Load Rewriter."""
        return _validate(parse_judge_label, judge)

    @classmethod
    def execute(cls, judge: str) -> io.NodeOutput:
        from ..backend.factory import open_reward
        from ..backend.rewards.published.files import JUDGES
        from .memory import judge_dtype, manage

        folder = None
        if judge in JUDGES:
            own = JUDGES[judge].files[0].folder
            folders = (Path(root) / own for root in folder_paths.get_folder_paths(_folder_key("judges")))
            folder = next((f for f in folders if f.is_dir()), None)
        found = open_reward(parse_judge_label(judge), device="cpu", dtype=judge_dtype(), folder=folder)
        return io.NodeOutput(manage(found))


def vlm_judges() -> list[str]:
    """Labels of vision-language judges: the embedded ones and those in models/reprise/judges, each once for
    every question that it can be asked. Folders of published judges are left out."""
    from ..backend.rewards.published.files import JUDGES
    from ..backend.rewards.vlm.judge import MODES, embedded_judges

    published = {wanted.folder for needs in JUDGES.values() for wanted in needs.files}
    names = [name for name in installed_folders("judges") if name.split("/")[0] not in published]
    names = list(dict.fromkeys([*embedded_judges(), *names]))
    return [f"{VLM}{name}#{mode}" for name in names for mode in MODES]


class LoadShapeWorld(io.ComfyNode):
    """The embedded tiny FLUX: it needs no download and draws in seconds on a CPU."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseLoadShapeWorld",
            display_name="Load ShapeWorld",
            category=LOADERS,
            description="The embedded tiny FLUX that draws coloured shapes at 128 x 128: MODEL, CLIP and VAE "
            "for stock nodes. Use 16 steps, euler, simple, CFG 3.",
            search_aliases=["tiny flux", "demo model", "test model"],
            inputs=[
                io.Combo.Input(
                    "look",
                    options=list(LOOKS),
                    default="plain",
                    optional=True,
                    tooltip="styled also draws the palettes, outlines, backgrounds and textures that a "
                    "prompt names: glossy, framed, pastel…",
                ),
            ],
            outputs=[io.Model.Output("model"), io.Clip.Output("clip"), io.Vae.Output("vae")],
        )

    @classmethod
    def execute(cls, look: str = "plain") -> io.NodeOutput:
        from . import shapeworld

        return io.NodeOutput(*shapeworld.load(shapeworld.WEIGHTS.with_name(LOOKS[look])))


def check_prompt(prompt: str) -> str:
    """The prompt without white space around it. Raises BadInput if it is empty."""
    if not prompt.strip():
        raise BadInput("the prompt is empty; write a few words that say what the picture shows")
    return prompt.strip()
