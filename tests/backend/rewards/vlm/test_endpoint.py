"""A VLM judge behind a fake endpoint."""

import base64
import io
import json
import math

import pytest
from PIL import Image

from reprise.backend.core.errors import EndpointError
from reprise.backend.core.scoring import image_scores
from reprise.backend.rewards.vlm.judge import vlm_judge
from reprise.backend.rewards.vlm.questions import QUESTIONS

from ....fake_endpoint import Play, answer, closed_url, playing
from .played_vlm import IMAGES


def with_logprobs(text, top, *before):
    """An answer with alternatives for the token `text`; `before` it others."""
    play = answer("".join(before) + text)
    tokens = [{"token": t, "logprob": -0.1, "top_logprobs": []} for t in before]
    others = [{"token": t, "logprob": math.log(p)} for t, p in top.items()]
    tokens.append({"token": text, "logprob": -0.1, "top_logprobs": others})
    play.body["choices"][0]["logprobs"] = {"content": tokens}
    return play


def at(server, mode=""):
    return vlm_judge(f"tiny-chat@{server.url}{mode}")


def test_p_yes_from_a_servers_logprobs():
    top = {"Yes": 0.5, " yes": 0.1, "No": 0.2, "NO": 0.1, "Maybe": 0.1}
    thinking = ("<think>", " yes", "</think>", "\n", "**")
    for play in (with_logprobs("Yes", top), with_logprobs("Yes", top, *thinking)):
        with playing(play) as server:
            assert image_scores(at(server), IMAGES[:1], ["a cat"]) == [pytest.approx(6 / 9)]
            (request,) = server.requests
            assert request.body["logprobs"] is True and request.body["temperature"] == 0
            seen, words = request.body["messages"][0]["content"]
            assert words == {"type": "text", "text": QUESTIONS["match"].format("a cat")}
            head, _, data = seen["image_url"]["url"].partition(",")
            assert head == "data:image/png;base64"
            assert Image.open(io.BytesIO(base64.b64decode(data))).size == (40, 32)  # no side below 32


def test_the_word_counts_where_there_are_no_logprobs(caplog):
    with playing(
        answer("Yes."),
        answer("**No**, it is blue."),
        answer("<think>no</think> The answer is yes"),
        answer(" NO\n"),
    ) as server:
        judge = at(server)
        judge.vlm.endpoint.concurrency = 1
        assert judge.score(IMAGES[:4], ["a cat"] * 4) == [1.0, 0.0, 1.0, 0.0]
        assert caplog.text.count("sends no logprobs") == 1  # said once, not for each picture


def test_a_server_that_refuses_logprobs_by_name():
    def play(body):
        if "logprobs" in body or "top_logprobs" in body:
            name = "logprobs" if "logprobs" in body else "top_logprobs"
            return Play({"error": {"message": f"{name} is not supported", "param": name}}, 400)
        return answer("No")

    with playing(play) as server:
        assert at(server).score(IMAGES[:1], ["a cat"]) == [0.0] and len(server.requests) == 3


@pytest.mark.parametrize("text", ["I see a cat", "maybe", "yesterday", "noise"])
def test_an_invalid_answer_is_an_error(text):
    with playing(answer(text)) as server, pytest.raises(EndpointError, match="expected yes or no from 'tiny"):
        at(server).score(IMAGES[:1], ["a cat"])


def test_an_answer_that_is_only_thinking():
    with playing(answer("", finish="length")) as server, pytest.raises(EndpointError, match="off after 512"):
        at(server).score(IMAGES[:1], ["a cat"])


@pytest.mark.parametrize(
    "logprobs",
    [
        {"content": [{"token": "Yes", "top_logprobs": [{"token": "Yes", "logprob": "high"}]}]},
        {"content": [{"token": "Yes", "top_logprobs": [{"token": "Yes", "logprob": 3.0}]}]},
        {"content": [{"token": "Yes", "top_logprobs": [{"token": "Yes", "logprob": math.nan}]}]},
        {"content": [{"token": "Yes", "top_logprobs": [{"token": "Ja", "logprob": -1.0}]}]},
        {"content": [{"word": "Yes"}]},
        {"content": ["Yes"]},
        {"content": {"Yes": 1}},
        ["Yes"],
    ],
)
def test_broken_logprobs_are_an_error(logprobs):
    play = answer("Yes")
    play.body["choices"][0]["logprobs"] = logprobs
    with playing(Play(json.dumps(play.body).encode())) as server:
        with pytest.raises(EndpointError, match="logprobs that cannot be read") as caught:
            at(server).score(IMAGES[:1], ["a cat"])
        assert "\n" not in str(caught.value)


def test_grades_and_checklists_of_a_server():
    with playing(answer("9/10")) as server:
        assert at(server, "#score").score(IMAGES[:1], ["a cat"]) == [0.9]
    with playing(answer("1. a cat\n2. a hat"), answer("Yes"), answer("No")) as server:
        judge = at(server, "#checklist")
        judge.vlm.endpoint.concurrency = 1
        assert judge.criticize(IMAGES[:1], ["a cat, a hat"])[0].faults == ("it does not show a hat",)
        assert len(server.requests[0].body["messages"][0]["content"]) == 1  # no picture for the list


def test_no_server_at_the_address():
    with pytest.raises(EndpointError, match="cannot reach"):
        vlm_judge(f"m@{closed_url()}").score(IMAGES[:1], ["a cat"])
