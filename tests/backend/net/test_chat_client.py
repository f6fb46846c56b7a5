"""The client of chat endpoints against a real HTTP server: its requests, and its errors."""

import asyncio
import json
import threading
import time

import httpx
import pytest

from reprise.backend.core.errors import AnswerRefused, BadInput, EndpointError, Interrupted
from reprise.backend.net import background, http
from reprise.backend.net.chat_client import ChatRequest, Endpoint
from reprise.backend.net.credentials import check_url, find_key

from ...fake_endpoint import GOOD, MODEL, Play, answer, closed_url, playing, refusal

ASK = ChatRequest([{"role": "user", "content": "a cat"}], {"temperature": 0.5, "seed": 3, "max_tokens": 9})
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("REPRISE_ENDPOINT_KEY", "OPENAI_API_KEY", "REPRISE_ENDPOINT_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http, "FIRST_RETRY_SECONDS", 0.01)


def complete(server, *asks, **options):
    return Endpoint(server.url, MODEL, **options).complete(asks or [ASK])


def fails(server, **options) -> str:
    """The one line that a call fails with."""
    with pytest.raises(EndpointError) as caught:
        complete(server, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def test_the_body_of_a_request(endpoint):
    [reply] = complete(endpoint)
    assert (reply.text, reply.cut) == (GOOD, False) and reply.choice["finish_reason"] == "stop"
    [request] = endpoint.requests
    assert request.path == "/v1/chat/completions" and "Authorization" not in request.headers
    assert request.body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "a cat"}],
        "stream": False,
        "temperature": 0.5,
        "seed": 3,
        "max_tokens": 9,
    }


def test_images_travel_as_parts(endpoint):
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    complete(endpoint, ChatRequest([{"role": "user", "content": parts}]))
    assert endpoint.requests[0].body["messages"][0]["content"] == parts


def test_answers_come_in_order_and_together():
    three = threading.Barrier(3)  # nobody is answered before three are there

    def play(body):
        three.wait(60)
        return answer(str(body["seed"]), delay=0.1 * (2 - body["seed"] % 3))

    with playing(play) as server:
        asks = [ChatRequest(ASK.messages, {"seed": i}) for i in range(6)]
        counts = []
        replies = Endpoint(server.url, MODEL, concurrency=3).complete(
            asks, progress=lambda *seen: counts.append(seen)
        )
        assert [reply.text for reply in replies] == ["0", "1", "2", "3", "4", "5"]
        assert server.max_busy == 3
        assert counts == sorted(counts) and all(total == 6 for _, total in counts)


def test_it_works_inside_a_running_event_loop(endpoint):
    async def node():
        return complete(endpoint)

    assert asyncio.run(node())[0].text == GOOD


