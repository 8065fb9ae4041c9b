"""The one reader of tables, against Python's own csv module and by damage of every kind."""

import csv
import io

import pandas as pd
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lit_extract.common.errors import InputError
from lit_extract.datasets.reader import as_text, read_table, with_numbers


@pytest.fixture
def read(tmp_path):
    def run(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(path, "data.captions")

    return run


@pytest.fixture
def refusal(read):
    def run(content, name="table.csv"):
        with pytest.raises(InputError) as error:
            read(content, name)
        message = str(error.value)
        assert message.startswith("data.captions: ")
        assert "\n" not in message
        return message

    return run


def write_parquet(columns, **settings):
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        # pandas makes an index of the first column, and the captions become "running", "asleep"
        (
            "nsd_id,caption\n0,A dog, running\n1,A cat, asleep\n",
            "line 2 has 3 fields, the header has 2: '0,A dog, runn",
        ),
        ("nsd_id,caption\n0,A dog\n1,A cat, asleep\n", "line 3 has 3 fields"),
        ("nsd_id,caption\n0,A dog\n1\n", "line 3 has 1 field, the header has 2: '1'"),
        ("nsd_id,caption\n0,A dog\n\n1,A cat\n", "line 3 is empty"),
        ('nsd_id,caption\n0,"two\nlines"\n1\n', "line 4 has 1 field"),
        ("caption\none\n\ntwo\n", "line 3 is empty"),
        ("nsd_id,caption,caption\n0,a,b\n", "several columns called caption"),
        ("nsd_id,caption, caption \n0,a,b\n", "several columns called caption"),
        ("nsd_id,,caption\n0,x,b\n", "no name for column 2"),
        (",caption\n5,a\n6,b\n", "no name for column 1"),
        ("nsd_id,caption\n0,a\0b\n", "NUL character in line 2"),
        ('nsd_id,caption\n0,"never closed\n', "line 2 can't be read"),
        ('nsd_id,caption\n0,"a"b\n', "line 2 can't be read"),
        ("nsd_id;caption\n0;a\n", "separated by ';'; save it with commas"),
        ("nsd_id\tcaption\n0\ta\n", "separated by '\\t'"),
        ("nsd_id,caption\n0,A dog runs\n1,A ca", "no line end after its last line, 1,A ca, so it may be incomplete"),
        ("nsd_id,caption", "no line end"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("nsd_id,caption\n0,a\n1,café\n".encode("latin-1"), "probably Windows-1252 or Latin-1 (byte 0xE9 in line 3)"),
        ("nsd_id,caption\n0,a\n".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("nsd_id,caption\n0,a\n".encode("utf-32"), "is UTF-32, not UTF-8"),
        ("nsd_id,caption\n0,é\n".encode("utf-16-le"), "UTF-16"),
    ],
)
def test_a_bad_table_is_refused_with_the_line(refusal, content, said):
    assert said in refusal(content)


def test_utf8_is_read_with_and_without_a_byte_order_mark(read):
    for encoding in ("utf-8", "utf-8-sig"):
        assert read("nsd_id,caption\n0,日本\n".encode(encoding)).to_dict("list") == {
            "nsd_id": ["0"],
            "caption": ["日本"],
        }


def test_nothing_is_guessed(read):
    table = read("name,caption, split\n001,NA,1e3\n1,None,\nTrue,nan,-0\n")
    assert table.to_dict("list") == {
        "name": ["001", "1", "True"],
        "caption": ["NA", "None", "nan"],
        "split": ["1e3", "", "-0"],
    }


def test_the_index_that_pandas_writes_is_left_out(read):
    content = pd.DataFrame({"nsd_id": [7, 3], "caption": ["a", "b"]}).to_csv()
    assert content.startswith(",nsd_id")
    assert read(content).columns.tolist() == ["nsd_id", "caption"]
    assert read(content)["nsd_id"].tolist() == ["7", "3"]


def test_empty_lines_at_the_end_are_none(read):
    assert len(read("caption\r\none\r\ntwo\r\n\r\n\r\n")) == 2


def test_columns_of_numbers_are_numbers_for_queries(read):
    table = with_numbers(
        read("id,code,weight,shared,few,path\n3,007,1.5,True,1,1\n-4,8,2,False,,2\n"),
    )
    assert table["id"].tolist() == [3, -4]
    assert table["code"].tolist() == ["007", "8"]
    assert table["weight"].tolist() == [1.5, 2.0]
    assert table["shared"].tolist() == [True, False]
    assert table["few"].isna().tolist() == [False, True]
    assert table["path"].tolist() == ["1", "2"]


def test_parquet_has_its_columns_whatever_pandas_noted_in_it(read):
    frame = pd.DataFrame({"caption": ["a", None], "count": [1, 2]}, index=pd.Index([70, 30], name="nsd_id"))
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    table = read(buffer.getvalue(), "t.parquet")
    assert table["nsd_id"].tolist() == [70, 30]
    assert table["caption"].tolist() == ["a", ""]
    assert as_text(table)["count"].tolist() == ["1", "2"]
    unnamed = io.BytesIO()
    frame.reset_index(drop=True)[::-1].to_parquet(unnamed)
    assert read(unnamed.getvalue(), "u.parquet").columns.tolist() == ["caption", "count"]


def test_large_integers_in_parquet_keep_their_digits(read):
    large = 2**53 + 1
    content = write_parquet({"nsd_id": pyarrow.array([large, None], pyarrow.int64())})
    assert read(content, "t.parquet")["nsd_id"][0] == large


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"PAR1", "can't be read"), (b"", "can't be read"), (write_parquet({"caption": ["a\0b"]}), "NUL character")],
)
def test_bad_parquet_is_refused(refusal, content, said):
    assert said in refusal(content, "t.parquet")


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(InputError, match="folder, not a regular file"):
        read_table(tmp_path, "data.captions")


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
tables = st.integers(2, 4).flatmap(
    lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=8)
)


@settings(max_examples=300, deadline=None)
@given(tables, st.sampled_from(["utf-8", "utf-8-sig"]), st.sampled_from(["\n", "\r\n"]))
def test_whatever_csv_writes_is_read_back(tmp_path_factory, rows, encoding, end):
    header = [f"column {k}" for k in range(len(rows[0]))]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    path.write_bytes(buffer.getvalue().encode(encoding))
    table = read_table(path, "table")
    assert table.columns.tolist() == header
    assert table.to_numpy().tolist() == rows


@settings(max_examples=300, deadline=None)
@given(tables, st.data())
def test_a_damaged_table_is_read_as_csv_reads_it_or_refused(tmp_path_factory, rows, data):
    """Bytes are inserted, removed and changed anywhere."""
    header = [f"column {k}" for k in range(len(rows[0]))]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    content = bytearray(buffer.getvalue().encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"", b",", b'"', b"\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"x"])
        )
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    path.write_bytes(bytes(content))
    try:
        table = read_table(path, "table")
    except InputError:
        return
    text = bytes(content).decode("utf-8-sig")
    assert text.endswith("\n")
    expected = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    while not expected[-1]:
        expected.pop()
    assert len(set(map(len, expected))) == 1, "a line with another number of fields was accepted"
    assert table.columns.tolist() == [name.strip() for name in expected[0]]
    assert table.to_numpy().tolist() == expected[1:]
