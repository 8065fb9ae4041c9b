"""Queries: what is allowed means what pandas means by it, all else is one error, and nothing runs."""

import pandas as pd
import pytest
from helpers.guard import REFUSED, RIGHT, fuzzed, outcome
from helpers.mutations import NAMES
from hypothesis import given
from hypothesis import strategies as st

from lit_extract.common.errors import InputError
from lit_extract.datasets import load_dataset
from lit_extract.datasets.query import evaluate

pytestmark = pytest.mark.slow

TABLE = pd.DataFrame(
    {
        "nsd_id": [0, 1, 2, 5, 8, 13],
        "name": ["a", "b", "ab", "", "A b", "1"],
        "category": pd.Series(["x", "y", "x", None, "z", "x"], dtype="str"),
        "score": [0.5, 1.0, -2.0, float("nan"), 3.0, 1e9],
        "flag": [True, False, True, True, False, False],
        "big one": [3, 1, 4, 1, 5, 9],
        "left": pd.array([1, None, 3, 4, None, 6], dtype="Int64"),
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("queries")


def ask(folder, query):
    """The outcome; what is accepted must be what pandas makes of it."""

    def is_right(mask):
        on_one_line = " ".join(query.splitlines())  # pandas takes each line for a query of its own
        expected = TABLE.query(on_one_line.strip(), engine="python")
        return TABLE[mask].equals(expected)

    return outcome("query", folder, lambda: evaluate(query, TABLE), is_right)


# A grammar of queries that people write

NUMBER_COLUMNS = st.sampled_from(["nsd_id", "score", "`big one`", "left", "index"])
NUMBERS = st.sampled_from(["0", "1", "2", "3", "-1", "0.5", "1e3", "13", "-2.0"])
TEXT_COLUMNS = st.sampled_from(["name", "category", "name.str.lower()", "name.str.upper()", "category.str.strip()"])
TEXTS = st.sampled_from(["'a'", '"b"', "'x'", "''", "'A b'", "'&|'", "'é'", "'1'"])
FLAGS = st.sampled_from(["flag", "True", "False"])
COMPARE = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
SPACE = st.sampled_from(["", " ", "  "])


def joined(*parts):
    return st.tuples(*(st.just(part) if isinstance(part, str) else part for part in parts)).map("".join)


ARITHMETIC = st.recursive(
    NUMBER_COLUMNS | NUMBERS,
    lambda inner: (
        joined(inner, SPACE, st.sampled_from("+-*/%") | st.just("//"), SPACE, inner)
        | joined("(", inner, ")")
        | joined("-", inner)
    ),
    max_leaves=4,
)
LISTS = st.lists(NUMBERS, max_size=4).map(lambda items: f"[{', '.join(items)}]")
TEXT_LISTS = st.lists(TEXTS, max_size=4).map(lambda items: f"[{', '.join(items)}]")
TESTS = st.sampled_from(["startswith", "endswith", "contains"])
CONDITIONS = st.one_of(
    joined(ARITHMETIC, SPACE, COMPARE, SPACE, ARITHMETIC),
    joined(NUMBERS, " < ", NUMBER_COLUMNS, " <= ", NUMBERS),
    joined(NUMBER_COLUMNS, st.sampled_from([" in ", " not in ", " == ", " != "]), LISTS),
    joined(TEXT_COLUMNS, SPACE, COMPARE, SPACE, TEXTS),
    joined(TEXTS, st.sampled_from([" == ", " != ", "<"]), TEXT_COLUMNS),
    joined(TEXT_COLUMNS, st.sampled_from([" in ", " not in ", " == ", " != "]), TEXT_LISTS),
    joined(TEXT_COLUMNS, ".str.", TESTS, "(", TEXTS, ")"),
    joined(TEXT_COLUMNS, ".str.contains(", TEXTS, ", regex=False)"),
    joined(TEXT_COLUMNS, ".str.len()", COMPARE, NUMBERS),
    joined(NUMBER_COLUMNS | TEXT_COLUMNS, st.sampled_from([".isna()", ".notna()"])),
    joined(NUMBER_COLUMNS, ".isin(", LISTS, ")"),
    joined(FLAGS, " == ", FLAGS),
    FLAGS,
)
QUERIES = st.recursive(
    CONDITIONS,
    lambda inner: (
        joined(inner, st.sampled_from([" and ", " or ", " & ", " | ", "&", "|"]), inner)
        | joined("(", inner, ")")
        | joined("not ", inner)
        | joined("~(", inner, ")")
    ),
    max_leaves=6,
)

PIECES = [
    *(
        "nsd_id",
        "name",
        "`big one`",
        "index",
        "nothing",
        "@pd",
        "__import__",
        "os",
        ".str",
        ".contains",
        "True",
        "None",
    ),
    *("'a'", '"', "'", "`", "'''", "f'", "b''", "1", "9", "0x", "1e400", "1j", "10**9", "'a'*9", "...", "[1]", "{1}"),
    *("(", ")", "[", "]", "{", "}", ",", ":", ":=", "=", "==", "<", "in", "not", "and", "or", "is", "&", "|", "~", "^"),
    *("**", "@", "#", "\\", "\n", "\t", " ", "\0", "\ud800", "\u202e", "\u2028", "lambda x: x", "if", "for x in", "."),
    *("yield", "await", "regex=True", "*", "**name", "%", "//", "<<", "!", "$", "?", ";", "é", "ﬁ", *NAMES),
]


@fuzzed(1500)
@given(QUERIES)
def test_what_people_write_means_what_it_means_in_pandas(folder, query):
    ask(folder, query)


@fuzzed(600)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=40))
def test_what_nobody_writes_is_refused_or_means_the_same(folder, query):
    ask(folder, query)


