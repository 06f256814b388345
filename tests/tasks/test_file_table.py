"""Rows of local files, by index, and what is said of bad ones."""

from pathlib import Path

import pytest
from hub_files import jsonl, parquet

from jaxchat.data.files.table import Table
from jaxchat.errors import ArtifactError, ConfigError

ROWS = [{"text": f"row {number}", "size": number} for number in range(7)]


def texts(table: Table) -> list[str]:
    return [table[index].text("text") for index in range(len(table))]


def test_rows_of_every_format_one_file_after_the_other(tmp_path: Path) -> None:
    files = [
        parquet(tmp_path / "a.parquet", ROWS[:5]),
        jsonl(tmp_path / "b.jsonl", ROWS[5:6]),
        jsonl(tmp_path / "c.jsonl.gz", ROWS[6:]),
    ]
    table = Table(files, ("text", "size"))
    assert len(table) == 7
    assert texts(table) == [row["text"] for row in ROWS]
    assert [table[index].number("size") for index in (6, 0, 5, 4)] == [6, 0, 5, 4]


@pytest.mark.parametrize("index", [-1, 7])
def test_an_index_outside_the_table_is_an_error(tmp_path: Path, index: int) -> None:
    with pytest.raises(IndexError):
        Table([jsonl(tmp_path / "a.jsonl", ROWS)], ("text",))[index]


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\n{"text": "one"}\r\n  \n\n{"text": "two"}\n{"text": 3}')
    table = Table([file], ("text",))
    assert [table[index].text("text") for index in (0, 1)] == ["one", "two"]
    with pytest.raises(ArtifactError, match=r"line 6 of .*a\.jsonl has a text of type int"):
        table[2].text("text")


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert len(Table([jsonl(tmp_path / "a.jsonl", [])], ("text",))) == 0


def test_a_bad_line_is_an_error_where_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "good"}\n{"text": \n["list"]\n')
    table = Table([file], ("text",))
    assert table[0].text("text") == "good"
    with pytest.raises(ArtifactError, match=r"line 2 of .*a\.jsonl is not JSON"):
        table[1]
    with pytest.raises(ArtifactError, match=r"line 3 of .* is of type list; it must be an object"):
        table[2].text("text")


@pytest.mark.parametrize(
    ("row", "method", "said"),
    [
        ({"other": 1}, "text", "has no field 'x', only other"),
        ({"x": None}, "text", "has a x of type null; it must be text"),
        ({"x": "one"}, "texts", "has x = 'one'; it must be a list of texts"),
        ({"x": []}, "texts", "must be a list of texts"),
        ({"x": ["a", 1]}, "texts", "must be a list of texts"),
        ({"x": "1"}, "number", "has x = '1'; it must be a whole number"),
        ({"x": True}, "number", "must be a whole number"),
        ({"x": 1.5}, "number", "must be a whole number"),
        ({"x": []}, "inner", "has a x of type list; it must be an object"),
    ],
)
def test_a_field_of_another_type_is_named(
    tmp_path: Path, row: dict[str, object], method: str, said: str
) -> None:
    table = Table([jsonl(tmp_path / "a.jsonl", [row])], ("x",))
    with pytest.raises(ArtifactError) as caught:
        getattr(table[0], method)("x")
    assert str(caught.value).startswith(f"line 1 of {tmp_path / 'a.jsonl'} ")
    assert said in str(caught.value)


def test_a_parquet_file_without_a_column_is_refused_before_any_row_is_read(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", ROWS)
    with pytest.raises(ArtifactError, match=r"a\.parquet has no column 'answer', only text, size"):
        Table([file], ("text", "answer"))


def test_a_cut_file_is_damaged(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "a.parquet", ROWS)
    (tmp_path / "b.parquet").write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match=r"b\.parquet is cut off: no Parquet footer"):
        Table([tmp_path / "b.parquet"], ("text",))
    packed = jsonl(tmp_path / "c.jsonl.gz", ROWS)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"c\.jsonl\.gz is cut off"):
        Table([packed], ("text",))


def test_bytes_changed_inside_a_parquet_file_are_an_error_and_no_crash(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", ROWS)
    data = bytearray(file.read_bytes())
    data[4:60] = b"\xff" * 56
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"a\.parquet is damaged"):
        Table([file], ("text",))[0]


@pytest.mark.parametrize("name", ["missing.jsonl", "folder", "a.csv"])
def test_files_that_cannot_be_rows_are_the_users_mistake(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.csv").write_text("x\n")
    with pytest.raises(ConfigError, match=name):
        Table([tmp_path / name], ("text",))
    with pytest.raises(ConfigError, match="no file is given"):
        Table([], ("text",))
