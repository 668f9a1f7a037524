"""What rubbish costs to read: time per byte of thirty kinds of it, beside English.

    python -m benchmarks.rubbish              # some minutes
    python -m benchmarks.rubbish --bytes 500  # a quick look

Each kind is read twice by the bundled model, in turns with English: by a process of its own, and by
one beside which a busy process runs on every core. Encoding is measured apart from the model. Most
kinds have a token a byte where English has a token for 3.7, so the model has more to do for a byte.
"""

import argparse
import base64
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from streamlm.cli.display import output
from streamlm.cli.threads import wait_asleep
from streamlm.lab.results import usable_cores, write_results

BOOK = Path(__file__).resolve().parents[1] / "streamlm/assets/books/beyond-the-city.txt"
ENGLISH = "English"
GOAL = 20.0  # times English
BUSY = "while True: pass"
REPEATS = 3


def kinds(count: int) -> dict[str, str]:
    """Texts of about `count` bytes of UTF-8 by kind, English among them."""
    chance = random.Random(0)
    book = BOOK.read_text(encoding="utf-8")[5000:]

    def drawn(characters: str) -> str:
        return "".join(chance.choice(characters) for _ in range(count))

    def between(first: int, last: int) -> str:
        return "".join(chr(chance.randrange(first, last)) for _ in range(count))

    made = {
        ENGLISH: book,
        "NUL": "\0" * count,
        "base64 on one line": base64.b64encode(chance.randbytes(count)).decode(),
        "base64 in lines": base64.encodebytes(chance.randbytes(count)).decode(),
        "hexadecimal": chance.randbytes(count).hex(),
        "random bytes as Latin-1": chance.randbytes(count).decode("latin-1"),
        "random bytes, replaced": chance.randbytes(count).decode("utf-8", "replace"),
        "one letter": "a" * count,
        "spaces": " " * count,
        "line ends": "\n" * count,
        "tabs and line ends": drawn("\t\n\r"),
        "digits": drawn("0123456789"),
        "signs": drawn("!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~"),
        "dashes": "-" * count,
        "controls": between(1, 32),
        "random ASCII": between(32, 127),
        "letters without spaces": drawn("abcdefghijklmnopqrstuvwxyz"),
        "a book without spaces": "".join(book[: 2 * count].split()),
        "a book in capitals": book.upper(),
        "a book backwards": book[:count][::-1],
        "combining marks": "e" + "\u0301" * count,
        "marks on every letter": "".join(f"a{chr(chance.randrange(0x300, 0x36F))}" * count),
        "replacement characters": "\ufffd" * count,
        "private use": between(0xE000, 0xF800),
        "ideographs": between(0x4E00, 0x9FFF),
        "Greek": between(0x3B1, 0x3C9),
        "Thai": between(0xE01, 0xE2E),
        "emoji": "👩‍👩‍👧‍👦" * count,
        "zero width": "\u200b\u200d\ufeff" * count,
        "U+2581": "\u2581" * count,
        "JSON": json.dumps([{"id": n, "x": chance.random()} for n in range(count // 8)]),
    }
    cut = {kind: text.encode()[:count].decode(errors="ignore") for kind, text in made.items()}
    assert len(cut) == 31
    return cut


def measure(count: int) -> dict[str, dict[str, float]]:
    """Microseconds a byte, by kind, of encoding and of reading, and tokens a byte."""
    import streamlm
    from tokenizer import StreamEncoder

    checkpoint = streamlm.load("books", device="cpu")
    texts = kinds(count)
    session = streamlm.Session(checkpoint)
    session.feed(texts[ENGLISH])  # windows are full, and kernels are there
    found: dict[str, dict[str, float]] = {}
    for kind, text in texts.items():
        size = len(text.encode())
        encoding, reading, english = list[float](), list[float](), list[float]()
        tokens = 0
        for _ in range(REPEATS):
            began = time.perf_counter()
            encoder = StreamEncoder(checkpoint.tokenizer)
            tokens = len(encoder.encode(text)) + len(encoder.flush())
            encoding.append((time.perf_counter() - began) / size)
            for read, times in ((texts[ENGLISH], english), (text, reading)):
                began = time.perf_counter()
                session.feed(read)
                times.append((time.perf_counter() - began) / len(read.encode()))
        found[kind] = {
            "tokens_per_byte": tokens / size,
            "encode_us": 1e6 * median(encoding),
            "read_us": 1e6 * median(reading),
            "times_english": median(reading) / median(english),
        }
    return found


def measured_apart(count: int, busy: int) -> dict[str, Any]:
    """`measure` in a process of its own, beside so many busy ones."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        command = [sys.executable, "-m", "benchmarks.rubbish", "--child", "--bytes", str(count)]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    finally:
        for other in others:
            other.kill()
            other.wait()
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rubbish", description=__doc__)
    parser.add_argument("--bytes", type=int, default=3000, help="of each kind (default: 3000)")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measure(asked.bytes)))
        return
    wait_asleep()  # as the command line does; OpenMP reads it when a process starts
    cores = usable_cores()
    alone, beside = measured_apart(asked.bytes, 0), measured_apart(asked.bytes, cores)
    output.print(f"{'kind':26}tokens/B  encode µs/B  read µs/B  times English  beside {cores} busy")
    for kind, row in alone.items():
        output.print(
            f"{kind:26}{row['tokens_per_byte']:8.2f}{row['encode_us']:13.2f}{row['read_us']:11.1f}"
            f"{row['times_english']:15.1f}{beside[kind]['times_english']:15.1f}"
        )
    worst = {
        name: max(row["times_english"] for kind, row in rows.items() if kind != ENGLISH)
        for name, rows in (("alone", alone), ("beside", beside))
    }
    output.print(f"at most {worst['alone']:.1f} and {worst['beside']:.1f} times; goal {GOAL:.0f}")
    write_results(
        asked.folder / "rubbish.json",
        settings={"bytes": asked.bytes, "busy": cores, "load": os.getloadavg()[0]},
        figures={"worst": worst, "alone": alone, "beside": beside},
    )


if __name__ == "__main__":
    main()
