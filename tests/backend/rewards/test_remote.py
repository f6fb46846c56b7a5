"""The client of the reward server: nothing is lost or guessed, and every wait ends."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

from reprise.backend.core.errors import BadInput, EndpointError, RewardFailed, UnknownName
from reprise.backend.core.interfaces import Critic
from reprise.backend.core.scoring import image_scores
from reprise.backend.core.types import RewardSpec
from reprise.backend.net import http
from reprise.backend.net.reward_protocol import Limits
from reprise.backend.rewards.mix import mix_rewards
from reprise.backend.rewards.remote import connect
from reprise.backend.rewards.shapeworld import ShapeWorldSoft
from reprise.backend.serving import app

from ...fake_endpoint import closed_url
from ...reward_server import PROMPTS, Brightness, Gate, clean, scene, serving  # noqa: F401  clean: a fixture

GREY = torch.full((2, 4, 6, 3), 128 / 255)


def test_a_queue_shorter_than_its_clients_loses_nothing(monkeypatch):
    """Sixteen clients, a queue of eight: some are refused, and try again."""
    monkeypatch.setattr(app, "RETRY_AFTER", "0.02")
    cases = [(scene(prompt, seed)[None], [prompt]) for prompt in PROMPTS for seed in range(6)]
    judge = ShapeWorldSoft()
    expected = [judge.score(*case) for case in cases]
    with serving(ShapeWorldSoft(), batch=4, waiting=8) as server:

        def client(number):
            reward = connect(server.url, "shapeworld", retries=1000)
            return [(i, reward.score(*cases[i % len(cases)])) for i in range(number, 200, 16)]

        with ThreadPoolExecutor(16) as pool:
            found = [answer for answers in pool.map(client, range(16)) for answer in answers]
        assert server.queue.answered == 200 and len(server.queue) == 0
    assert sorted(found) == [(i, expected[i % len(cases)]) for i in range(200)]


def test_spec_scores_and_critique_are_those_of_the_served_judge():
    images = torch.stack([scene(prompt, i) for i, prompt in enumerate(PROMPTS)])
    judge = ShapeWorldSoft()
    with serving(judge, Brightness(), limits=Limits(images=3)) as server:
        reward, mute = connect(server.url, "shapeworld"), connect(server.url, "brightness")
        assert reward.spec == judge.spec and mute.spec == RewardSpec("brightness", 0.0, 1.0)
        assert isinstance(reward, Critic) and not isinstance(mute, Critic)
        assert reward.score(images, PROMPTS) == judge.score(images, PROMPTS)
        assert reward.criticize(images, PROMPTS) == judge.criticize(images, PROMPTS)
        assert reward.score(images[:0], []) == []
        mix = mix_rewards([(reward, 1.0), (mute, 1.0)])
        assert isinstance(mix, Critic) and len(mix.score(images, PROMPTS)) == 4


def test_a_criticising_judge_is_found_by_both_names(monkeypatch):
    """Its plain name, and the one with #critique, which a judge that only scores does not have."""
    cards = [{**CARD, "name": name, "critic": name == "vlm:x"} for name in ("vlm:x", "vlm:y")]
    Play(monkeypatch, good(), catalogue={**CATALOGUE, "rewards": cards})
    for name in ("vlm:x", "vlm:x#critique"):
        assert connect("http://127.0.0.1:1", name).spec.name == "vlm:x"
    with pytest.raises(UnknownName):
        connect("http://127.0.0.1:1", "vlm:y#critique")


def test_a_search_reflects_with_a_remote_judge():
    from reprise.backend.renderers.fake import FakeRenderer
    from reprise.backend.rewriters.template import KeepPrompt
    from reprise.backend.search.chain import Chain

    def outcome(judge):
        options = {"best_of": 2, "prune": "none", "reflect": 1, "seed": 1, "variants": 1}
        found = Chain(KeepPrompt(), FakeRenderer(), judge, **options).run("a red circle")
        return [candidate.score for candidate in found.candidates], found.reflection

    with serving(ShapeWorldSoft()) as server:
        assert outcome(connect(server.url, "shapeworld")) == outcome(ShapeWorldSoft())


