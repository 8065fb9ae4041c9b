"""Tables: what is read is what the file says, in its rows and its order, or it is refused."""

import csv
import io
import json
import os
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from helpers.guard import REFUSED, RIGHT, fuzzed, outcome
from helpers.mutations import HOSTILE, NAMES, damaged_bytes
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lit_extract.common.errors import InputError
from lit_extract.datasets import load_captions, load_dataset
from lit_extract.datasets.parquet import MAX_CELLS
from lit_extract.datasets.reader import MAX_TABLE_BYTES, read_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


# Generators of good tables, and of odd ones

ENCODABLE = st.characters(codec="utf-8")
TEXT = st.text(ENCODABLE, max_size=12) | st.sampled_from([name for name in NAMES if name != "\ud800"])
CAPTION = TEXT | st.sampled_from(["A dog; a cat", "NA", "None", "nan", "['a']", " a ", "=1", "a\r\nb", "\ufeffa", "1"])
ID = st.one_of(
    st.integers(-3, 100).map(str),
    st.integers().map(str),
    st.sampled_from(["007", "7", "7.0", "1.5", "1e3", "True", "inf", "", " ", "NA", str(2**63), str(-(2**63)), "٣"]),
    TEXT,
)
IDS = st.one_of(
    st.lists(st.integers(0, 50), unique=True, min_size=1, max_size=8).map(lambda ids: list(map(str, ids))),
    st.lists(ID, min_size=1, max_size=6),
    st.lists(st.text("ab01._-/é", min_size=1), unique=True, min_size=1, max_size=6),
)
ID_COLUMN = st.sampled_from(["nsd_id", " nsd_id", "nsd_id ", "stimulus_id", "path", "things_id", "other", ""])


@st.composite
def caption_tables(draw):
    """Header and rows, all text."""
    ids = draw(IDS)
    captions = draw(st.lists(CAPTION, min_size=len(ids), max_size=len(ids)))
    more = draw(st.lists(TEXT, max_size=2, unique=True))
    rows = [[i, caption, *(draw(TEXT) for _ in more)] for i, caption in zip(ids, captions, strict=True)]
    return [draw(ID_COLUMN), draw(st.sampled_from(["caption", "captions", "Caption"])), *more], rows


def csv_of(header, rows, **form):
    buffer = io.StringIO(newline="")
    csv.writer(buffer, **form).writerows([header, *rows])
    return buffer.getvalue().encode()


# Independent statements of what a table says


def is_id(found, text):
    """Whether an id is what the text says, by the rules in the documentation."""
    if isinstance(found, str):
        return found == text
    is_integer = re.fullmatch(r"\s*-?(0|[1-9][0-9]*)(\.0*)?\s*", text)
    return bool(is_integer) and -(2**63) <= found < 2**63 and Decimal(text.strip()) == found


def are_captions_of(table, header, rows):
    """Whether load_captions gave what the rows of a CSV say."""
    header = [name.strip() for name in header]
    if header[0] == "":  # the index that pandas writes
        assert [row[0] for row in rows] == [str(number) for number in range(len(rows))]
        header, rows = header[1:], [row[1:] for row in rows]
    named = next((name for name in ("nsd_id", "things_id", "stimulus_id", "path") if name in header), None)
    ids = table["stimulus_id"].tolist()
    column = "caption" if "caption" in header else "captions"
    texts = [row[header.index(column)] for row in rows]
    texts = [(text if column == "caption" else text.partition(";")[0]).strip() for text in texts]
    if named is None:
        right_ids = ids == list(range(len(rows)))
    else:
        right_ids = all(is_id(i, row[header.index(named)]) for i, row in zip(ids, rows, strict=True))
    return (
        right_ids
        and len(set(map(type, ids))) == 1
        and len(set(map(str, ids))) == len(rows)
        and table["caption"].tolist() == texts
        and all(texts)
    )