@pytest.mark.parametrize("name", ["REPRISE_ENDPOINT_KEY", "OPENAI_API_KEY"])
def test_the_key_comes_from_the_environment(endpoint, monkeypatch, name):
    monkeypatch.setenv(name, f" {KEY}\n")
    complete(endpoint)
    assert endpoint.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_our_own_key_comes_first(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("REPRISE_ENDPOINT_KEY", KEY)
    assert find_key("http://127.0.0.1:1/v1") == (KEY, "REPRISE_ENDPOINT_KEY")


@pytest.mark.parametrize(
    ("url", "hosts", "sent"),
    [
        ("https://api.openai.com/v1", None, True),
        ("http://api.openai.com/v1", None, False),
        ("https://api.openai.com.evil.example/v1", None, False),
        ("https://evil.example/v1", None, False),
        ("https://openrouter.ai/api/v1", "openrouter.ai, api.mistral.ai", True),
        ("https://api.openai.com/v1", "openrouter.ai", False),
        ("http://openrouter.ai/api/v1", "openrouter.ai", False),
        ("http://192.168.1.5:8000/v1", "192.168.1.5", False),
        ("http://192.168.1.5:8000/v1", "http://192.168.1.5:8000", True),
        ("http://192.168.1.5:8001/v1", "http://192.168.1.5:8000", False),
        ("http://localhost:11434/v1", None, True),
        ("http://[::1]:8080/v1", "", True),
        ("http://127.0.0.1.evil.example/v1", None, False),
    ],
)
def test_the_key_goes_to_named_hosts_only(monkeypatch, url, hosts, sent):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    if hosts is not None:
        monkeypatch.setenv("REPRISE_ENDPOINT_HOSTS", hosts)
    key, note = find_key(url)
    assert (key == KEY) == sent and KEY not in note
    if not sent:
        assert "REPRISE_ENDPOINT_HOSTS=" in note
        monkeypatch.setenv("REPRISE_ENDPOINT_HOSTS", note.split("HOSTS=")[1].split()[0])
        assert find_key(url)[0] == KEY  # what the message says helps


def test_a_missing_key_and_a_refused_key(monkeypatch):
    with playing(refusal(401, f"Incorrect API key provided: {KEY}")) as server:
        assert "wants a key (401" in fails(server) and "set REPRISE_ENDPOINT_KEY" in fails(server)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        said = fails(server)
        assert "refused the key (401" in said and "correct OPENAI_API_KEY" in said and KEY not in said


@pytest.mark.parametrize("key", ["sk a b", "sk-é", "sk-\n-x"])
def test_an_invalid_key_is_not_shown(endpoint, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert fails(endpoint) == "OPENAI_API_KEY holds characters that no key has; set it again and start again"
    assert endpoint.requests == []


def test_the_key_is_not_stored_or_logged(endpoint, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = Endpoint(endpoint.url, MODEL)
    with caplog.at_level("DEBUG"):
        made.complete([ASK])
    assert KEY not in repr(vars(made)) and KEY not in caplog.text


def test_no_server_at_the_address():
    made = Endpoint(closed_url(), MODEL)
    with pytest.raises(EndpointError, match=r"cannot reach http://127.*start its server, or correct"):
        made.complete([ASK])


def test_a_slow_answer():
    with playing(answer(GOOD, delay=60)) as server:
        started = time.monotonic()
        assert "did not answer within 0.3 s; raise the timeout" in fails(server, timeout=0.3)
        assert time.monotonic() - started < 30
        _until(lambda: len(server.requests) == 1)


def test_a_trickling_answer_is_too_slow():
    """The head of an answer comes in time, the rest does not."""
    with playing(Play(b"{", headers={"Content-Length": "999999"}, linger=9)) as server:
        assert "did not answer within 0.4 s" in fails(server, timeout=0.4)


@pytest.mark.parametrize(
    ("play", "says"),
    [
        (Play(b"<html><h1>Hello</h1></html>"), "expected JSON from http"),
        (Play(b""), "expected JSON from http"),
        (Play(b"[1]"), "expected JSON from http"),
        (Play(b"\xff\xfe\x00"), "expected JSON from http"),
        (Play(b"{" * 5000), "expected choices[0].message.content"),
        (Play({"choices": []}), "expected choices[0].message.content"),
        (Play({"error": "out of memory"}), "out of memory"),
        (Play({"choices": [{"message": {"content": 3}}]}), "expected choices[0].message.content"),
        (Play({"choices": [{"text": "a completion, no chat"}]}), "expected choices[0].message.content"),
        (answer(""), "answered with an empty text"),
        (answer(None), "answered with an empty text"),
        (answer(" \n"), "answered with an empty text"),
        (refusal(403, "not in your country"), "wants a key (403: 'not in your country')"),
        (refusal(400, "context\nlength exceeded"), "refused the request (400: 'context length exceeded')"),
        (refusal(422, "x" * 5000), "refused the request (422: 'xxx"),
        (Play({"detail": "no"}, 422), "refused the request (422: 'no')"),
        (
            Play(b"moved", 308, {"Location": "https://elsewhere.example/v1"}),
            "has moved to 'https://elsewhere",
        ),
        (Play(b"nonsense", headers={"Content-Encoding": "gzip"}), "broke off"),
        (Play(b"{", headers={"Content-Length": "100"}), "broke off"),
    ],
)
def test_invalid_answers(play, says):
    with playing(play) as server:
        assert says in fails(server, retries=0)


def test_a_huge_body_is_not_read_to_its_end():
    with playing(Play(b"x" * 3_000_000)) as server:
        assert "more than 100,000 bytes" in fails(server, max_bytes=100_000)


def test_half_a_letter_does_not_get_into_files():
    with playing(answer("a \ud800 cat")) as server:
        assert complete(server)[0].text == "a ? cat"


def test_text_in_parts_and_text_cut_off():
    with playing(
        answer([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]), answer("", finish="length")
    ) as server:
        assert complete(server)[0].text == "a b"
        [reply] = complete(server)
        assert reply.text == "" and reply.cut  # a model that thought too long: for the caller to judge


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_temporary_failure_is_tried_again(status):
    with playing(refusal(status, "busy"), answer(GOOD)) as server:
        assert complete(server)[0].text == GOOD and len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (429, "takes no more requests (429: 'busy')"),
        (500, "failed (500: 'busy'); its log says why"),
    ],
)
def test_a_lasting_failure_ends_after_the_retries(status, says):
    with playing(refusal(status, "busy")) as server:
        assert says in fails(server) and len(server.requests) == 3


def test_retry_after_is_respected_up_to_a_limit():
    with playing(Play({}, 429, {"Retry-After": "0.4"}), answer(GOOD)) as server:
        started = time.monotonic()
        complete(server)
        assert time.monotonic() - started >= 0.4
    with playing(Play({}, 429, {"Retry-After": "3600"}), answer(GOOD)) as server:
        started = time.monotonic()
        assert "takes no more requests" in fails(server)
        assert time.monotonic() - started < 10


def test_a_lost_connection_is_tried_again():
    with playing(Play(b"", headers={"Content-Length": "100", "Connection": "close"}), answer(GOOD)) as server:
        assert complete(server)[0].text == GOOD


def test_an_unknown_model_and_a_wrong_address():
    with playing(refusal(404, "model not found")) as server:
        with pytest.raises(EndpointError) as caught:
            Endpoint(server.url, "tiny-chatt").complete([ASK])
        assert "knows no model 'tiny-chatt'; did you mean 'tiny-chat'? it has 'big-chat', 'tiny-chat'" in str(
            caught.value
        )
        server.models = Play({"data": [{"id": f"m{i}"} for i in range(50)]})
        assert "and 42 more" in fails(server)
        server.models = Play({"data": [{"id": MODEL}]})
        assert "does not answer as 'tiny-chat' (404: 'model not found')" in fails(server)
        for broken in (Play(b"no", 404), Play(b"no"), Play({"data": [3]}), Play({"data": None})):
            server.models = broken
            assert "an address usually ends in /v1" in fails(server)
    with playing() as server, pytest.raises(EndpointError, match="usually ends in /v1"):
        Endpoint(server.url.removesuffix("/v1"), MODEL).complete([ASK])


def test_settings_that_a_server_refuses_by_name_are_left_out():
    def strict(body):
        for name in ("temperature", "max_tokens"):
            if name in body:
                return refusal(400, f"{name} is not supported with this model", param=name)
        return answer(json.dumps(body))

    with playing(strict) as server:
        for reply in complete(server, ASK, ASK):
            body = json.loads(reply.text)
            assert (body["max_completion_tokens"], body["seed"]) == (9, 3)
            assert "temperature" not in body and "max_tokens" not in body
    # As Mistral and Gemini refuse a seed.
    for said in (
        {
            "message": {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "seed"],
                        "msg": "Extra inputs are not permitted",
                    }
                ]
            }
        },
        [{"error": {"message": 'Unknown name "seed": Cannot find field.'}}],
    ):
        with playing(
            lambda body, said=said: Play(said, 422) if "seed" in body else answer(json.dumps(body)),
        ) as server:
            body = json.loads(complete(server)[0].text)
            assert "seed" not in body and body["temperature"] == 0.5 and len(server.requests) == 2
    for param in ("model", ["seed"], None):
        with playing(refusal(400, "bad model", param=param)) as server:
            assert "refused the request (400: 'bad model')" in fails(server) and len(server.requests) == 1
    with playing(refusal(400, "seed and max_tokens are not allowed, nor temperature")) as server:
        assert "not allowed" in fails(server) and len(server.requests) == 2  # it refuses all the same


