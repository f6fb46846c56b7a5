"""GenEval's rules on hand-made detections, on its own prompts, and against its own code's verdicts."""

import json

import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.rewards.geneval.prompts import (
    CLASSES,
    COLORS,
    NUMBERS,
    GenEvalCase,
    GenEvalRequirement,
    parse_prompt,
    plural,
    read_cases,
)
from reprise.backend.rewards.geneval.rules import (
    ObjectDetection,
    component,
    faults,
    is_right,
    soft_score,
    threshold_of,
)

from ....data.geneval import scenes

GOLDEN = json.loads((scenes.HERE / "golden.json").read_text(encoding="utf-8"))
BOX = (100, 100, 200, 200)


def seen(name, confidence=0.95, box=BOX, color=None):
    """One detection; of `color` it is sure to 91 %."""
    colors = {c: 0.91 if c == color else 0.01 for c in COLORS} if color else None
    return ObjectDetection(name, confidence, tuple(box), colors)


def at(name, x, y, side=20, confidence=0.95):
    """A square thing around (x, y)."""
    return seen(name, confidence, (x - side / 2, y - side / 2, x + side / 2, y + side / 2))


def several(name, count, confidence=0.95):
    return [seen(name, confidence) for _ in range(count)]


SINGLE, TWO, TWO_DOGS = "a photo of a dog", "a photo of a dog and a cat", "a photo of two dogs"
RED, LEFT = "a photo of a red car", "a photo of a dog left of a cat"
BOTH = "a photo of a red car and a blue bird"
TABLE = [  # prompt, detections, what is wrong
    # single object: above .3, of the right class
    (SINGLE, [seen("dog")], []),
    (SINGLE, [], ["there is no dog"]),
    (SINGLE, [seen("cat")], ["there is no dog"]),
    (SINGLE, [seen("dog", 0.31)], []),
    (SINGLE, [seen("dog", 0.3)], ["there is no dog"]),
    (SINGLE, [seen("dog", 0.95, (7, 7, 8, 8))], []),  # as small as can be
    (SINGLE, [*several("dog", 40), seen("cat")], []),  # more, and others, are no fault
    # two objects
    (TWO, [seen("dog"), seen("cat")], []),  # in the same place
    (TWO, [seen("dog", 0.31), seen("cat", 0.31)], []),
    (TWO, several("dog", 2), ["there is no cat"]),
    (TWO, [], ["there is no dog", "there is no cat"]),
    # counting: exact, above .9
    (TWO_DOGS, several("dog", 2), []),
    (TWO_DOGS, several("dog", 2, 0.91), []),
    (TWO_DOGS, several("dog", 2, 0.9), ["I see no dogs, 2 were asked for"]),
    (TWO_DOGS, several("dog", 1), ["I see 1 dog, 2 were asked for"]),
    (TWO_DOGS, several("dog", 3), ["I see 3 dogs, 2 were asked for"]),
    (TWO_DOGS, several("dog", 2) + several("dog", 5, 0.9), []),  # the unsure ones are none too many
    (TWO_DOGS, several("dog", 2) + several("cat", 3), []),
    (TWO_DOGS, several("dog", 30), ["I see 16 dogs, 2 were asked for"]),
    ("a photo of four knives", several("knife", 3), ["I see 3 knives, 4 were asked for"]),
    # colours: of the surest one
    (RED, [seen("car", color="red")], []),
    (RED, [seen("car", color="blue")], ["the car is blue, not red"]),
    (RED, [], ["there is no red car"]),
    (RED, [seen("car", 0.5, color="blue"), seen("car", 0.6, color="red")], []),
    (RED, [seen("car", 0.6, color="blue"), seen("car", 0.5, color="red")], ["the car is blue, not red"]),
    ("a photo of an orange orange", [seen("orange", color="orange")], []),
    # position
    (LEFT, [at("dog", 50, 100), at("cat", 150, 100)], []),
    (LEFT, [at("cat", 50, 100), at("dog", 150, 100)], ["the dog is not left of the cat"]),
    (LEFT, [at("dog", 50, 100), at("cat", 50, 100)], ["the dog is not left of the cat"]),  # equal centres
    (LEFT, [at("dog", 100, 100, 80), at("cat", 140, 100, 80)], []),  # overlapping: (40 - 16) / 40
    (LEFT, [at("dog", 100, 100, 80), at("cat", 132, 100, 80)], ["the dog is not left of the cat"]),  # just .5
    (LEFT, [at("dog", 100, 100, 80), at("cat", 116, 100, 80)], ["the dog is not left of the cat"]),
    (LEFT, [at("dog", 50, 100, 200), at("cat", 50, 100, 20)], ["the dog is not left of the cat"]),  # inside
    (LEFT, [at("dog", 100, 100, 0), at("cat", 101, 100, 0)], []),  # points
    (LEFT, [at("dog", 100, 100, 1), at("cat", 100.5, 100, 1)], []),
    (LEFT, [at("dog", 0, 100), at("cat", 100, 190)], []),  # (100 - 4) / hypot(100, 90) = .71
    (LEFT, [at("dog", 0, 100), at("cat", 100, 300)], ["the dog is not left of the cat"]),  # 96 / 224
    (LEFT, [at("dog", 50, 100), at("cat", 150, 100), at("dog", 250, 100, confidence=0.9)], []),
    (
        LEFT,
        [at("dog", 50, 100, confidence=0.9), at("cat", 150, 100), at("dog", 250, 100)],
        ["the dog is not left of the cat"],
    ),  # the surest one counts
    (LEFT, [at("dog", 50, 100)], ["there is no cat"]),
    (LEFT, [at("cat", 50, 100)], ["there is no dog"]),
    (LEFT, [], ["there is no cat", "there is no dog"]),
    ("a photo of a dog above a cat", [at("dog", 100, 50), at("cat", 100, 150)], []),
    (
        "a photo of a dog above a cat",
        [at("dog", 100, 150), at("cat", 100, 50)],
        ["the dog is not above the cat"],
    ),
    ("a photo of a dog below a cat", [at("dog", 100, 150), at("cat", 100, 50)], []),
    ("a photo of a dog right of a cat", [at("dog", 150, 150), at("cat", 50, 50)], []),  # and below it: both
    ("a photo of a dog below a cat", [at("dog", 150, 150), at("cat", 50, 50)], []),
    # colour attribution
    (BOTH, [seen("car", color="red"), seen("bird", color="blue")], []),
    (
        BOTH,
        [seen("car", color="blue"), seen("bird", color="red")],
        ["the car is blue, not red", "the bird is red, not blue"],
    ),
    (BOTH, [seen("car", color="red"), seen("bird", color="green")], ["the bird is green, not blue"]),
    (BOTH, [seen("car", color="red")], ["there is no blue bird"]),
    (BOTH, [], ["there is no red car", "there is no blue bird"]),
    # what GenEval's prompts do not ask, and its rules can tell
    ("two red cars", [seen("car", color="red"), seen("car", color="blue")], ["1 of the 2 cars is red"]),
    ("two red cars", [seen("car", color="red")] * 3, ["I see 3 cars, 2 were asked for"]),
    ("two dogs left of a cat", [at("dog", 10, 9), at("dog", 30, 9), at("cat", 90, 9)], []),
    (
        "two dogs left of a cat",
        [at("dog", 10, 9), at("dog", 130, 9), at("cat", 90, 9)],
        ["the dog is not left of the cat"],
    ),
]