@fuzzed(400)
@given(caption_tables(), st.sampled_from(["\n", "\r\n"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_captions_are_what_the_rows_say_or_refused(folder, table, end, quoting):
    (folder / "c.csv").write_bytes(csv_of(*table, lineterminator=end, quoting=quoting))
    outcome(
        "captions, CSV", folder, lambda: load_captions(folder / "c.csv"), lambda found: are_captions_of(found, *table)
    )


GOOD = csv_of(["nsd_id", "caption", "split"], [["0", 'A "dog", running', "a"], ["1", "Une\nfemme à vélo", ""]] * 1)


def as_csv_reads(content):
    """The records that Python's csv module reads."""
    records = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    while records and not records[-1]:
        records.pop()
    return records


@fuzzed(500)
@given(st.one_of(damaged_bytes(GOOD), damaged_bytes(b"\xef\xbb\xbf" + GOOD), st.binary(max_size=60)))
def test_a_damaged_csv_is_what_csv_reads_or_refused(folder, content):
    (folder / "d.csv").write_bytes(content)

    def is_right(table):
        header, *rows = as_csv_reads(content)
        header = [name.strip() for name in header]
        if header[0] == "":
            header, rows = header[1:], [row[1:] for row in rows]
        return table.columns.tolist() == header and table.to_numpy().tolist() == rows and content[-1:] in b"\r\n"

    outcome("table, damaged CSV", folder, lambda: read_table(folder / "d.csv", "table"), is_right)


@fuzzed(150)
@given(caption_tables(), st.data())
def test_captions_of_a_damaged_csv(folder, table, data):
    content = data.draw(damaged_bytes(csv_of(*table)))
    (folder / "e.csv").write_bytes(content)

    def is_right(found):
        header, *rows = as_csv_reads(content)
        return are_captions_of(found, header, rows)

    outcome("captions, damaged CSV", folder, lambda: load_captions(folder / "e.csv"), is_right)


# Parquet

PARQUET_VALUES = [
    (pyarrow.string(), CAPTION),
    (pyarrow.large_string(), CAPTION),
    (pyarrow.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pyarrow.uint64(), st.integers(0, 2**64 - 1)),
    (pyarrow.float64(), st.floats()),
    (pyarrow.float64(), st.integers(0, 50).map(float)),
    (pyarrow.bool_(), st.booleans()),
    (pyarrow.binary(), st.binary(max_size=5)),
    (pyarrow.decimal128(20, 3), st.decimals(-(10**9), 10**9, places=3)),
    (pyarrow.date32(), st.dates()),
    (pyarrow.timestamp("us"), st.datetimes()),
    (pyarrow.timestamp("ns", tz="Europe/Paris"), st.integers(-(2**62), 2**62)),
    (pyarrow.list_(pyarrow.string()), st.lists(CAPTION, max_size=3)),
    (pyarrow.list_(pyarrow.list_(pyarrow.int8())), st.lists(st.lists(st.integers(0, 9)), max_size=2)),
    (pyarrow.struct([("a", pyarrow.int64())]), st.fixed_dictionaries({"a": st.integers(0, 9)})),
    (pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), CAPTION),
    (pyarrow.null(), st.none()),
]
METADATA = st.sampled_from(
    [
        None,
        b"{",
        b"[" * 5000,
        b"7",
        b"{}",
        b'{"index_columns": 7}',
        b'{"index_columns": [{"kind": "range", "name": "nsd_id", "start": 7, "stop": 9, "step": 1}]}',
        b'{"index_columns": [{"kind": "range", "name": null, "start": 0, "stop": 9, "step": 1}]}',
        b'{"index_columns": ["nsd_id"], "columns": [{"name": "nsd_id", "pandas_type": "bool"}]}',
        b"\xff\xfe",
    ]
)


@st.composite
def parquet_tables(draw):
    n = draw(st.integers(1, 6))
    names = draw(
        st.lists(st.sampled_from(["nsd_id", "caption", "captions", "x", " nsd_id"]) | TEXT, min_size=1, max_size=3)
        | st.just(["nsd_id", "caption", "x"])
    )
    columns = []
    for name in names:
        kind, values = draw(st.sampled_from(PARQUET_VALUES if name != "caption" else PARQUET_VALUES[:2]))
        is_id = name.strip() == "nsd_id" and kind == pyarrow.int64()
        of_one = st.lists(values if is_id else values | st.none(), min_size=n, max_size=n)
        columns.append(pyarrow.array(draw(of_one), kind))
    metadata = draw(METADATA)
    table = pyarrow.Table.from_arrays(columns, names=names)
    table = table if metadata is None else table.replace_schema_metadata({b"pandas": metadata})
    buffer = io.BytesIO()
    parquet.write_table(
        table,
        buffer,
        compression=draw(st.sampled_from(["none", "snappy", "gzip", "zstd"])),
        use_dictionary=draw(st.booleans()),
        row_group_size=draw(st.integers(1, 6)),
        write_page_checksum=draw(st.booleans()),
    )
    return buffer.getvalue()


def same(a, b):
    """Whether two values are one; pandas has missing values of several kinds."""
    if b is None:
        return a is None or a is pd.NA or a == "" or a != a
    return a == b or (a != a and b != b) or (isinstance(a, np.generic) and a.item() == b)


def is_as_pyarrow_reads(found, content):
    """Whether a table is what pyarrow alone makes of the columns of a Parquet file."""
    expected = parquet.ParquetFile(io.BytesIO(content)).read()
    names = [name.strip() for name in expected.column_names]
    kept = [place for place, name in enumerate(names) if not re.fullmatch("__index_level_[0-9]+__", name)]
    return found.columns.tolist() == [names[place] for place in kept] and all(
        same(a, b)
        for place in kept
        for a, b in zip(found[names[place]], expected.column(place).to_pylist(), strict=True)
    )


def are_ids_of(ids, content):
    """Whether ids are those in the column nsd_id of a Parquet file, or the numbers of its rows where there is none."""
    table = parquet.ParquetFile(io.BytesIO(content)).read()
    place = next((k for k, name in enumerate(table.column_names) if name.strip() in ("nsd_id", "path")), None)
    if place is None:
        return ids == list(range(table.num_rows))
    said = table.column(place).to_pylist()
    return all(is_id(i, a) if isinstance(a, str) else a == i for i, a in zip(ids, said, strict=True))


@fuzzed(400)
@given(parquet_tables())
def test_a_parquet_table_is_what_pyarrow_reads_or_refused(folder, content):
    (folder / "t.parquet").write_bytes(content)
    outcome(
        "table, Parquet",
        folder,
        lambda: read_table(folder / "t.parquet", "table"),
        lambda found: is_as_pyarrow_reads(found, content),
    )
    (folder / "t.parquet").write_bytes(content)
    outcome(
        "captions, Parquet",
        folder,
        lambda: load_captions(folder / "t.parquet"),
        lambda found: (
            all(type(i) in (int, str) for i in found["stimulus_id"])
            and all(isinstance(text, str) and text for text in found["caption"])
            and are_ids_of(found["stimulus_id"].tolist(), content)
        ),
    )


@fuzzed(400)
@given(parquet_tables().flatmap(damaged_bytes))
def test_a_damaged_parquet_table(folder, content):
    (folder / "d.parquet").write_bytes(content)
    outcome(
        "table, damaged Parquet",
        folder,
        lambda: read_table(folder / "d.parquet", "table"),
        lambda found: is_as_pyarrow_reads(found, content),
    )


# Indexes: cells that become paths

PATH = (
    st.sampled_from(["a.jpg", "b/c.png", "001", "NA", "a/../../x", "./a", "..", "/a", "a//b", "~/x", "a\nb", "\x85"])
    | TEXT
    | HOSTILE.map(str).filter(lambda text: "\ud800" not in text)
)


@fuzzed(300)
@given(st.lists(PATH, min_size=1, max_size=4))
def test_a_path_of_an_index_stays_in_the_folder(folder, paths):
    root = folder / "nsd"
    root.mkdir(exist_ok=True)
    rows = [[str(row), "x", path] for row, path in enumerate(paths)]
    (root / "nsd.csv").write_bytes(csv_of(["nsd_id", "name", "path"], rows, quoting=csv.QUOTE_ALL))

    def is_right(table):
        found = table["image"].tolist()
        inside = [
            os.path.normpath(path).startswith(f"{root}/") or os.path.normpath(path) == str(root) for path in found
        ]
        return all(inside) and found == [str(Path(root, path)) for path in paths] and not any("\0" in p for p in paths)

    outcome("index of images", folder, lambda: load_dataset("nsd", root), is_right)


# Each example of its own


def refusal(path):
    outcome("table", path.parent, lambda: load_captions(path), lambda _: False)
    with pytest.raises(InputError) as error:
        load_captions(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"nsd_id,caption\n9223372036854775808,a\n", "neither a 64-bit integer nor text"),
        (b"nsd_id,caption\n1.5,a\n2,b\n", "neither a 64-bit integer nor text"),
        (b"nsd_id,caption\n1e300,a\n", "neither a 64-bit integer nor text"),
        (b"caption\na\n   \nb\n", "no caption in line 3"),
        (b"caption,x\na,1\n   \nb,2\n", "line 3 has 1 field,"),
        (b"nsd_id,caption\n0,A dog runs\n1,A cat si", "no line end after its last line"),
        (b"nsd_id,caption\n0,A dog runs\n1", "line 3 has 1 field,"),
        (b"nsd_id,caption\n7,a\n7.0,b\n", "occurs twice"),
        (b"nsd_id,caption\n7,a\n7.0,b\nx,c\n", "occurs twice"),
        (b"nsd_id,caption\na\x1b[31m,a\n", "control characters"),
        (b"nsd_id,caption\n" + b"a" * 5000 + b",a\n", "more than 4,095 bytes"),
        (b"nsd_id,nsd_id ,caption\n1,2,a\n", "several columns called nsd_id"),
        (b"a\x1b[31m,b\n1,2\n", "it has 'a\\x1b[31m', b"),
        (b",".join(b"%d" % k for k in range(10_000)) + b"\n" + b"," * 9_999 + b"\n", "10000 in all"),
    ],
)
def test_wrong_captions(tmp_path, content, said):
    (tmp_path / "c.csv").write_bytes(content)
    assert said in refusal(tmp_path / "c.csv")


