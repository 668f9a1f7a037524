"""Dates are read by form, and written back as they were."""

from datetime import timedelta

import numpy as np
import pytest

from streamlm.forecast.dates import DateError, formatted, readings
from streamlm.forecast.zones import to_utc, to_wall


@pytest.mark.parametrize(
    ("texts", "second"),
    [
        (["2022-01-31", "2022-02-01"], "2022-02-01T00:00"),
        (["2022/1/31 7:05", "2022/2/1 7:05"], "2022-02-01T07:05"),
        (["2022-01-31T10:00:00.25", "2022-01-31T10:00:00.50"], "2022-01-31T10:00:00.5"),
        (["2022-01-31 10:00:00", "2022-01-31 10:00:00.5"], "2022-01-31T10:00:00.5"),
        (["31.1.2022 13:15", "1.2.2022 13:15"], "2022-02-01T13:15"),
        (["12/31/22 11:30 pm", "1/1/23 12:30 am"], "2023-01-01T00:30"),
        (["31-DEC-2022", "01-JAN-2023"], "2023-01-01T00:00"),
        (["31 December 2022", "1 January 2023"], "2023-01-01T00:00"),
        (["May 31, 2022", "Jun 1, 2022"], "2022-06-01T00:00"),
        (["April 2022", "May 2022"], "2022-05-01T00:00"),
        (["Q4/2022", "Q1/2023"], "2023-01-01T00:00"),
        (["2020-W53-7", "2021-W01-1"], "2021-01-04T00:00"),
        (["2022013123", "2022020100"], "2022-02-01T00:00"),
        (["20220131T2300Z", "20220201T0000Z"], "2022-02-01T00:00"),
        (["1640995200.0", "1640998800.0"], "2022-01-01T01:00"),
        (["1640995200.25", "1640995200.50"], "2022-01-01T00:00:00.5"),
        (["1969", "1970"], "1970-01-01T00:00"),
    ],
)
def test_a_form(texts: list[str], second: str) -> None:
    (found,) = readings(texts)
    assert found.wall[1] == np.datetime64(second)
    whens = found.wall.astype(object).tolist()
    written = [found.write(when, timedelta(0)) for when in whens]
    assert written[1] == texts[1] and (written[0] == texts[0] or "." in texts[1])


@pytest.mark.parametrize(
    ("texts", "message", "index"),
    [
        (["2022-01-31", "2022-02-30"], "date '2022-02-30' does not exist", 1),
        (["2022-01-31", "31.01.2022"], "as in the first row .2022-01-31.", 1),
        (["2022-01-31 10:00", "2022-01-31 25:00"], "'2022-01-31 25:00' does not exist", 1),
        (["2022-01-31 10:00Z", "2022-01-31 11:00"], "all with a time zone or none", 1),
        (["12345678", "12345679"], "can be read in several ways", 0),
        (["0.5", "1.0"], "can be read in several ways", 0),
        (["0", "1", "x"], "date 'x'; allowed: whole numbers", 2),
        (["00:15"], "date '00:15'; allowed: forms such as", 0),
        (["now", "today"], "date 'now'; allowed", 0),
    ],
)
def test_what_is_no_date_is_refused(texts: list[str], message: str, index: int) -> None:
    with pytest.raises(DateError, match=message) as raised:
        readings(texts)
    assert raised.value.index == index


def test_both_orders_of_day_and_month_are_offered() -> None:
    found = readings(["01/02/2022", "01/03/2022"])
    assert [each.form for each in found] == ["day/month/year", "month/day/year"]
    assert [str(each.wall[0])[:10] for each in found] == ["2022-02-01", "2022-01-02"]


def test_a_given_form() -> None:
    found = formatted(["01|02|2022 +0100"], "%d|%m|%Y %z")
    assert str(found.wall[0])[:10] == "2022-02-01" and found.offsets is not None
    assert found.write(found.wall[0].astype(object), timedelta(hours=1)) == "01|02|2022 +0100"
    assert formatted(["44562.5"], "excel").wall[0] == np.datetime64("2022-01-01T12")
    assert formatted(["2022"], "index").wall.tolist() == [2022]
    with pytest.raises(DateError, match="date '1'; allowed: --date-format '%Y'"):
        formatted(["2022", "1"], "%Y")
    with pytest.raises(ValueError, match=r"--date-format 'dd\.mm'; allowed: strftime's"):
        formatted(["1.1"], "dd.mm")


def test_clocks_go_round_a_year_and_back() -> None:
    utc = np.datetime64("2022-01-01T00", "us") + np.arange(8760) * np.timedelta64(1, "h")
    for zone in ("Europe/Berlin", "America/New_York", "America/St_Johns", "UTC"):
        wall, offsets = to_wall(utc, zone)
        assert (wall - offsets).tolist() == utc.tolist()
        assert to_utc(wall, zone).tolist() == utc.tolist(), zone