@pytest.mark.parametrize("prompt, detections, wrong", TABLE)
def test_the_table_of_verdicts(prompt, detections, wrong):
    case = parse_prompt(prompt)
    assert faults(case, detections) == wrong
    assert is_right(case, detections) == (not wrong)
    assert (soft_score(case, detections) > 0.5) == (not wrong)


def test_excluded_classes_are_faults():
    """GenEval excludes only in counting; its rules know it of any class, from a number on."""
    case = GenEvalCase("a dog, no cat", "two_object", (GenEvalRequirement("dog"),), (("cat", 1), ("bird", 3)))
    assert is_right(case, [seen("dog")])
    assert is_right(case, [seen("dog"), seen("cat", 0.3), *several("bird", 2)])
    assert faults(case, [seen("dog"), seen("cat", 0.31)]) == ["I see 1 cat, none were asked for"]
    wrong = faults(case, [seen("cat"), *several("bird", 20)])
    assert wrong[0] == "there is no dog"
    assert wrong[1:] == ["I see 1 cat, none were asked for", "I see 16 birds, 2 were asked for"]
    assert soft_score(case, [seen("dog")]) > 0.5 > soft_score(case, [seen("dog"), seen("cat")])


@pytest.mark.parametrize(
    "offset, relation, expected",
    [
        ((-100, 0), "left of", 0.96),
        ((-100, 0), "right of", -0.96),
        ((-100, 0), "above", 0.0),
        ((0, 100), "below", 0.96),
        ((0, 100), "above", -0.96),
        ((60, -80), "above", 0.76),
        ((60, -80), "right of", 0.56),
        ((0, 0), "left of", 0.0),
        ((4, -4), "above", 0.0),
        ((4.0005, 0), "right of", 0.0),
        ((-5, 0), "left of", 0.2),
    ],
)
def test_the_component_equals_the_hand_calculation(offset, relation, expected):
    """Boxes of 20 by 20, so 4 come off each axis; what is left is divided by the whole length."""
    x, y = offset
    assert component(at("dog", x, y), at("cat", 0, 0), relation) == pytest.approx(expected)


