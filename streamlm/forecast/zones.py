"""Time zones: clocks on the wall and UTC, through changes of daylight saving."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np


def zone_of(name: str) -> ZoneInfo:
    """The time zone of this name.

    Raises:
        ValueError: there is none.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        allowed = "a name of the time zone database, such as Europe/Berlin or UTC"
        raise ValueError(f"--timezone {name!r}; allowed: {allowed}") from None


def to_wall(instants: np.ndarray, zone: str) -> tuple[np.ndarray, np.ndarray]:
    """What clocks in a zone show, and their offsets from UTC.

    Args:
        instants: [n] datetime64[us] in UTC.
    """
    place = zone_of(zone)
    local = [each.replace(tzinfo=UTC).astimezone(place) for each in instants.astype(object)]
    wall = np.array([each.replace(tzinfo=None) for each in local], "datetime64[us]")
    return wall, np.array([each.utcoffset() for each in local], "timedelta64[us]")


def to_utc(wall: np.ndarray, zone: str) -> np.ndarray:
    """The instants at which clocks in a zone show these times, in rising order where they can be.

    An hour that clocks show twice is the earlier one, unless a row before it was later.

    Raises:
        IndexError: clocks never show a time; its argument is the row.
    """
    place, found = zone_of(zone), []
    before: datetime | None = None
    for row, when in enumerate(wall.astype(object)):
        instant = _utc(when, place, fold=0)
        if before is not None and instant <= before:
            instant = _utc(when, place, fold=1)
        if instant.replace(tzinfo=UTC).astimezone(place).replace(tzinfo=None) != when:
            raise IndexError(row)
        found.append(instant)
        before = instant
    return np.array(found, "datetime64[us]")


def offsets_of(wall: np.ndarray, zone: str) -> np.ndarray:
    """The offsets from UTC of single times on the wall, such as those of days."""
    place, zero = zone_of(zone), timedelta(0)
    offsets = [when.replace(tzinfo=place).utcoffset() or zero for when in wall.astype(object)]
    return np.array(offsets, "timedelta64[us]")


def _utc(when: datetime, place: ZoneInfo, *, fold: int) -> datetime:
    return when.replace(tzinfo=place, fold=fold).astimezone(UTC).replace(tzinfo=None)
