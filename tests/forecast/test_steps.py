"""Steps agree with pandas' offsets, and survive being written."""

import sys

import numpy as np
import pandas
import pytest

from streamlm.forecast.inference import infer
from streamlm.forecast.steps import HOUR, Step


def dates_of(offset: str, n: int, begin: str = "2022-01-03") -> np.ndarray:
    found = pandas.date_range(begin, periods=n, freq=offset).values
    return np.asarray(found).astype("datetime64[us]")


@pytest.mark.parametrize(
    "offset",
    [
        *("MS", "ME", "2ME", "QS", "QE-FEB", "YS", "YE-JUN", "BME", "BMS", "B", "W-WED", "2W", "D"),
        *("h", "6h", "15min", "30s", "250ms", "SMS", "SME", "WOM-3FRI", "LWOM-FRI", "3D", "BQE"),
    ],
)
def test_what_follows_is_what_pandas_says(offset: str) -> None:
    dates = dates_of(offset, 60)
    step, missing = infer(dates[:48])
    assert missing == 0 and Step.parse(step.spec) == step and str(step)
    assert step.after(dates[47], 12).tolist() == dates[48:].tolist()
    assert step.through(dates[0], dates[47]).tolist() == dates[:48].tolist()


@pytest.mark.parametrize("offset", ["MS", "ME", "B", "W-WED", "D", "h", "SME", "BME"])
def test_missing_rows_are_counted(offset: str) -> None:
    dates = np.delete(dates_of(offset, 60), [7, 8, 30])
    step, missing = infer(dates)
    assert missing == 3 and step == infer(dates_of(offset, 60))[0]


def test_the_step_of_a_run_is_kept_where_it_fits() -> None:
    days, business = dates_of("D", 5), infer(dates_of("B", 40))[0]
    assert infer(days)[0] == Step("day")  # Monday to Friday: nothing says that weekends are closed
    assert infer(days, wanted=business) == (business, 0)
    weeks = dates_of("W-MON", 20)
    assert infer(weeks, wanted=Step("day"))[0] == Step("day", 7)  # days would miss six of seven
    assert infer(np.arange(9), wanted=Step("day"))[0] == Step("row")


def test_dates_without_a_step_are_refused() -> None:
    for dates in (dates_of("D", 40)[[0, 1, 4, 30, 31]], np.array([0, 1, 40])):
        with pytest.raises(
            ValueError, match=r"after the row before, and others .*: the dates keep"
        ):
            infer(dates)
    with pytest.raises(ValueError, match="86401 seconds after the row before, and"):
        infer(dates_of("D", 5) + np.array([0, 1, 0, 0, 0]).astype("timedelta64[s]"))


def test_rows_that_are_not_dates_go_on() -> None:
    step, _ = infer(np.array([10, 20, 30]))
    assert step == Step("row", 10) and step.after(30, 2).tolist() == [40, 50]
    evening = np.datetime64("2022-01-01T23", "us")
    assert Step("time", HOUR).after(evening, 1)[0] == np.datetime64("2022-01-02")


def test_how_much_may_be_missing() -> None:
    sales = dates_of("D", 60)[[0, 1, 4, 6, 7, 12, 13, 19, 20, 22, 30, 31, 32, 40, 41, 44, 50, 51]]
    with pytest.raises(ValueError, match="8 days after the row before, and others from 1 day"):
        infer(sales)
    assert infer(sales, most=4) == (Step("day"), 34)


def test_only_calendar_steps_need_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    days, months = dates_of("D", 40), dates_of("ME", 40)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert infer(days)[0].after(days[-1], 1)[0] == days[-1] + np.timedelta64(1, "D")
    with pytest.raises(ValueError, match=r"need pandas: pip install 'streamlm\[forecast\]'"):
        infer(months)