def test_large_batches_go_in_parts_that_the_server_takes():
    images, prompts = torch.rand(9, 20, 20, 3), [f"p{i}" for i in range(9)]
    judge = Brightness()
    with serving(Brightness(), batch=1) as free:
        expected = connect(free.url, "brightness").score(images, prompts)
        assert free.queue.answered == 1
    for limits, parts in ((Limits(images=4), 3), (Limits(pixels=800), 5), (Limits(body=4_000), 9)):
        with serving(judge, limits=limits, batch=1) as server:
            assert connect(server.url, "brightness").score(images, prompts) == expected
            assert server.queue.answered == parts
    with serving(judge, limits=Limits(body=1_000, pixels=500)) as server:
        with pytest.raises(BadInput, match="picture 1 of 9 takes .* bytes"):
            connect(server.url, "brightness").score(images, prompts)
        with pytest.raises(BadInput, match="a picture has 900 pixels"):
            connect(server.url, "brightness").score(torch.rand(1, 30, 30, 3), ["p"])


def test_errors_are_those_of_a_local_judge():
    with serving(ShapeWorldSoft(), Brightness()) as server:
        with pytest.raises(BadInput, match="name one of its shapes"):
            image_scores(connect(server.url, "shapeworld"), GREY, ["a cat", "a dog"])
        with pytest.raises(RewardFailed, match="'brightness' failed: http.* says: RuntimeError: out of"):
            image_scores(connect(server.url, "brightness"), GREY, ["fail", "b"])
        with pytest.raises(BadInput, match="one prompt per picture"):
            connect(server.url, "brightness").score(GREY, ["a"])
        with pytest.raises(BadInput, match=r"picture 2 of 2 has pixels that are NaN or infinite"):
            nan = torch.cat([GREY[:1], GREY[1:] / 0 * 0])
            connect(server.url, "brightness").score(nan, ["a", "b"])
        for shape in ((2, 0, 4, 3), (2, 4, 6, 4), (2, 4, 6), (2,)):
            with pytest.raises(BadInput, match="expected pictures"):
                connect(server.url, "brightness").score(torch.zeros(shape), ["a", "b"])
        with pytest.raises(BadInput, match="prompts.0"):
            connect(server.url, "brightness").score(GREY, ["x" * 9_000, "b"])
        with pytest.raises(UnknownName, match="did you mean 'brightness'"):
            connect(server.url, "brightnes")


def test_one_clients_prompt_does_not_spoil_the_batch_of_another():
    gate = Gate()
    with serving(gate, batch=8) as server, ThreadPoolExecutor(4) as pool:
        prompts = ["first", "good", "fail", "better"]
        asked = [pool.submit(connect(server.url, "gate").score, GREY[:1], [prompts[0]])]
        assert gate.entered.wait(10)
        asked += [pool.submit(connect(server.url, "gate").score, GREY[:1], [p]) for p in prompts[1:]]
        while len(server.queue) < 3:
            threading.Event().wait(0.01)
        gate.open.set()
        for prompt, answer in zip(prompts, asked):
            if prompt == "fail":
                with pytest.raises(RewardFailed, match="out of memory"):
                    answer.result(10)
            else:
                assert answer.result(10) == [pytest.approx(128 / 255)]
        assert [shape[0] for shape in gate.batches] == [1, 3, 1, 1, 1]  # together, then each by itself


CARD = {"name": "far", "low": 0, "high": 1, "higher_is_better": True, "reads": "images", "critic": True}
CATALOGUE = {"rewards": [CARD], "limits": {"images": 64, "pixels": 10**6, "body": 10**6}}