def test_one_failure_ends_the_others():
    def play(body):
        return refusal(400, "no") if body["seed"] == 1 else answer(GOOD, delay=20)

    with playing(play) as server:
        started = time.monotonic()
        with pytest.raises(EndpointError, match="400"):
            Endpoint(server.url, MODEL).complete([ChatRequest(ASK.messages, {"seed": i}) for i in range(3)])
        assert time.monotonic() - started < 10
        _until(lambda: server.hung_up == len(server.requests) - 1)


def collect(server, play, count=6, **options):
    """What `complete_each` hands over, and how it ended."""
    found, server.plays = {}, [play]
    asks = [ChatRequest(ASK.messages, {"seed": i}) for i in range(count)]
    try:
        Endpoint(server.url, MODEL, concurrency=2, **options).complete_each(asks, found.__setitem__)
    except BaseException as error:
        return found, error
    return found, None


def test_answers_are_handed_over_as_they_come(endpoint):
    """A request that is refused by itself, or has no text, ends no others."""

    def play(body):
        odd = {1: refusal(400, "no"), 3: answer("")}
        return odd.get(body["seed"]) or answer(str(body["seed"]))

    found, error = collect(endpoint, play)
    assert error is None and sorted(found) == [0, 1, 2, 3, 4, 5]
    assert [found[i].text for i in (0, 2, 4, 5)] == ["0", "2", "4", "5"]
    assert all(isinstance(found[i], AnswerRefused) for i in (1, 3))


