"""Names of renderers, rewriters and rewards, addresses, and the small languages inside options."""

from hypothesis import given
from hypothesis import strategies as st

from reprise.backend.factory import (
    check_differentiable,
    find_trainer,
    parse_judge,
    parse_pipeline,
    parse_renderer,
    parse_reward,
    parse_rewriter,
    parse_weights,
    renderer_settings,
    reward_mark,
    reward_spec,
)
from reprise.backend.net.credentials import CHAT, REWARDS, check_address, check_url, find_key, is_local
from reprise.backend.preferences.store import canonical_reward_name
from reprise.backend.renderers.comfyui.renderer import parse_name
from reprise.backend.rewards.vlm.judge import parse_source
from reprise.backend.search.pruning import read_pruning
from reprise.backend.storage.files import slug
from reprise.backend.storage.prompt_files import check_prompt

from .inputs import ANY_CHARACTER, long_words, refuses_clearly, texts

# Names are made of these.
PIECES = (
    "vlm:|remote:|chat:|comfyui:|prip:|reprompt:|promptist:|shapeworld|image-reward|geneval|embedded|none|mix"
    "|@http|@https|://|127.0.0.1|[::1]|[|]|:|:8188|:99999|/v1|/|//|#|#match|#critique|?|=|=0.5|=nan|=1e999|,"
    "|prompt=6.text|steps=|+|~|~nobody|.|..|flow.json|owner/model|a--b/c|xn--a|xn--|ü|²|%|%zz|user:pw@| "
    "|\0|\n|potential:|halving|0.3|diffusers|\ud800"
).split("|")
names = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=7).map("".join),
    st.lists(st.sampled_from(PIECES) | st.text(ANY_CHARACTER, max_size=5), max_size=4).map("".join),
    long_words,
    texts,
)
addresses = names | st.lists(st.sampled_from(PIECES) | texts, max_size=4).map(
    lambda rest: f"http://{''.join(rest)}"
)


@given(names)
def test_renderers(name):
    found = refuses_clearly(parse_renderer, name)
    assert found is None or found.text == name
    refuses_clearly(parse_pipeline, name)
    refuses_clearly(renderer_settings, name)


@given(names)
def test_rewriters(name):
    found = refuses_clearly(parse_rewriter, name)
    assert found is None or found.text == name


@given(names)
def test_rewards(name):
    found = refuses_clearly(parse_reward, name, None)
    assert found is None or found.text == name
    refuses_clearly(reward_mark, name)
    reward_spec(name)
    canonical_reward_name(name)
    refuses_clearly(check_differentiable, name, errors=ValueError)


@given(st.lists(names, max_size=3), names | st.none())
def test_mixes(words, judge):
    weights = refuses_clearly(parse_weights, words)
    if weights is not None:
        assert all(0 < weight < float("inf") for weight in weights.values())
        refuses_clearly(parse_judge, judge, weights)


@given(addresses)
def test_addresses(text):
    url = refuses_clearly(check_address, text, "http://127.0.0.1:1")
    if url is not None:
        assert url.startswith(("http://", "https://"))
    for kind in (CHAT, REWARDS):
        url = refuses_clearly(check_url, text, kind)
        if url is not None:
            refuses_clearly(find_key, url, kind)


@given(texts)
def test_hosts(host):
    is_local(host)


@given(names)
def test_workflows_on_servers(name):
    refuses_clearly(parse_name, name)
    refuses_clearly(parse_source, name)


@given(names)
def test_options(text):
    refuses_clearly(read_pruning, text)
    refuses_clearly(find_trainer, text)


@given(texts)
def test_folders_of_prompts(prompt):
    if not refuses_clearly(check_prompt, prompt):
        return
    name = slug(prompt)
    assert 0 < len(name.encode()) < 200 and not set(name) & set("/\\\0.")