class Play:
    """A server that answers /rewards well and then what the test says, the last for ever."""

    def __init__(self, monkeypatch, *plays, catalogue=CATALOGUE):
        self.plays, self.requests, self.waits = list(plays), [], []
        transport = httpx.MockTransport(lambda request: self.answer(request, catalogue))
        real = httpx.AsyncClient
        monkeypatch.setattr(httpx, "AsyncClient", lambda **options: real(transport=transport, **options))
        monkeypatch.setattr(http.asyncio, "sleep", self.wait)

    async def wait(self, seconds):
        self.waits.append(seconds)

    def answer(self, request, catalogue):
        if request.url.path == "/rewards":
            return httpx.Response(200, json=catalogue)
        self.requests.append(request)
        play = self.plays.pop(0) if len(self.plays) > 1 else self.plays[0]
        if isinstance(play, Exception):
            raise play
        status, body, *headers = play
        if not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        return httpx.Response(status, content=body, headers=dict(headers))


def good(*scores):
    return 200, {"scores": {"far": list(scores)}, "errors": {}}


@pytest.mark.parametrize(
    "answer,part",
    [
        (good(0.5), "answered 1 for 2 pictures"),
        (good(0.1, 0.2, 0.3), "answered 3 for 2 pictures"),
        (good(), "answered 0 for 2 pictures"),
        (good(0.5, float("nan")), "scores.far.1: input should be a finite number"),
        (good(0.5, float("inf")), "finite number"),
        (good(0.5, None), "scores.far.1"),
        (good(0.5, "0.5"), "scores.far.1"),
        (good(0.5, True), "scores.far.1"),
        ((200, {"scores": {"other": [0.5, 0.5]}, "errors": {}}), "answered without it"),
        ((200, {"scores": {"far": 0.5}, "errors": {}}), "scores.far"),
        ((200, {"errors": {}}), "scores: field required"),
        ((200, {"scores": {}, "errors": {"far": "no"}}), "errors.far"),
        ((200, []), "no answer that can be read"),
        ((200, "<html>welcome</html>"), "no answer that can be read"),
        ((200, b""), "no answer that can be read"),
        ((200, b"[" * 100_000), "no answer that can be read"),
        ((200, b" " * (5 * 2**20)), "more than 4,194,304 bytes"),
        ((404, "nothing here"), "is no reward server (404: 'nothing here')"),
        ((302, "", ("location", "http://elsewhere")), "is no reward server"),
        ((422, {"detail": "picture 1 of 1 is damaged"}), "refused the request (422: 'picture 1 of 1 is"),
        ((401, {"detail": "key"}), "wants its key (401: 'key'); set REPRISE_SERVE_KEY"),
    ],
)
def test_an_invalid_answer_is_an_error_and_never_a_score(monkeypatch, answer, part):
    play = Play(monkeypatch, answer)
    with pytest.raises((EndpointError, RewardFailed)) as caught:
        image_scores(connect("http://127.0.0.1:9", "far"), GREY, ["a", "b"])
    said = str(caught.value)
    assert part in said and "\n" not in said and len(said) < 600 and len(play.requests) == 1


@pytest.mark.parametrize(
    "catalogue",
    [
        [],
        {},
        {"rewards": [{**CARD, "low": 1}], "limits": {}},
        {"rewards": [{**CARD, "high": "1"}], "limits": {}},
        {"rewards": [CARD], "limits": {"images": 0}},
    ],
)
def test_an_invalid_catalogue(monkeypatch, catalogue):
    Play(monkeypatch, good(), catalogue=catalogue)
    with pytest.raises(EndpointError, match="no answer that can be read"):
        connect("http://127.0.0.1:9", "far")


def test_temporary_failures_are_tried_again_with_growing_waits(monkeypatch):
    busy = (503, {"detail": "full"}, ("Retry-After", "3"))
    play = Play(monkeypatch, httpx.ReadError("reset"), busy, (502, "bad gateway"), good(0.25, 0.5))
    assert connect("http://127.0.0.1:9", "far").score(GREY, ["a", "b"]) == [0.25, 0.5]
    assert play.waits == [0.01, 3.0, 0.04] and len(play.requests) == 4
    assert len({request.content for request in play.requests}) == 1


