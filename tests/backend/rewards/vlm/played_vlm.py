"""What the tests of VLM judges share: a model that answers from tables, prompts and pictures of noise."""

import torch
from PIL import Image

from reprise.backend.rewards.vlm.local import VlmAnswer

PROMPTS = ["a red circle", "two blue cats and a dog, at night", "x", "a big red ball on the table"]
IMAGES = torch.rand(16, 24, 40, 3, generator=torch.Generator().manual_seed(1))


def noise(sizes):
    draw = torch.Generator().manual_seed(2)
    return [Image.fromarray((torch.rand(h, w, 3, generator=draw) * 255).byte().numpy()) for w, h in sizes]


class Played:
    """A VLM that answers from tables: part of a question -> P(yes), and a text to each in turn."""

    name, model = "played", None

    def __init__(self, likely=(), texts=(), cut=False):
        self.likely, self.texts, self.cut = dict(likely), list(texts), cut
        self.asked: list[str] = []

    def yes_probabilities(self, pictures, questions):
        assert len(pictures) == len(questions)
        self.asked += questions
        return [next((p for part, p in self.likely.items() if part in q), 0.9) for q in questions]

    def generate(self, questions, pictures, limit):
        self.asked += questions
        return [VlmAnswer(self.texts[i % len(self.texts)], self.cut) for i in range(len(questions))]
