"""Forms of written dates: regular expressions, their meaning, and writing in the same form."""

import re
from datetime import date, datetime, timedelta

MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september"),
    *("october", "november", "december"),
)
_Y, _y, _m, _d = r"(?P<Y>\d{4})", r"(?P<y>\d\d)", r"(?P<m>\d{1,2})", r"(?P<d>\d{1,2})"
_b, _q, _w = r"(?P<b>[A-Za-z]{3,9})\.?", r"[Qq](?P<q>[1-4])", r"W(?P<w>\d\d)"
_hour = r"(?P<H>\d{1,2})"
_zone = r"(?P<z>Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)"
_time = (
    rf"(?:(?:,? +|T){_hour}(?::(?P<M>\d\d)(?::(?P<S>\d\d)(?:[.,](?P<f>\d{{1,9}}))?)?)?"
    rf"(?: ?(?P<p>[AaPp]\.?[Mm]\.?))?(?: ?{_zone})?)?"
)
_time_packed = rf"(?:[T ]?(?P<H>\d\d):?(?:(?P<M>\d\d):?(?P<S>\d\d)?)?{_zone}?)?"
# Forms by name; where two fit a column, the order of day and month is what differs.
FORMS = {
    "year-month-day": rf"{_Y}(?P<s>[-/.]){_m}(?P=s){_d}{_time}",
    "day/month/year": rf"{_d}(?P<s>[-/.]){_m}(?P=s){_Y}{_time}",
    "month/day/year": rf"{_m}(?P<s>[-/]){_d}(?P=s){_Y}{_time}",
    "day/month/yy": rf"{_d}(?P<s>[-/.]){_m}(?P=s){_y}{_time}",
    "month/day/yy": rf"{_m}(?P<s>[-/]){_d}(?P=s){_y}{_time}",
    "yy-month-day": rf"{_y}(?P<s>[-/]){_m}(?P=s){_d}{_time}",
    "day name year": rf"{_d}[-/ .]*{_b}[-/, ]*{_Y}{_time}",
    "day name yy": rf"{_d}[-/ ]{_b}[-/ ]{_y}{_time}",
    "name day year": rf"{_b} {_d},? {_Y}{_time}",
    "year-month": rf"{_Y}[-/.]{_m}",
    "month/year": rf"{_m}[-/.]{_Y}",
    "name year": rf"{_b}[-/, ]*{_Y}",
    "year name": rf"{_Y}[-/ ]*{_b}",
    "name yy": rf"{_b}[-/ '][ ']?{_y}",
    "year quarter": rf"{_Y}[-/ ]*{_q}",
    "quarter year": rf"{_q}[-/ ]*{_Y}",
    "year week": rf"{_Y}-?{_w}(?:-?(?P<u>[1-7]))?",
    "yyyymmdd": rf"(?P<Y>(?:1[6-9]|2[01])\d\d)(?P<m>\d\d)(?P<d>\d\d){_time_packed}",
    "yyyymm": r"(?P<Y>(?:1[89]|20)\d\d)(?P<m>0[1-9]|1[0-2])",
    "year": r"(?P<Y>(?:1[6-9]|2[01])\d\d)",
}
PATTERNS = {name: re.compile(pattern) for name, pattern in FORMS.items()}


def moment(fields: dict[str, str | None]) -> datetime:
    """The date and time that the fields of a form say; ValueError if there is no such."""
    year = int(fields.get("Y") or 0)
    if short := fields.get("y"):
        year = int(short) + (2000 if int(short) < 70 else 1900)
    if week := fields.get("w"):
        found = datetime.combine(
            date.fromisocalendar(year, int(week), int(fields.get("u") or 1)), datetime.min.time()
        )
    else:
        month = int(fields.get("m") or 1)
        if name := fields.get("b"):
            name = name.lower()
            month = 1 + next(i for i, each in enumerate(MONTHS) if _abbreviates(name, each))
        if quarter := fields.get("q"):
            month = 3 * int(quarter) - 2
        found = datetime(year, month, int(fields.get("d") or 1))
    hour = int(fields.get("H") or 0)
    if half := fields.get("p"):
        if not 1 <= hour <= 12:
            raise ValueError
        hour = hour % 12 + 12 * (half[0] in "Pp")
    fraction = (fields.get("f") or "0").ljust(6, "0")[:6]
    minute, second = int(fields.get("M") or 0), int(fields.get("S") or 0)
    return found.replace(hour=hour, minute=minute, second=second, microsecond=int(fraction))


def _abbreviates(name: str, month: str) -> bool:
    return month.startswith(name) or (name, month) == ("sept", "september")


class Writer:
    """Writes dates as a sample is written.

    Args:
        padded: whether days, months and hours have two digits.
    """

    def __init__(self, form: str, sample: str, *, padded: bool) -> None:
        found = PATTERNS[form].fullmatch(sample)
        if found is None:
            raise ValueError(f"date {sample!r}; allowed: {form}")
        fields = {key: found.span(key) for key, text in found.groupdict().items() if text}
        fields.pop("s", None)
        self.sample, self.padded = sample, padded
        self.spans = sorted(fields.items(), key=lambda field: field[1])
        self.half_days, self.weeks = "p" in fields, "w" in fields

    def __call__(self, when: datetime, offset: timedelta) -> str:
        """The text for a date as written, with its offset from UTC."""
        parts, at = [], 0
        for key, (begin, end) in self.spans:
            was = self.sample[begin:end]
            parts += [self.sample[at:begin], self._field(key, when, offset, was)]
            at = end
        return "".join([*parts, self.sample[at:]])

    def _field(self, key: str, when: datetime, offset: timedelta, was: str) -> str:
        week = when.isocalendar()
        if key in "mdH":
            hour = when.hour % 12 or 12 if self.half_days else when.hour
            number = {"m": when.month, "d": when.day, "H": hour}[key]
            return f"{number:02}" if self.padded else str(number)
        if key == "b":
            name = MONTHS[when.month - 1]
            name = name if len(was) > 3 else name[:3]
            return name.upper() if was.isupper() else name if was.islower() else name.title()
        if key == "z":
            return was if was.isalpha() and not offset else _zone_text(offset, was)
        if key == "p":
            half = "pm" if when.hour >= 12 else "am"
            half = half if "." not in was else f"{half[0]}.m."
            return half.upper() if was.isupper() else half
        if key == "f":
            return f"{when.microsecond:06}".ljust(len(was), "0")[: len(was)]
        number, width = {
            "Y": (week.year if self.weeks else when.year, 4),
            "y": (when.year % 100, 2),
            "q": ((when.month + 2) // 3, 1),
            "w": (week.week, 2),
            "u": (week.weekday, 1),
            "M": (when.minute, 2),
            "S": (when.second, 2),
        }[key]
        return f"{number:0{width}}"


def _zone_text(offset: timedelta, was: str) -> str:
    minutes = round(offset.total_seconds() / 60)
    hours, rest = divmod(abs(minutes), 60)
    colon = ":" if ":" in was or was.isalpha() else ""
    tail = f"{colon}{rest:02}" if len(was) != 3 or was.isalpha() or rest else ""
    return f"{'-' if minutes < 0 else '+'}{hours:02}{tail}"
