"""Ids: 3, "3" and 3.0 are one; what is no id is refused."""

import datetime

import numpy as np
import pandas as pd
import pytest

from lit_extract.common.errors import InputError
from lit_extract.datasets.ids import id_key, parse_ids


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, 0], [3, 0]),
        (["3", "0"], [3, 0]),
        (["3.0", "0.0"], [3, 0]),
        ([3.0, 0.0], [3, 0]),
        (np.array([3, 0], dtype=np.uint16), [3, 0]),
        (pd.Series([3, 0], dtype="Int64"), [3, 0]),
        ([" 3", "0 "], [3, 0]),
        (["007", "8"], ["007", "8"]),
        (["3", "a"], ["3", "a"]),
        (["aardvark_01b", "b.jpg"], ["aardvark_01b", "b.jpg"]),
        ([2**63 - 1, -(2**63)], [2**63 - 1, -(2**63)]),
    ],
)
def test_ids(values, expected):
    found = parse_ids(values, "nsd_id", "x.csv")
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, None], "no nsd_id in row 1"),
        ([1.0, float("nan")], "no nsd_id in row 1"),
        (["a", "  "], "no nsd_id in row 1"),
        ([1, 1.5], "neither a 64-bit integer nor text in row 1 (1.5)"),
        (["1", "1.5"], "row 1 ('1.5')"),
        ([True, 5], "row 0 (True)"),
        ([2**63], "row 0 (9223372036854775808)"),
        (["9223372036854775808"], "row 0 ('9223372036854775808')"),
        (["123456789012345678901234567890"], "row 0"),
        ([float("inf")], "row 0 (inf)"),
        ([1e300], "row 0"),
        ([b"a"], "row 0 (b'a')"),
        ([{"a": 1}], "row 0"),
        ([datetime.date(2020, 1, 1)], "row 0"),
        ([3, 4, 3], "a nsd_id that occurs twice in row 0 (3), row 2 (3)"),
        (["3", "4", "3.0"], "occurs twice in row 0 (3), row 2 (3)"),
    ],
)
def test_what_is_no_id(values, said):
    with pytest.raises(InputError) as error:
        parse_ids(values, "nsd_id", "x.csv")
    assert str(error.value).startswith("x.csv has ")
    assert said in str(error.value)


def test_ids_are_compared_by_what_they_are():
    assert {id_key(value) for value in (3, "3", 3.0, "3.0", np.int64(3), np.float64(3), " 3 ")} == {"3"}
    assert len({id_key(value) for value in ("007", 7, "7.5", "a", "A", True)}) == 6