@pytest.mark.parametrize(
    "last,part",
    [
        (
            (503, {"detail": "64 requests are waiting already"}),
            "has no room after 3 tries (503: '64 requests",
        ),
        ((500, {"detail": "the server failed"}), "failed after 3 tries (500: 'the server failed')"),
        (
            httpx.RemoteProtocolError("Server disconnected"),
            "the reward server http://127.0.0.1:9 broke off after 3 tries ('Server disconnected')",
        ),
        (httpx.ConnectError("refused"), "after 3 tries ('refused')"),
    ],
)
def test_the_error_says_how_often_it_tried(monkeypatch, last, part):
    play = Play(monkeypatch, last)
    with pytest.raises(EndpointError) as caught:
        connect("http://127.0.0.1:9", "far", retries=2).score(GREY, ["a", "b"])
    assert part in str(caught.value) and len(play.requests) == 3 and play.waits == [0.01, 0.02]


def test_a_long_wait_or_a_slow_answer_is_not_tried_again(monkeypatch):
    play = Play(monkeypatch, (503, "", ("Retry-After", "3600")))
    with pytest.raises(EndpointError, match="no room"):
        connect("http://127.0.0.1:9", "far").score(GREY, ["a", "b"])
    play.plays = [httpx.ReadTimeout("slow")]
    with pytest.raises(EndpointError, match="did not answer within 300 s"):
        connect("http://127.0.0.1:9", "far").score(GREY, ["a", "b"])
    assert len(play.requests) == 2 and play.waits == []


def test_verdicts_are_checked_as_strictly(monkeypatch):
    judged = {"satisfied": False, "critique": "no", "faults": ["no"]}
    play = Play(monkeypatch, (200, {"verdicts": {"far": [judged]}, "errors": {}}))
    critic = connect("http://127.0.0.1:9", "far")
    assert critic.criticize(GREY[:1], ["a"])[0].faults == ("no",)
    with pytest.raises(RewardFailed, match="answered 1 for 2"):
        critic.criticize(GREY, ["a", "b"])
    play.plays = [(200, {"verdicts": {"far": [{**judged, "satisfied": "no"}]}, "errors": {}})]
    with pytest.raises(EndpointError, match="verdicts.far.0.satisfied"):
        critic.criticize(GREY[:1], ["a"])


def test_the_key_goes_to_allowed_addresses_only(monkeypatch):
    monkeypatch.setenv("REPRISE_SERVE_KEY", "a-long-random-word")
    play = Play(monkeypatch, good(0.5, 0.5), (401, {"detail": "not a-long-random-word"}))
    reward = connect("http://127.0.0.1:9", "far")
    reward.score(GREY, ["a", "b"])
    assert play.requests[0].headers["Authorization"] == "Bearer a-long-random-word"
    with pytest.raises(EndpointError, match="correct REPRISE_SERVE_KEY") as caught:
        reward.score(GREY, ["a", "b"])
    assert "a-long-random-word" not in str(caught.value)
    with pytest.raises(EndpointError, match="set REPRISE_SERVE_HOSTS=http://far.example:8009"):
        connect("http://far.example:8009", "far").score(GREY, ["a", "b"])
    assert "Authorization" not in play.requests[-1].headers
    monkeypatch.setenv("REPRISE_SERVE_HOSTS", "far.example")
    play.plays = [good(0.5, 0.5)]
    connect("https://far.example", "far").score(GREY, ["a", "b"])
    assert "Authorization" in play.requests[-1].headers


def test_no_server_at_the_address():
    with pytest.raises(EndpointError, match="cannot reach the reward server .* after 2 tries"):
        connect(closed_url(), "far", retries=1)
    for url in ("127.0.0.1:8009", "http://me:secret@host:8009", "ftp://host"):
        with pytest.raises(BadInput, match="http://127.0.0.1:8009") as caught:
            connect(url, "far")
        assert "secret" not in str(caught.value)
