"""Numbers as files write them."""

import math

import numpy as np
import pytest

from streamlm.forecast.columns import filled
from streamlm.forecast.numbers import decimal_sign, decimals, number_text, numbers


@pytest.mark.parametrize(
    ("decimal", "text", "value"),
    [
        (".", "1,234.5", 1234.5),
        (",", "1.234,5", 1234.5),
        (".", "1 234.5", 1234.5),
        (",", "1'234,5", 1234.5),
        (".", "-.5", -0.5),
        (".", "1e3", 1000),
        *((".", text, None) for text in ("", "NaN", "n/a", "-", "NULL", "#N/A")),
        *(
            (".", text, "wrong")
            for text in ("abc", "1,23", "inf", "1e999", "1_000", "12 kW", "01,234")
        ),
    ],
)
def test_a_number(decimal: str, text: str, value: float | str | None) -> None:
    found = numbers([text, "1"], decimal)
    assert found.wrong == ([0] if value == "wrong" else [])
    if value is None:
        assert math.isnan(found.values[0])
    elif value != "wrong":
        assert found.values.tolist() == [value, 1]


@pytest.mark.parametrize(
    ("delimiter", "texts", "sign"),
    [
        (";", ["1,5", "2"], ","),
        (";", ["1.25", "2.5"], "."),
        (";", ["0.123"], "."),  # no group begins with 0
        (";", ["1.234", "987"], (0, "1.234")),
        (";", ["987", "1.234", "1.234,5"], ","),
        (",", ["1,234"], "."),  # in quotes
        ("\t", ["9", "1,234"], (1, "1,234")),
        ("\t", ["1,234", "1,234.5"], "."),
        (",", ["Rome, Italy", "1.5"], "."),
    ],
)
def test_the_decimal_sign(delimiter: str, texts: list[str], sign: object) -> None:
    assert decimal_sign([texts], delimiter) == sign


def test_numbers_are_written_as_they_were() -> None:
    assert number_text(52_315.72, 1, ".") == "52,315.7"
    assert number_text(52_315.72, 1, ",") == "52.315,7"
    assert number_text(52_315.72, 1, ",", grouped=False) == "52315,7"
    assert number_text(-0.01, 1, ".") == "0.0"
    assert decimals(1, 1000) == 1  # the file's own
    assert decimals(17, 8.5) == 2 and decimals(17, 3e-5) == 7  # three digits of the spread
    assert decimals(0, 120) == 0 and decimals(0, 3) == 2  # of whole numbers
    assert decimals(5, 0) == 2


def test_values_are_filled() -> None:
    values = numbers(["", "1", "", "3", ""], ".").values[:, None]
    assert filled(values, "linear")[:, 0].tolist() == [1, 1, 2, 3, 3]
    assert filled(values, "previous")[:, 0].tolist() == [1, 1, 1, 3, 3]
    assert filled(values, "zero")[:, 0].tolist() == [0, 1, 0, 3, 0]
    assert values[1::2, 0].tolist() == [1, 3] and np.isnan(values[::2]).all()
