import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.core.seeds import shuffled_indices
from reprise.backend.shapeworld.prompts import parse_prompt, prompts
from reprise.backend.training.rollouts.prompts import PromptStream, TrainingPrompt, read_prompts


def test_text_and_json_lines(tmp_path):
    path = tmp_path / "p.txt"
    line = '{"prompt": "a 猫", "judged_as": "a cat"}'
    path.write_bytes(f"\ufeffa cat\r\n\n  a dog \n{line}\na cat\n".encode())
    cat, dog, other = read_prompts(str(path))
    assert (cat.prompt, dog.prompt) == ("a cat", "a dog")
    assert cat.judge_prompt == "a cat" and other.judge_prompt == "a cat" and other.prompt == "a 猫"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "holds no prompts"),
        (b"\n \n", "holds no prompts"),
        (b"\xff\xfe", "not UTF-8"),
        (b'a\n{"prompt": "a"', "line 2: not JSON"),
        (b'{"promt": "a"}', "line 1: prompt: field required"),
        (b'{"prompt": " "}', "line 1: prompt: "),
        (b'{"prompt": "a", "seed": 1}', "line 1: seed: "),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(text)
    with pytest.raises(BadInput, match=message) as caught:
        read_prompts(str(path))
    assert "\n" not in str(caught.value)


def test_no_file_and_no_number(tmp_path):
    with pytest.raises(BadInput, match="cannot read"):
        read_prompts(str(tmp_path / "none"))
    for source in ("shapeworld:", "shapeworld:many", "shapeworld:0", "shapeworld::counting"):
        with pytest.raises(BadInput, match="shapeworld:N"):
            read_prompts(source)
    with pytest.raises(BadInput, match="did you mean 'counting'"):
        read_prompts("shapeworld:4:position,countin")


def test_evaluations_use_other_combinations_of_the_train_split():
    held_out = {case.prompt for case in prompts("held-out")}
    keys = {case.prompt: case.key for case in prompts("train")}
    uses = ("train", "evaluate", "paraphrase")
    train, aside, reworded = (read_prompts("shapeworld:9999", use) for use in uses)
    assert not held_out & {one.judge_prompt for one in (*train, *aside, *reworded)}
    trained = {keys[one.prompt] for one in train}
    assert not trained & {keys[one.prompt] for one in aside}
    assert not trained & {keys[one.judge_prompt] for one in reworded}
    few = read_prompts("shapeworld:3", "evaluate")
    assert len({parse_prompt(one.prompt).task for one in few}) == 6
    assert few == read_prompts("shapeworld:3", "evaluate", seed=9)  # comparable between runs
    assert read_prompts("shapeworld:3", seed=1) != read_prompts("shapeworld:3", seed=2)
    tasks = {case.prompt: case.task for case in prompts("train")}
    two = read_prompts("shapeworld:3:counting,position")
    assert [tasks[one.prompt] for one in two] == ["counting"] * 3 + ["position"] * 3


def test_a_stream_takes_all_prompts_and_resumes_at_its_position():
    asked = [TrainingPrompt(prompt=str(i)) for i in range(5)]
    stream = PromptStream(asked, seed=3)
    first = stream.take(5)
    assert sorted(one.prompt for _, one in first) == list("01234")
    second = stream.take(5)
    assert sorted(one.prompt for _, one in second) == list("01234")
    assert [position for position, _ in second] == [5, 6, 7, 8, 9]
    assert [one for _, one in first] != [one for _, one in second]
    resumed = PromptStream(asked, seed=3, position=3)
    assert resumed.take(4) == first[3:] + second[:2]
    assert PromptStream(asked, seed=4).take(5) != first


def test_the_order_of_what_is_taken():
    assert sorted(shuffled_indices(5, 0, range(5))) == list(range(5)) != shuffled_indices(5, 0, range(5, 10))
    assert shuffled_indices(5, 0, range(3)) + shuffled_indices(5, 0, range(3, 10)) == shuffled_indices(
        5, 0, range(10)
    )
    assert shuffled_indices(5, 1, range(5)) != shuffled_indices(5, 0, range(5))