def test_soft_scores_equal_the_hand_calculation():
    case = parse_prompt(SINGLE)
    assert soft_score(case, []) == 0 and soft_score(case, [seen("dog", 0.1)]) == 0
    assert soft_score(case, [seen("dog", 0.2)]) == pytest.approx(0.1)  # faint, wrong, and not nothing
    assert soft_score(case, [seen("dog", 0.8)]) == pytest.approx(0.9)
    counted = parse_prompt(TWO_DOGS)
    assert soft_score(counted, several("dog", 2, 0.96)) == pytest.approx(0.98)
    assert soft_score(counted, several("dog", 1, 0.96)) == pytest.approx(0.24)
    assert soft_score(counted, several("dog", 3, 0.96)) == pytest.approx(0.32)
    assert soft_score(counted, several("dog", 4, 0.96)) == pytest.approx(0.24)
    red = parse_prompt(RED)
    assert soft_score(red, [seen("car", 1.0, color="red")]) == pytest.approx(0.5 + 0.5 * (0.35 + 0.65 * 0.91))
    assert soft_score(red, [seen("car", 1.0, color="blue")]) == pytest.approx(0.5 * (0.35 + 0.65 * 0.01))
    left = parse_prompt(LEFT)
    wrong_side = [at("dog", 100, 0, confidence=1), at("cat", 0, 0, confidence=0.8)]
    assert soft_score(left, wrong_side) == pytest.approx(0.5 * (1 + 0.8 + 0.8 * 0.04 / 1.5) / 3)
    nearer = [at("dog", -3, 0, confidence=1), at("cat", 0, 0, confidence=0.8)]
    assert soft_score(left, wrong_side) < soft_score(left, nearer) < 0.5


def test_verdicts_equal_the_originals():
    right = 0
    for number, (line, things) in enumerate(scenes.scenes(CLASSES)):
        case = GenEvalCase.from_metadata(line)
        found = [
            ObjectDetection(name, chance, box, {c: float(c == color) for c in COLORS})
            for name, chance, box, color in things
        ]
        expected = GOLDEN["verdicts"][number] == "1"
        assert is_right(case, found) == expected, (line, things)
        score = soft_score(case, found)
        assert 0 <= score <= 1 and (score > 0.5) == expected
        right += expected
    assert number + 1 == len(GOLDEN["verdicts"]) == scenes.SCENES and 1000 < right < 2000