def test_answers_before_a_failure_are_handed_over(endpoint):
    def play(body):
        return refusal(401, "no key") if body["seed"] == 4 else answer(str(body["seed"]))

    found, error = collect(endpoint, play)
    assert isinstance(error, EndpointError) and not isinstance(error, AnswerRefused) and "401" in str(error)
    # Two at a time: when 4 is asked, three of those before it have been answered, whichever.
    assert len(found) >= 3 and 4 not in found
    assert all(reply.text == str(number) for number, reply in found.items())


def test_answers_before_ctrl_c_are_handed_over(endpoint, monkeypatch):
    """Also those that came after the last poll."""
    wait = background._LoopThread.wait

    def stopped(self, seconds):
        if not getattr(self, "has_waited", False):
            self.has_waited = True
            _until(lambda: len(endpoint.requests) >= 5)
            raise KeyboardInterrupt
        return wait(self, seconds)

    monkeypatch.setattr(background._LoopThread, "wait", stopped)
    found, error = collect(
        endpoint, lambda body: answer(str(body["seed"]), delay=20 if body["seed"] > 3 else 0)
    )
    assert isinstance(error, KeyboardInterrupt) and len(found) >= 3


@pytest.mark.parametrize("plays", [[answer(GOOD, delay=20)], [refusal(503, "wait")]])
def test_a_stop_does_not_wait_for_the_server(monkeypatch, plays):
    monkeypatch.setattr(http, "FIRST_RETRY_SECONDS", 15)
    with playing(*plays) as server:
        asked: list[float] = []

        def stop():
            if len(server.requests) == 2:
                asked.append(time.monotonic())
            return len(asked) == 3

        with pytest.raises(Interrupted):
            Endpoint(server.url, MODEL).complete([ASK, ASK], should_stop=stop)
        assert time.monotonic() - asked[-1] < 10  # what it would wait for takes 15 and 20
        if plays[0].delay:
            _until(lambda: server.hung_up == 2)  # the server knows, and may stop its model


def test_exceptions_of_should_stop_reach_the_caller():
    class Stop(BaseException):
        pass

    def stop():
        raise Stop

    with playing(answer(GOOD, delay=20)) as server, pytest.raises(Stop):
        Endpoint(server.url, MODEL).complete([ASK], should_stop=stop)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:11434/v1",
        "localhost/v1",
        "ftp://host/v1",
        "http://",
        "http:/x",
        "hunter2@host",
        "http://user:hunter2@host/v1",
        "https://host/v1?key=hunter2",
        "http://[::1/v1",
        "http://host:port/v1",
    ],
)
def test_invalid_addresses(url):
    with pytest.raises(BadInput, match=r"expected an address such as") as caught:
        check_url(url)
    assert "hunter2" not in str(caught.value)


def test_what_people_paste_after_an_address_is_removed():
    for pasted in ("http://h:1/v1", "http://h:1/v1/", " http://h:1/v1/chat/completions ", "http://h:1/v1//"):
        assert check_url(pasted) == "http://h:1/v1"


@pytest.mark.parametrize("options", [{"timeout": 0}, {"retries": -1}, {"concurrency": 0}, {"max_bytes": 0}])
def test_bad_settings(options):
    with pytest.raises(BadInput, match="expected timeout"):
        Endpoint("http://127.0.0.1/v1", MODEL, **options)
    with pytest.raises(BadInput, match="name is empty"):
        Endpoint("http://127.0.0.1/v1", " ")


def test_the_environments_proxy_is_not_used_for_this_machine(endpoint, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", closed_url())
    assert httpx.URL(endpoint.url).host == "127.0.0.1"
    assert complete(endpoint)[0].text == GOOD


def _until(holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