@pytest.mark.parametrize(
    ("text", "ids"),
    [("nsd_id", [5, 3]), (" nsd_id", [5, 3]), ("nsd_id ", [5, 3]), ("\xa0nsd_id\t", [5, 3])],
)
def test_a_header_with_blanks_is_still_the_id(tmp_path, text, ids):
    for header in (f"{text},caption", f"caption,{text}", f"\ufeffcaption,{text}"):
        rows = ["5,a", "3,b"] if header.endswith("caption") else ["a,5", "b,3"]
        (tmp_path / "c.csv").write_text("\n".join([header, *rows, ""]))
        assert load_captions(tmp_path / "c.csv")["stimulus_id"].tolist() == ids


@pytest.mark.parametrize("text", ["NSD_ID", "nsd id", "nsd-id", "\ufeffnsd_id", "Stimulus_ID", "nsd\u200b_id"])
def test_a_header_that_is_nearly_an_id_is_refused(tmp_path, text):
    (tmp_path / "c.csv").write_text(f"caption,{text}\na,5\nb,3\n")
    assert re.search("rename the column with the ids to (nsd|stimulus)_id", refusal(tmp_path / "c.csv"))


def test_ids_and_paths_stay_the_text_that_they_are(tmp_path):
    (tmp_path / "c.csv").write_text("stimulus_id,caption\n007,a\n8,b\nTrue,c\n1.50,d\n")
    assert load_captions(tmp_path / "c.csv")["stimulus_id"].tolist() == ["007", "8", "True", "1.50"]
    (tmp_path / "nsd.csv").write_text("nsd_id,name,path\n0,a,001\n1,b,NA\n2,c,None\n")
    table = load_dataset("nsd", tmp_path)
    assert table["image"].tolist() == [str(tmp_path / name) for name in ("001", "NA", "None")]


