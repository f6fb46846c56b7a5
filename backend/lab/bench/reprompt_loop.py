"""A GRPO loop built the way RePrompt's training script is; `reprise lab bench grpo` measures ours against it.

Source: microsoft/DKI_LLM, RePrompt/train_reprompt.py (commit ba38e65). TRL's own trainer writes. Its reward
function calls the plain pipeline once for each answer, with new noise and the full text length; for an answer
that cannot be parsed it draws "a photo". Then it judges the pictures one by one. There is no cache.

Departs from it in models, prompts, rewards and optimiser settings, which are those of our run. TRL is the
installed one: it writes all answers of a step at once and so is faster than the script's TRL 0.16, which
wrote a micro-batch of 8 at a time.
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

UNREADABLE_PROMPT = "a photo"  # what the script draws if it cannot parse an answer


class PlainPipeline:
    """Draws one picture per call with a diffusers pipeline. `steps` may be changed between pictures.

    Raises BadInput for a renderer without a pipeline.
    """

    def __init__(self, renderer: Renderer):
        from ...renderers.diffusers.renderer import DiffusersRenderer

        if not isinstance(renderer, DiffusersRenderer):
            raise BadInput(
                f"the loop to compare with calls a diffusers pipeline, and {renderer.name} has none; give a "
                "config whose renderer is one"
            )
        self.pipeline, self.renderer, self.steps = renderer.pipeline, renderer, renderer.steps
        self.rows_each = 1 + renderer.guided  # denoiser rows of a picture at one step
        self.pipeline.set_progress_bar_config(disable=True)

    def draw(self, prompt: str) -> Any:
        """A PIL picture; its noise comes from torch's global generator."""
        arguments = self.renderer.call_arguments([prompt], [])
        arguments.pop("generator")
        return self.pipeline(**{**arguments, "num_inference_steps": self.steps}).images[0]


class RewardFunctions:
    """The script's reward functions, with our rewards: one that draws and judges, and one for each text
    reward.

    `rewards` and `weights` are by name. `timer` times "render" and "score". `scores` are those of the last
    call, by reward. `drawn` and `unreadable` count pictures and unparsable answers until the caller sets them
    to 0.
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
        """(the functions for TRL, their weights)."""
        names = list(self.text_rewards)
        return [self.score_pictures, *map(self._texts, names)], [1.0, *(self.weights[name] for name in names)]

    def score_pictures(
        self, completions: Sequence[Any], user_prompt: Sequence[str], judge_prompt: Sequence[str], **_: Any
    ) -> list[float]:
        """For each answer, the weighted sum of its picture's scores, unscaled."""
        from ...storage.images import from_pil

        pictures = []
        for rewrite in _rewrites(completions, user_prompt):
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
        def score(completions: Sequence[Any], user_prompt: Sequence[str], **_: Any) -> list[float]:
            with self.timer("score"):
                found = text_scores(
                    self.text_rewards[name], _rewrites(completions, user_prompt), list(user_prompt)
                )
            self.scores[name] = found
            return found

        score.__name__ = name  # the name in TRL's logs
        return score


def _rewrites(completions: Sequence[Any], user_prompt: Sequence[str]) -> list[Rewrite]:
    return [
        read_answer(turn[0]["content"], prompt, "reprompt") for turn, prompt in zip(completions, user_prompt)
    ]


def make_trainer(
    *,
    model: Any,
    tokenizer: Any,
    system: str,
    prompts: Sequence[tuple[str, str]],
    reward_functions: RewardFunctions,
    settings: Mapping[str, Any],
    adapter: Any = None,
) -> Any:
    """TRL's GRPOTrainer over `prompts`, (user's prompt, prompt for the judge), in the order of the steps.

    `settings` are arguments of GRPOConfig; all others keep TRL's defaults.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class TimedGrpoTrainer(GRPOTrainer):
        def _generate(self, *arguments, **options):
            with reward_functions.timer("write"):
                return super()._generate(*arguments, **options)

    rows = [
        {"prompt": build_messages(prompt, system=system), "user_prompt": prompt, "judge_prompt": judge_prompt}
        for prompt, judge_prompt in prompts
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
