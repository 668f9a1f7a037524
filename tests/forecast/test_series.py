"""Series and their windows: dates, splits, scales."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from streamlm.forecast.reading import load
from streamlm.forecast.series import Scale, Series, Windows, splits, time_marks
from streamlm.forecast.steps import HOUR, MINUTE, Step
from tests.support.waves import CPU, write


def test_a_series_is_loaded(csv: Path, tmp_path: Path) -> None:
    series = load(csv)
    assert series.names == ("a", "b") and series.values.shape == (400, 2)
    assert series.ends == (280, 320, 400) and series.step == Step("time", HOUR)
    assert series.only(["b"]).values[:, 0].tolist() == series.values[:, 1].tolist()
    assert str(series.following(2)[1]) == str(series.dates[-1] + np.timedelta64(2, "h"))
    other = tmp_path / "other.csv"
    other.write_text("x, Timestamp\n1,2016/07/01 00:00\n\n2,2016/07/02 00:00\n4,2016/07/04 00:00\n")
    found = load(other)
    assert found.values.tolist() == [[1], [2], [4]] and found.names == ("x",)
    assert found.ends == (2, 2, 3)


@pytest.mark.parametrize(("minutes", "rows"), [(60, 24), (15, 96)])
def test_the_papers_splits(minutes: int, rows: int, tmp_path: Path) -> None:
    n = 20 * 30 * rows + 7
    series = load(write(tmp_path / "ETTx.csv", n, minutes=minutes))
    assert series.ends == (12 * 30 * rows, 16 * 30 * rows, 20 * 30 * rows)


def test_time_marks_agree_with_the_calendar() -> None:
    texts = ["2016-02-29T00:15:00", "2016-12-31T23:45:00", "2017-01-01T05:00:00"]
    found = time_marks(np.array(texts, "datetime64[s]"), Step("time", 15 * MINUTE))
    for row, text in zip(found, texts, strict=True):
        date = datetime.fromisoformat(text)
        wanted = [
            date.minute / 59,
            date.hour / 23,
            date.weekday() / 6,
            (date.day - 1) / 30,
            (date.timetuple().tm_yday - 1) / 365,
        ]
        assert row.tolist() == pytest.approx([value - 0.5 for value in wanted], abs=1e-6)
    dates = np.array(texts, "datetime64[s]")
    assert time_marks(dates, Step("time", HOUR)).tolist() == found[:, 1:].tolist()
    assert time_marks(dates, Step("day")).tolist() == found[:, 2:].tolist()
    assert time_marks(np.arange(3), Step("row")).tolist() == [[0], [0], [0]]


def test_windows_of_different_parts_do_not_overlap(csv: Path) -> None:
    series = load(csv)
    scale = Scale.of(series)
    train_part = scale.apply(series.values[:280])
    assert train_part.mean(axis=0) == pytest.approx(0, abs=1e-5)
    assert train_part.std(axis=0) == pytest.approx(1, abs=1e-5)
    assert scale.undo(train_part) == pytest.approx(series.values[:280], abs=1e-5)
    forecast: dict[str, set[int]] = {}
    for part, low, high in (("train", 0, 280), ("valid", 280, 320), ("test", 320, 400)):
        windows = Windows(series, scale, part, input_len=16, horizon=4)
        whole = windows.take(torch.arange(len(windows)), CPU)
        assert whole.past.shape == (len(windows), 16, 2)
        assert whole.future_marks.shape == (len(windows), 4, 4)
        rows = torch.from_numpy(scale.apply(series.values))
        first = low + (16 if part == "train" else 0)
        assert torch.equal(whole.future[0], rows[first : first + 4])
        assert torch.equal(whole.past[0], rows[first - 16 : first])
        assert torch.equal(whole.future[-1], rows[high - 4 : high])
        forecast[part] = set(range(first, high))
    assert not forecast["train"] & forecast["test"] and not forecast["valid"] & forecast["test"]
    windows = Windows(series, scale, "test", input_len=16, horizon=4)
    batches = [len(batch.future) for batch in windows.batches(32, CPU)]
    assert sum(batches) == len(windows) == 77 and batches[-1] == 13  # none is dropped
    with pytest.raises(ValueError, match="the valid part has 56 rows; allowed: at least 66"):
        Windows(series, scale, "valid", input_len=16, horizon=50)


def test_short_parts_get_a_horizon_or_more() -> None:
    dates = np.arange(144)
    series = Series(dates, dates[:, None].astype(float), ("a",), splits("a.csv", 144, Step("row")))
    assert series.ends == (101, 115, 144)
    assert series.reserving(12).ends == (94, 115, 144)  # valid: 12 rows and 9 more windows
    assert series.reserving(24).ends == (87, 115, 144)
    with pytest.raises(ValueError, match="144 rows, too few for a horizon of 60; allowed: at most"):
        series.reserving(60)
    assert series.reserving(24).reserving(24).ends == series.reserving(24).ends