def save(frame, path, **settings):
    frame.to_parquet(path, **settings)
    return path


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([True, False], "neither a 64-bit integer nor text"),
        ([b"a", b"b"], "neither a 64-bit integer nor text"),
        ([{"a": 1}, {"a": 2}], "type struct"),
        ([1.5, 2.0], "neither a 64-bit integer nor text"),
        ([float("inf"), 1.0], "neither a 64-bit integer nor text"),
        (pd.to_datetime(["2020-01-01", "2020-01-02"]), "neither a 64-bit integer nor text"),
        ([Decimal("1"), Decimal("2")], "neither a 64-bit integer nor text"),
        (np.array([2**63, 1], dtype=np.uint64), "neither a 64-bit integer nor text"),
        ([[1], [2]], "neither a 64-bit integer nor text"),
    ],
)
def test_ids_in_parquet_that_are_none(tmp_path, ids, said):
    assert said in refusal(save(pd.DataFrame({"nsd_id": ids, "caption": ["a", "b"]}), tmp_path / "c.parquet"))


def test_whole_floats_in_parquet_are_integers(tmp_path):
    path = save(pd.DataFrame({"nsd_id": [3.0, 0.0], "caption": ["a", "b"]}), tmp_path / "c.parquet")
    assert load_captions(path)["stimulus_id"].tolist() == [3, 0]


