"""CSV files of many kinds: each gives its right first forecast dates, or its error."""

import re
from pathlib import Path

import pytest

from streamlm.forecast.csv_options import CsvOptions
from streamlm.forecast.reading import read
from tests.support.csv_kinds import KINDS, Kind


def test_there_are_enough_of_different_names() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 50
    assert all(bool(kind.dates) != bool(kind.error) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_of_csv(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / f"{kind.name}.csv"
    path.write_bytes(kind.data)

    def found():  # type: ignore[no-untyped-def]
        return read(path, CsvOptions(**kind.options), columns=kind.columns)

    if kind.error:
        with pytest.raises(ValueError, match=kind.error) as raised:
            found()
        assert str(path) in str(raised.value) or "--timezone" in str(raised.value)
        return
    reading = found()
    series = reading.series
    following = reading.layout.texts(*series.following_with_offsets(len(kind.dates)))
    assert tuple(following) == kind.dates
    assert not kind.step or str(series.step) == kind.step
    assert kind.names is None or series.names == kind.names
    assert len(reading.notes) == len(kind.notes), reading.notes
    for note, pattern in zip(reading.notes, kind.notes, strict=True):
        assert re.search(pattern, note), note
