"""Files of prompts of every kind, and their broken twins."""

import json

import pytest

from reprise.backend.batch.table import read_table
from reprise.backend.core.errors import RepriseError

ROWS = [{"prompt": "a cat", "cfg": 4.5, "steps": 8}, {"prompt": "ein Hund, grün", "cfg": 5.0, "steps": 9}]


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_each_kind_gives_the_same_rows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    files = [
        write(tmp_path, "a.csv", 'prompt,cfg,steps\na cat,4.5,8\n\n"ein Hund, grün",5.0,9\n'),
        write(tmp_path, "b.csv", "\ufeffprompt;cfg;steps\r\na cat;4.5;8\r\nein Hund, grün;5.0;9\r\n"),
        write(tmp_path, "c.tsv", "prompt\tcfg\tsteps\na cat\t4.5\t8\nein Hund, grün\t5.0\t9\n"),
        write(tmp_path, "d.jsonl", "\n".join(json.dumps(row) for row in ROWS)),  # without an end of line
        tmp_path / "e.parquet",
    ]
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), files[-1])
    for path in files:
        table = read_table(path, pytest.fail)
        assert table.columns == ("prompt", "cfg", "steps")
        assert [{k: v if k == "prompt" else float(v) for k, v in row.items()} for row in table.rows] == [
            {k: v if k == "prompt" else float(v) for k, v in row.items()} for row in ROWS
        ]


def test_a_text_file_is_a_prompt_a_line(tmp_path):
    notes = []
    table = read_table(write(tmp_path, "p.txt", "a cat\n\n a dog \n"), notes.append)
    assert table.rows == ({"prompt": "a cat"}, {"prompt": "a dog"}) and "1 empty line skipped" in notes[0]


def test_empty_cells_are_left_out(tmp_path):
    table = read_table(write(tmp_path, "p.csv", "prompt,cfg\na cat,\n,3\n"), pytest.fail)
    assert table.rows == ({"prompt": "a cat"}, {"cfg": "3"})
    table = read_table(write(tmp_path, "p.jsonl", '{"prompt": "a", "cfg": null}\n"a dog"\n'), pytest.fail)
    assert table.rows == ({"prompt": "a"}, {"prompt": "a dog"})


@pytest.mark.parametrize(
    "name,content,part",
    [
        ("p.xlsx", b"PK", "unknown kind of prompt file"),
        ("p.csv", "", "holds no row"),
        ("p.csv", "prompt,cfg\n", "holds no row"),
        ("p.csv", "prompt,prompt\na,b\n", "two columns 'prompt'"),
        ("p.csv", "prompt,\na,b\n", "column 2 has no name"),
        ("p.csv", "prompt,cfg\na cat, red,4\n", "line 2: 3 cells where the first line names 2"),
        ("p.csv", 'prompt\n"a cat\n', "not CSV"),
        ("p.csv", b"prompt\n\xff\xfe\n", "not UTF-8"),
        ("p.csv", b"prompt\na\0b\n", "zero byte"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt"\n', "line 2: not JSON"),
        ("p.jsonl", "[1]\n", "line 1: expected an object"),
        ("p.jsonl", '{"prompt": ["a"]}\n', "line 1: 'prompt' is ['a']"),
        ("p.jsonl", '{"cfg": NaN}\n', "'cfg' is nan"),
        ("p.parquet", b"PAR1 and nothing more", "not a Parquet file"),
        ("p.txt", "\n\n", "holds no prompt"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, name, content, part):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = write(tmp_path, name, content)
    with pytest.raises(RepriseError) as caught:
        read_table(path, lambda text: None)
    assert part in str(caught.value) and str(path) in str(caught.value) and caught.value.exit_code == 2