def test_an_index_with_a_name_is_a_column_or_refused(tmp_path):
    frame = pd.DataFrame({"caption": ["a", "b"]}, index=pd.Index([70, 30], name="nsd_id"))
    assert load_captions(save(frame, tmp_path / "a.parquet"))["stimulus_id"].tolist() == [70, 30]
    frame.index = pd.RangeIndex(5, 7, name="nsd_id")  # which pandas keeps in its metadata only
    assert "has an index nsd_id, which is not a column" in refusal(save(frame, tmp_path / "b.parquet"))
    assert load_captions(save(frame, tmp_path / "c.parquet", index=True))["stimulus_id"].tolist() == [5, 6]


def test_categories_are_their_values(tmp_path):
    frame = pd.DataFrame({"nsd_id": pd.Categorical([3, 1]), "caption": pd.Categorical(["a", "b"])})
    table = load_captions(save(frame, tmp_path / "c.parquet"))
    assert (table["stimulus_id"].tolist(), table["caption"].tolist()) == ([3, 1], ["a", "b"])


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "a\x1bb", "a\x7fb", "x" * 5000, "..", "é" * 2100],
)
def test_a_path_out_of_the_folder_is_refused(tmp_path, path):
    (tmp_path / "nsd.csv").write_text(f'nsd_id,name,path\n0,a,"{path}"\n')
    with pytest.raises(InputError, match="give paths relative to the folder"):
        load_dataset("nsd", tmp_path)


def test_a_name_of_more_than_255_bytes_is_a_missing_image(tmp_path):
    (tmp_path / "nsd.csv").write_text(f"nsd_id,name,path\n0,a,{'x' * 300}.jpg\n")
    from lit_extract.datasets.table import image_stats

    with pytest.raises(InputError, match="1 of 1 image is missing"):
        image_stats(load_dataset("nsd", tmp_path))


