"""A CSV file as a table of texts, with the true line of each row."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", " ": "space"}
GUESSED = ",;\t|"
SAMPLE = 50  # lines from which the delimiter is guessed
# The first bytes of files that people take for CSV files.
BINARY = {
    b"PK\x03\x04": "a spreadsheet or ZIP file",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet",
    b"\x1f\x8b": "compressed with gzip",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF file",
}
INDEX_NAMES = ("", "unnamed: 0")  # of the columns in which tables write their row numbers


@dataclass(frozen=True)
class Table:
    """The fields of a CSV file.

    Attributes:
        header: stripped names; `header_line`: its line, from 1.
        columns: the stripped texts of each column.
        lines: the line on which each row begins.
        notes: what was done to read the file.
    """

    path: Path
    delimiter: str
    header: list[str]
    header_line: int
    columns: list[list[str]]
    lines: list[int]
    notes: list[str]

    def where(self, row: int) -> str:
        """The file and line of a row, for messages."""
        return f"{self.path}, line {self.lines[row]}"

    def error(self, row: int, message: str) -> ValueError:
        """An error that names the file and the line of a row."""
        return ValueError(f"{self.where(row)}: {message}")


def read_table(path: Path, delimiter: str | None = None) -> Table:
    """Read a CSV file: UTF-8, UTF-16 with a mark, or Windows-1252; any usual delimiter.

    Empty lines and lines of a leading comment (#) are skipped.

    Raises:
        ValueError: the file is no text, has no header or no rows, or a row has another number of
            fields than the header.
    """
    text, notes = _text(path)
    lines = text.splitlines(keepends=True)
    skipped = 0
    while skipped < len(lines) and (not lines[skipped].strip() or lines[skipped][0] == "#"):
        skipped += 1
    chosen = _delimiter(path, lines[skipped:], delimiter)
    rows = _rows(lines[skipped:], chosen, skipped)
    try:
        header_line, header = next(rows)
    except StopIteration:
        raise ValueError(f"{path}, line 1: the file is empty; allowed: a line of names") from None
    columns: list[list[str]] = [[] for _ in header]
    numbers: list[int] = []
    try:
        for number, row in rows:
            while len(row) > len(header) and not row[-1]:
                row.pop()
            if len(row) != len(header):
                sign = DELIMITERS.get(chosen, chosen)
                raise ValueError(
                    f"{path}, line {number}: {len(row)} fields; allowed: {len(header)}, as in the "
                    f"header (line {header_line}), separated by {sign}s"
                )
            for column, field in zip(columns, row, strict=True):
                column.append(field)
            numbers.append(number)
    except csv.Error as error:
        last = numbers[-1] if numbers else header_line
        raise ValueError(f"{path}, after line {last}: {error}") from None
    if not numbers:
        raise ValueError(f"{path}, line {header_line}: no rows follow the names")
    filled = [i for i, name in enumerate(header) if name or any(columns[i])]  # drops "a,b,"
    return Table(
        path, chosen, [header[i] for i in filled], header_line, [columns[i] for i in filled],
        numbers, notes,
    )  # fmt: skip


def _text(path: Path) -> tuple[str, list[str]]:
    data = path.read_bytes()
    for start, kind in BINARY.items():
        if data.startswith(start):
            raise ValueError(f"{path} is {kind}; allowed: a CSV file, which is text")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16"), [f"{path} is UTF-16"]
    if b"\0" in data:
        raise ValueError(f"{path} is no text: NUL at byte {data.index(0):,}; allowed: a CSV file")
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        note = f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); read as "
    try:
        return data.decode("cp1252"), [note + "Windows-1252"]
    except UnicodeDecodeError:
        return data.decode("latin-1"), [note + "Latin-1"]


def _rows(lines: Iterable[str], delimiter: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with its first line in the file."""
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter == " ", strict=True)
    begin = skipped + 1
    for row in reader:
        if any(field.strip() for field in row):
            yield begin, [field.strip() for field in row]
        begin = skipped + reader.line_num + 1


def _delimiter(path: Path, lines: list[str], given: str | None) -> str:
    names = {name: sign for sign, name in DELIMITERS.items()}
    if given is not None:
        sign = names.get(given, given.replace("\\t", "\t"))
        if len(sign) != 1 or sign in '"\n\r':
            raise ValueError(
                f"--delimiter {given!r}; allowed: one character, or {', '.join(names)}"
            )
        return sign
    best, most = ",", 0.0
    for sign in GUESSED:
        try:
            sizes = [len(row) for _, row in _rows(lines[:SAMPLE], sign, 0)]
        except csv.Error:
            continue
        # The header counts, so that decimal commas in a file of semicolons do not.
        if sizes and sizes[0] > 1:
            alike = sum(size == sizes[0] for size in sizes) / len(sizes) * sizes[0]
            if alike > most:
                best, most = sign, alike
    if (
        not most
        and lines
        and len(lines[0].split()) > 1
        and not any("," in x for x in lines[:SAMPLE])
    ):
        columns = len(lines[0].split())
        if all(len(line.split()) == columns for line in lines[:SAMPLE] if line.strip()):
            return " "
    return best
