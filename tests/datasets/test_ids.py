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
        ([1, None], "no nsd_id in line 3"),
        ([1.0, float("nan")], "no nsd_id in line 3"),
        (["a", "  "], "no nsd_id in line 3"),
        ([1, 1.5], "neither a 64-bit integer nor text in line 3 (1.5)"),
        (["1", "1.5"], "line 3 ('1.5')"),
        ([True, 5], "line 2 (True)"),
        ([2**63], "line 2 (9223372036854775808)"),
        (["9223372036854775808"], "line 2 ('9223372036854775808')"),
        (["123456789012345678901234567890"], "line 2"),
        ([float("inf")], "line 2 (inf)"),
        ([1e300], "line 2"),
        ([b"a"], "line 2 (b'a')"),
        ([{"a": 1}], "line 2"),
        ([datetime.date(2020, 1, 1)], "line 2"),
        ([3, 4, 3], "a nsd_id that occurs twice in line 2 (3), line 4 (3)"),
        (["3", "4", "3.0"], "occurs twice in line 2 (3), line 4 (3)"),
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
