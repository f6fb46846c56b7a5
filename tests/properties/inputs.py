"""Inputs for the property tests: whatever may stand in a file, a name or a server's answer, and valid
documents with one thing changed, which come further into a parser than noise does.
"""

import copy
import json

from hypothesis import strategies as st

from reprise.backend.core.errors import RepriseError

ANY_CHARACTER = st.characters(exclude_categories=())  # half letters (surrogates), control codes and all
texts = st.text(ANY_CHARACTER, max_size=60)
long_words = st.sampled_from(
    ["a" * 300, "\0", "..", "../../x", "/etc/passwd", "~nobody/x", "a" * 20_000, "\x1b[2J"]
)
numbers = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**63, 10**400, -(10**400)]),
    st.floats(),
)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts | long_words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
# What json, its C scanner or Python's own limits stumble over.
HOSTILE = (
    b"",
    b"{",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b"[" * 20_000,
    b'{"a":' * 20_000,
    b"1" * 5_000,
    b"1e999",
    b'"\\ud800"',
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b"\x00",
    b'{"a": 1}\n' * 3,
    b"&a [*a]",
    b"{a: &a {b: *a}}",
    b"? [1]\n: 2",
    b"2001-99-99",
    b"a: !!bool x",
    b"a: !!int x",
    b"a: !!timestamp x",
    b"a: !!python/object/apply:os.getcwd []",
)


def paths_of(document, start=()):
    """The path of every value in a document of dicts and lists."""
    yield start
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from paths_of(value, (*start, key))
        else:
            yield (*start, key)


@st.composite
def changed(draw, document, values=json_values):
    """A copy of a document in which some values, mostly one, are another, are gone or are new."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        path = draw(st.sampled_from([path for path in paths_of(document) if path] or [()]))
        if not path:
            return draw(values)
        owner = document
        for key in path[:-1]:
            owner = owner[key]
        what = draw(st.sampled_from(["replace", "replace", "replace", "delete", "add"]))
        if what == "delete":
            del owner[path[-1]]
        elif what == "add" and isinstance(owner, dict):
            owner[draw(texts)] = draw(values)
        else:
            owner[path[-1]] = draw(values)
        if not isinstance(document, (dict, list)) or not document:
            break
    return document


def as_json(document):
    """Its JSON, with NaN and half letters as a careless writer would put them."""
    return json.dumps(document).encode()


def documents(*valid):
    """Bytes of a file that should hold one of these documents as JSON."""
    return st.one_of(
        *(changed(one).map(as_json) for one in valid), json_values.map(as_json), st.sampled_from(HOSTILE)
    )


def mangled(data):
    """Bytes of a file with some bytes changed, cut off or put in; sometimes noise alone."""

    @st.composite
    def change(draw):
        made = bytearray(data)
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, max(0, len(made) - 1)))
            what = draw(st.sampled_from(["flip", "cut", "insert"]))
            if what == "cut":
                del made[at:]
            elif what == "insert":
                made[at:at] = draw(st.binary(max_size=20))
            else:
                made[at : at + 1] = bytes([draw(st.integers(0, 255))])
        return bytes(made)

    return change() | st.binary(max_size=200) | st.sampled_from(HOSTILE)


def refuses_clearly(parse, *given, errors=RepriseError, **options):
    """What `parse` gives; None where it refuses with an error of ours. Any other error fails the test."""
    try:
        return parse(*given, **options)
    except errors as error:
        line = str(error)
        assert line.strip() and line.isprintable() and len(line) < 5_000, repr(line[:300])
        return None
