"""A GRPO loop built the way RePrompt's training script is; `reprise lab bench grpo` measures ours against it.

Source: microsoft/DKI_LLM, RePrompt/train_reprompt.py (commit ba38e65): TRL's own trainer writes, and its
reward function calls the plain pipeline once for every answer, an unreadable one as "a photo", with new
noise each time and the text at its full length; then it judges the pictures one by one. Nothing is kept.
Departs from it in what is not the loop's: models, prompts, rewards and the optimiser's settings are those
of our run; TRL is the installed one, which writes all answers of a step at once, where the script's TRL
0.16 wrote a micro-batch of 8 at a time, and is faster for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput
from ...core.scoring import image_scores, text_scores
from ...core.types import Rewrite
from ...rewriters.prompting import build_messages
from ...rewriters.rows import read_answer

if TYPE_CHECKING:
    from ...core.interfaces import Renderer

UNREADABLE_PROMPT = "a photo"  # what the script draws where it finds no answer


class PlainPipeline:
    """Draws one picture a call with a pipeline as its users call it. `steps` may be set between pictures."""

    def __init__(self, renderer: Renderer):
        from ...renderers.diffusers.renderer import DiffusersRenderer

        if not isinstance(renderer, DiffusersRenderer):
            raise BadInput(
                f"the loop to compare with calls a diffusers pipeline, and {renderer.name} has none; give a "
                "config whose renderer is one"
            )
        self.pipeline, self.steps = renderer.pipeline, renderer.steps
        self.rows_each = 1 + renderer.guided  # of the denoiser, for a picture and a step
        self.pipeline.set_progress_bar_config(disable=True)
        asked: dict[str, Any] = {"width": renderer.width, "height": renderer.height}
        if renderer.guidance is not None:
            asked["guidance_scale"] = renderer.guidance
        if renderer.guided:
            asked["negative_prompt"] = ""
            if renderer.family.single_encode:
                asked["true_cfg_scale"] = renderer.true_cfg
        if renderer.max_sequence_length is not None:
            asked["max_sequence_length"] = renderer.max_sequence_length
        further = {name: value for name, value in renderer.family.call if value is not None}
        self.asked = {**asked, **further}

    def draw(self, prompt: str) -> Any:
        """A PIL picture; its noise comes from torch's global generator."""
        return self.pipeline(prompt, num_inference_steps=self.steps, **self.asked).images[0]


class RewardFunctions:
    """The script's reward functions, with our rewards: one that draws and judges, one for each other reward.

    `rewards` are by name, pictures' and texts', `weights` as well; `timer` times "render" and "score".
    `scores` are those of the answers that were judged last, by reward; `drawn` and `unreadable` count, the
    caller's to reset.
    """

    def __init__(
        self,
        pipeline: PlainPipeline,
        rewards: Mapping[str, Any],
        weights: Mapping[str, float],
        timer: Callable[[str], AbstractContextManager[Any]],
    ):
        self.pipeline, self.timer = pipeline, timer
        self.picture_rewards = {n: reward for n, reward in rewards.items() if reward.spec.reads == "images"}
        self.text_rewards = {n: reward for n, reward in rewards.items() if n not in self.picture_rewards}
        self.weights = dict(weights)
        self.scores: dict[str, list[float]] = {}
        self.drawn = self.unreadable = 0

    def functions(self) -> tuple[list[Any], list[float]]:
        """For TRL, and their weights."""
        names = list(self.text_rewards)
        return [self.score_pictures, *map(self._texts, names)], [1.0, *(self.weights[name] for name in names)]

    def score_pictures(
        self, completions: Sequence[Any], asked: Sequence[str], judge_prompt: Sequence[str], **_: Any
    ) -> list[float]:
        """The weighted sum of each answer's picture's scores, as the rewards give them."""
        from ...storage.images import from_pil

        pictures = []
        for rewrite in _rewrites(completions, asked):
            self.unreadable += rewrite.fallback is not None
            with self.timer("render"):
                prompt = rewrite.prompt if rewrite.fallback is None else UNREADABLE_PROMPT
                pictures.append(self.pipeline.draw(prompt))
            self.drawn += 1
        self.scores = {name: [] for name in self.picture_rewards}
        for picture, words in zip(pictures, judge_prompt, strict=True):
            with self.timer("score"):
                image = from_pil(picture)[None]
                for name, reward in self.picture_rewards.items():
                    self.scores[name] += image_scores(reward, image, [words])
        return [
            sum(self.weights[name] * self.scores[name][i] for name in self.picture_rewards)
            for i in range(len(pictures))
        ]

    def _texts(self, name: str) -> Callable[..., list[float]]:
        def score(completions: Sequence[Any], asked: Sequence[str], **_: Any) -> list[float]:
            with self.timer("score"):
                found = text_scores(self.text_rewards[name], _rewrites(completions, asked), list(asked))
            self.scores[name] = found
            return found

        score.__name__ = name  # TRL logs it
        return score


def _rewrites(completions: Sequence[Any], asked: Sequence[str]) -> list[Rewrite]:
    return [read_answer(turn[0]["content"], prompt, "reprompt") for turn, prompt in zip(completions, asked)]


def make_trainer(
    *,
    model: Any,
    tokenizer: Any,
    system: str,
    asked: Sequence[tuple[str, str]],
    reward_functions: RewardFunctions,
    settings: Mapping[str, Any],
    adapter: Any = None,
) -> Any:
    """TRL's GRPOTrainer over `asked`, (prompt, words that the judge reads) in the order of the steps.

    `settings` are GRPOConfig's; everything else stays as TRL has it.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class TimedGrpoTrainer(GRPOTrainer):
        def _generate(self, *arguments, **options):
            with reward_functions.timer("write"):
                return super()._generate(*arguments, **options)

    rows = [
        {"prompt": build_messages(prompt, system=system), "asked": prompt, "judge_prompt": judge_prompt}
        for prompt, judge_prompt in asked
    ]
    functions, weights = reward_functions.functions()
    return TimedGrpoTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        peft_config=adapter,
        reward_funcs=functions,
        args=GRPOConfig(
            **settings,
            reward_weights=weights,
            shuffle_dataset=False,
            logging_steps=1,
            save_steps=100,
            report_to="none",
            disable_tqdm=True,
            chat_template_kwargs={"enable_thinking": False},
        ),
    )