@fuzzed(600)
@given(QUERIES, st.data())
def test_a_damaged_query_is_refused_or_means_the_same(folder, query, data):
    place = data.draw(st.integers(0, len(query)))
    piece = data.draw(st.sampled_from(PIECES))
    ask(folder, query[:place] + piece + query[place + data.draw(st.integers(0, 3)) :])


@pytest.mark.parametrize(
    "query",
    [
        "nsd_id < 5",
        "nsd_id % 2 == 0",
        "nsd_id in [5, 1]",
        "nsd_id == [5, 1]",
        "0 < nsd_id <= 5",
        "not nsd_id < 5 and flag",
        "nsd_id > 1 & nsd_id < 8",  # binds as "and" does
        "nsd_id > 1 | flag == True & score < 0",
        "name in ['a', 'b'] or name.str.startswith('A')",
        "name == 'a' 'b'",
        "name.str.contains('.', regex=False)",
        "category.isna() or category != 'x'",
        "`big one` + nsd_id // 2 > 5",
        "left > 2 or left.isna()",
        "index < 3",
        "nsd_id / 2 > 1.5",
        "flag",
    ],
)
def test_queries_that_must_work(folder, query):
    assert ask(folder, query) == RIGHT


@pytest.mark.parametrize(
    ("query", "place", "said"),
    [
        ("@pd.io.common.os.system('touch X') == 0", 1, "'@'"),
        ("nsd_id > 1 and @x == 1", 16, "'@'"),
        ("nsd_id < 9**9**9", 10, "'9**9**9' is not allowed"),
        ("nsd_id.__class__ == 1", 1, "'nsd_id.__class__' is not allowed"),
        ("__import__('os').system('touch X') == 0", 1, "is not allowed"),
        ("name.map('{}'.format) == 'x'", 1, "'name.map('{}'.format)' is not allowed"),
        ("name * 1000000000 == 'x'", 1, "'name' is neither a number"),
        ("'a' * 1000000000 == name", 1, "is neither a number"),
        ("name.str.contains('(a+)+$')", 1, "regular expression"),
        ("name.str.contains('a', regex=True)", 1, "regular expression"),
        ("name.str.repeat(1000000000) == 'x'", 1, "not allowed"),
        ("é == 1", 1, "'é' is not a column"),
        ("name == 'é' & nothing == 1", 15, "'nothing' is not a column"),
        ("nsd_id == 1 or flag[0]", 16, "'flag[0]' is not allowed"),
        ("(lambda: 1)() == nsd_id", 8, "':'"),
        ("[x for x in name] == name", 1, "is not allowed"),
        ("(nsd_id := 1) == 1", 9, "':'"),
        ("f'{name}' == name", 2, "one quote"),
        ("nsd_id == 99999999999999999999999", 11, "more than 64 bits"),
        ("nsd_id and flag", 1, "'nsd_id' is not true or false for each row"),
        ("nsd_id = 1", 8, "allowed are"),
        ("'a' in name", 1, "str.contains"),
        ("nsd_id is 1", 1, "give a column"),
        ("[1] == nsd_id", 1, "give a column"),
        ("nsd_id < 3 < [4]", 1, "give a column"),
        ("nsd_id > 'a'", 1, "can't be computed"),
        ("1 / 0 < nsd_id", 1, "division by zero"),
        ("name == 'a", 9, "does not end"),
    ],
)
def test_what_is_refused_is_named_with_its_place(query, place, said):
    with pytest.raises(InputError) as error:
        evaluate(query, TABLE)
    assert str(error.value).startswith(f"data.query: {query!r} fails at character {place}: ")
    assert said.replace("'", "") in str(error.value).replace("'", "").replace('"', "")


@pytest.mark.parametrize(
    "query",
    [
        "flag and " * 125_000 + "flag",
        "flag and " * 10_000 + "flag",
        "(" * 5000 + "flag" + ")" * 5000,
        "(" * 150 + "flag" + ")" * 150,
        "not " * 990 + "flag",
        "-" * 990 + "nsd_id > 1",
        "nsd_id + " * 490 + "1 > 1",
        "[" * 500,
        "nsd_id > " + "9" * 5000,
        "nsd_id > 0x" + "f" * 5000,
        "name == '" + "x" * 10**6,
        "a." * 450 + "a",
        "flag if flag else " * 200 + "flag",
        "x" * 99_999,
        "\ud800" * 1000,
        "`" * 1000,
        "nsd_id < " * 400 + "1",
    ],
    ids=lambda query: ascii(query[:12]),
)
def test_nothing_is_too_large_or_too_deep(folder, query):
    outcome("query", folder, lambda: evaluate(query, TABLE), lambda mask: mask.sum() <= len(TABLE))


def test_a_long_list_of_ids_is_allowed(folder):
    ids = list(range(0, 50_000, 5))
    assert outcome("query", folder, lambda: evaluate(f"nsd_id in {ids}", TABLE), lambda mask: mask.sum() == 2) == RIGHT


def test_a_hostile_query_of_a_dataset_runs_nothing(folder, tmp_path):
    query = f"@pd.io.common.os.system('touch {tmp_path}/X') == 0"
    assert outcome("query", folder, lambda: load_dataset("demo", query=query), lambda _: False) == REFUSED
    assert not (tmp_path / "X").exists()