def test_the_published_prompts_give_the_published_metadata():
    lines = scenes.published()
    tasks = {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    assert {tag: sum(line["tag"] == tag for line in lines) for tag in tasks} == tasks and len(lines) == 553
    for line in lines:
        case = parse_prompt(line["prompt"])
        assert case.metadata() == line
        assert GenEvalCase.from_metadata(line) == case
        assert threshold_of(case) == (0.9 if line["tag"] == "counting" else 0.3)
    cases = read_cases(scenes.METADATA)
    assert len(cases) == 553 and cases[TWO_DOGS.replace("dogs", "bicycles")].include[0].count == 2


def test_every_class_is_parsed_in_every_template():
    """Worded as GenEval's generator does, its plurals included."""
    for i, name in enumerate(CLASSES):
        other = CLASSES[i - 1]
        a, b = (("an " if word[0] in "aeiou" else "a ") + word for word in (name, other))
        several = name + ("es" if name.endswith("s") else "s")
        for prompt, tag, include in (
            (a, "single_object", (GenEvalRequirement(name),)),
            (f"{a} and {b}", "two_object", (GenEvalRequirement(name), GenEvalRequirement(other))),
            (f"three {several}", "counting", (GenEvalRequirement(name, 3),)),
            (f"three {plural(name)}", "counting", (GenEvalRequirement(name, 3),)),
            (f"an orange {name}", "colors", (GenEvalRequirement(name, 1, "orange"),)),
            (
                f"{a} below {b}",
                "position",
                (GenEvalRequirement(other), GenEvalRequirement(name, 1, None, ("below", 0))),
            ),
            (
                f"a white {name} and an orange {other}",
                "color_attr",
                (GenEvalRequirement(name, 1, "white"), GenEvalRequirement(other, 1, "orange")),
            ),
        ):
            case = parse_prompt(f"a photo of {prompt}")
            assert (case.tag, case.include) == (tag, include), prompt
            assert case.exclude == (((name, 4),) if tag == "counting" else ())


@pytest.mark.parametrize(
    "prompt, like",
    [
        ("Two  DOGS.", "a photo of two dogs"),
        ("an image of 2 dogs", "a photo of two dogs"),
        ("photo of a dog", "a photo of a dog"),
        ("a dog under a cat", "a photo of a dog below a cat"),
        ("a dog over a cat", "a photo of a dog above a cat"),
        ("the dog is to the left of the cat", "a photo of a dog left of a cat"),
        ("a dog on the right side of a cat", "a photo of a dog right of a cat"),
        ("ten people", "a photo of ten persons"),
        ("two mice", "a photo of two computer mouses"),
    ],
)
def test_other_wordings_are_parsed(prompt, like):
    a, b = parse_prompt(prompt), parse_prompt(like)
    assert (a.tag, a.include, a.exclude) == (b.tag, b.include, b.exclude)
    assert a.prompt == prompt
    assert NUMBERS.index("ten") == 10


@pytest.mark.parametrize(
    "prompt, why",
    [
        ("an astronaut riding a horse", "'an astronaut riding a horse' is no such thing"),
        ("a photo of a girafe", r"'a girafe' is no such thing, did you mean 'giraffe'\?"),
        ("a photo of a red circle", "'a red circle' is no such thing"),
        ("a photo of dogs", r"how many dogs\?"),
        ("a photo of eleven dogs", "'eleven dogs' is no such thing"),
        ("a photo of no dogs", "'no dogs' is no such thing"),
        ("a red dog and a blue dog", "two different demands on dog"),
        ("a dog left of a cat left of a cow", "'a cat left of a cow' is no such thing"),
        ("a photo of ", "'a photo of' is no such thing"),
    ],
)
def test_other_prompts_are_refused_with_an_example(prompt, why):
    with pytest.raises(BadInput, match=why) as error:
        parse_prompt(prompt)
    text = str(error.value)
    assert "'a photo of two dogs'" in text and "COCO's 80 things" in text and ", ".join(COLORS) in text
    assert "\n" not in text and "use another" in text


DOG, CAT = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}
GOOD = {"tag": "colors", "include": [DOG | {"color": "red"}], "prompt": "a scarlet hound"}


@pytest.mark.parametrize(
    "change, why",
    [
        ({"include": []}, "it includes nothing"),
        ({"include": None}, "expected a line of GenEval's metadata"),
        ({"include": [DOG | {"class": "hound"}]}, "'hound' is not one of person, bicycle, car, …"),
        ({"include": [{"class": "dog"}]}, "no 'count'"),
        ({"include": [DOG | {"count": 0}]}, "a count is 0"),
        ({"include": [DOG | {"count": True}]}, "a count is True"),
        ({"include": [DOG | {"color": "grey"}]}, "'grey' is not one of red"),
        ({"include": [DOG | {"position": ["left of", 0]}]}, "relative to entry 0"),
        ({"include": [DOG, CAT | {"position": ["near", 0]}]}, "'near' is not one of left of"),
        ({"include": [DOG, CAT | {"position": "above"}]}, "expected a line of GenEval's metadata"),
        ({"include": [DOG] * 2}, "two different demands on dog"),
        ({"exclude": [DOG | {"count": -1}]}, "a count is -1"),
    ],
)
def test_invalid_metadata_is_refused(change, why, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | change) + "\n", encoding="utf-8")
    with pytest.raises(BadInput, match="lines.jsonl, line 3: .*" + why):
        read_cases(path)


def test_a_file_without_metadata_is_refused(tmp_path):
    path = tmp_path / "lines.jsonl"
    with pytest.raises(BadInput, match=r"lines.jsonl cannot be read"):
        read_cases(path)
    for content in ("[1]", "no json", '"text"'):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(BadInput, match="lines.jsonl, line 1: "):
            read_cases(path)
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"tag": "counting"}), encoding="utf-8")
    with pytest.raises(BadInput, match="line 2: an earlier line contradicts it about 'a scarlet hound'"):
        read_cases(path)
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD), encoding="utf-8")
    assert read_cases(path) == {"a scarlet hound": GenEvalCase.from_metadata(GOOD)}