@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
def test_only_regular_files_of_modest_size_are_tables(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "named pipe" in refusal(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert "device" in refusal(tmp_path / name)
    (tmp_path / name).unlink()
    with (tmp_path / name).open("wb") as file:
        file.truncate(MAX_TABLE_BYTES + 1)
    assert "more than 104,857,600 bytes" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\n" + b"1," * 5_000_000 + b"\n", "characters in line 2"),
        (b"a\n" + b"1\n" * (MAX_CELLS + 1), "more than 3,000,000 fields"),
        (b"a\n" + b"1" * 200_000 + b"\n", "field larger than field limit"),
        (b"a,b\n" + b'"' + b"\n" * 200_000, "field larger than field limit"),
        (b"a\n" + "𝄞".encode() * (2**20 + 1), "characters in line 2"),
    ],
)
def test_a_csv_of_absurd_size_is_refused(tmp_path, content, said):
    (tmp_path / "c.csv").write_bytes(content)
    assert said in refusal(tmp_path / "c.csv")


def test_a_table_of_the_largest_size_fits(tmp_path):
    """73,000 captions of 1,000 characters with ten more columns."""
    row = "x" * 1000 + ",1" * 10 + "\n"
    (tmp_path / "c.csv").write_text(
        "nsd_id,caption," + ",".join(f"c{k}" for k in range(10)) + "\n" + "".join(f"{k},{row}" for k in range(73_000))
    )
    read = lambda: load_captions(tmp_path / "c.csv")  # noqa: E731
    assert outcome("captions, CSV", tmp_path, read, lambda table: len(table) == 73_000) == RIGHT


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zip"])
def test_a_compressed_table_is_refused_whole_or_damaged(tmp_path, suffix):
    (tmp_path / f"c{suffix}").write_bytes(b"\x1f\x8b\x08 damaged")
    assert "is compressed; unpack it first" in refusal(tmp_path / f"c{suffix}")


def written(table, **settings):
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, **settings)
    return buffer.getvalue()


def bombs():
    """Parquet files that are small, and large when they are unpacked."""
    zeros = pyarrow.array(np.zeros(MAX_CELLS + 1, dtype=np.int64))
    yield "rows", written(pyarrow.table({"a": zeros})), "rows with"
    text = "x" * 2**20
    many = pyarrow.DictionaryArray.from_arrays(np.zeros(100_000, dtype=np.int32), pyarrow.array([text]))
    yield "one text in each row", written(pyarrow.table({"caption": many})), "unpacks to more than"
    offsets = np.arange(0, 1001, dtype=np.int32)
    lists = pyarrow.ListArray.from_arrays(offsets, many.slice(0, 1000))
    yield "one text in each list", written(pyarrow.table({"captions": lists})), "unpacks to more than"
    large = pyarrow.array(["x" * (300 * 2**20)])
    yield "one large text", written(pyarrow.table({"caption": large}), compression="zstd"), "unpacks to"
    yield "no columns", written(pyarrow.table({})), "has no column caption"


@pytest.mark.parametrize(("content", "said"), [pytest.param(*bomb[1:], id=bomb[0]) for bomb in bombs()])
def test_a_parquet_bomb_is_refused_before_it_is_unpacked(tmp_path, content, said):
    assert len(content) < 2**21
    (tmp_path / "c.parquet").write_bytes(content)
    assert said in refusal(tmp_path / "c.parquet")


@pytest.mark.parametrize("depth", [5, 90])
def test_deeply_nested_types_are_refused(tmp_path, depth):
    kind = pyarrow.int64()
    for _ in range(depth):
        kind = pyarrow.struct([("a", kind)])
    (tmp_path / "c.parquet").write_bytes(written(pyarrow.table({"nsd_id": pyarrow.array([None], kind)})))
    assert re.search("type struct|nested", refusal(tmp_path / "c.parquet"))


@pytest.mark.parametrize("metadata", [b"{", b"[" * 10**5, b"7", b"\xff", json.dumps({"index_columns": 7}).encode()])
def test_damaged_pandas_metadata(tmp_path, metadata):
    table = pyarrow.table({"caption": ["a"]}).replace_schema_metadata({b"pandas": metadata})
    (tmp_path / "c.parquet").write_bytes(written(table))
    assert outcome("table", tmp_path, lambda: load_captions(tmp_path / "c.parquet"), lambda _: False) == REFUSED
