"""Messages about wrong names."""

from lit_extract.common.errors import nearest


def test_the_nearest_name_may_differ_in_case():
    assert nearest("upper/crab.jpg", ["lower.jpg", "UPPER/CRAB.JPG"]) == "; did you mean UPPER/CRAB.JPG?"
    assert nearest("nsddatamodule", ["NSDDataModule", "query"]) == "; did you mean NSDDataModule?"
    assert nearest("xyz", ["NSDDataModule"]) == ""
