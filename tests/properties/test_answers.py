"""What models and servers answer: rewrites, verdicts, grades, lists, log-probabilities, scores."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprise.backend.core.errors import EndpointError
from reprise.backend.net.chat_client import ChatReply, ChatRequest, Endpoint, _Call
from reprise.backend.net.http import HttpAnswer, HttpClient, quote
from reprise.backend.net.reward_protocol import Catalogue, CritiqueResponse, ScoreResponse
from reprise.backend.rewards.remote import RewardClient
from reprise.backend.rewards.vlm.endpoint import EndpointVLM
from reprise.backend.rewards.vlm.judge import split_faults
from reprise.backend.rewards.vlm.questions import read_grade, read_parts, read_yes_no, split_prompt
from reprise.backend.rewriters.prompting import FORM, Answer, Unparsable, parse
from reprise.backend.rewriters.rows import read_answer

from .inputs import changed, documents, json_values, refuses_clearly, texts

MARKS = st.sampled_from(
    "<reason> </reason> <prompt> </prompt> <think> </think> <answer> </answer> </PROMPT> < > </ "
    "cube … yes No **Yes** 7/10 score:7,5 -3 ٣ 1e9 a the and , ; ;;".split()
    + ["< / prompt >", "\n", "  ", "10 out of 10", "- one\n- two\n", "1. a red cube", " left of "]
)
answers = st.lists(MARKS | texts, max_size=12).map("".join)
words = st.lists(st.sampled_from(["a", "red", "Würfel", "立方体", "cube,", "3"]), min_size=1).map(" ".join)


@given(answers)
def test_rewrites(text):
    found = parse(text)
    if isinstance(found, Answer):
        assert any(letter.isalnum() for letter in found.prompt) and "\n" not in found.prompt + found.reason
    else:
        assert isinstance(found, Unparsable) and found.why
    made = read_answer(text, "a cube", "chat", "512 tokens")
    assert made.prompt and (made.fallback is None) == isinstance(found, Answer)


@given(words, words)
def test_a_rewrite_in_our_form_comes_back(reason, prompt):
    assert parse(FORM.format(reason=reason, prompt=prompt)) == Answer(reason, prompt)


@given(answers, words)
def test_verdicts_grades_and_lists(text, prompt):
    assert read_yes_no(text) in (True, False, None)
    grade = read_grade(text)
    assert grade is None or 0 <= grade <= 10
    assert all(part.strip() for part in read_parts(text, prompt))
    assert split_prompt(prompt)
    assert all(fault.strip() for fault in split_faults(text))


@pytest.mark.parametrize(
    "unit", ["<", "< ", "<reason>", "a on a ", "and a ", "1. ", "</think>", "7 ", "; ", "<prompt>a"]
)
def test_long_answers_take_no_time(unit):
    text = (unit * 50_000)[:50_000]
    parse(text), read_yes_no(text), read_grade(text), read_parts(text, "a cube"), split_faults(text)
    split_prompt(text[:8_000])


TOKEN = {
    "token": "Yes",
    "logprob": -0.1,
    "top_logprobs": [{"token": "Yes", "logprob": -0.1}, {"token": "no", "logprob": -2.5}],
}
CHOICE = {"message": {"content": "Yes."}, "finish_reason": "stop", "logprobs": {"content": [TOKEN]}}
REPLY = {"choices": [CHOICE]}
JUDGE = EndpointVLM("http://127.0.0.1:1/v1", "m")


@given(changed(CHOICE), st.sampled_from(["Yes.", "no", "</think>no", "maybe"]))
def test_log_probabilities(choice, text):
    if isinstance(choice, dict):
        found = refuses_clearly(JUDGE._probability, ChatReply(text, False, choice))
        assert found is None or 0 <= found <= 1


STATUSES = st.sampled_from([200, 200, 200, 301, 400, 401, 404, 422, 429, 500, 503])
HEADERS = st.fixed_dictionaries({}, optional={"retry-after": texts, "location": texts})
REFUSAL = {"error": {"message": "Unsupported parameter: 'temperature'", "param": "temperature", "code": 400}}


@given(documents(REPLY, REFUSAL, [REFUSAL]), STATUSES, HEADERS)
def test_chat_answers(body, status, headers):
    call = _Call(Endpoint("http://127.0.0.1:1/v1", "m"), [])
    answer = HttpAnswer(status, headers, body)
    assert answer.retry_after >= 0 and isinstance(answer.message, str)

    async def ask():
        async with HttpClient("http://127.0.0.1:1/v1", 1, 100) as http:

            async def respond(*_, **__):
                return answer

            http.request = http.send = respond
            return await call.ask(http, ChatRequest([], {"temperature": 0, "seed": 1}))

    reply = refuses_clearly(lambda: asyncio.run(ask()), errors=EndpointError)
    if reply is not None:
        reply.text.encode()


ANSWERS = {
    Catalogue: {
        "rewards": [
            {
                "name": "r",
                "low": 0.0,
                "high": 1.0,
                "higher_is_better": True,
                "reads": "images",
                "critic": False,
            }
        ],
        "limits": {"images": 4, "pixels": 100, "body": 1000},
    },
    ScoreResponse: {"scores": {"r": [0.5]}, "errors": {"s": {"blame": "input", "message": "no"}}},
    CritiqueResponse: {
        "verdicts": {"r": [{"satisfied": False, "critique": "c", "faults": ["c"]}]},
        "errors": {},
    },
}


@pytest.mark.parametrize("kind", ANSWERS)
@given(data=st.data())
def test_answers_of_reward_servers(kind, data):
    client = RewardClient.__new__(RewardClient)
    client.url, client.key = "http://127.0.0.1:1", None
    assert client._parse(json.dumps(ANSWERS[kind]).encode(), kind)
    refuses_clearly(client._parse, data.draw(documents(ANSWERS[kind])), kind)


@given(json_values.map(str) | st.binary(max_size=99), st.none() | st.text(min_size=1))
def test_quotes_of_a_server_are_one_line_without_the_key(text, key):
    quoted = quote(text, key)
    assert quoted.isprintable() and len(quoted) < 2_000
