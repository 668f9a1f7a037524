"""Does a session recall what it read a million tokens ago? Things planted in books, asked at the end.

python -m benchmarks.archive text --out runs/planted.txt        # books with things in them
streamlm feed runs/planted.txt --session planted --model smollm2    # an hour of one core
python -m benchmarks.archive ask --text runs/planted.txt --session sessions/planted.zarr
"""

import argparse
from pathlib import Path

import streamlm
from benchmarks.archive_parts.stream import build


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.archive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    text = commands.add_parser("text", help="write the text that is to be fed")
    text.add_argument("--data", type=Path, default=Path("data/books/test.txt.xz"))
    text.add_argument("--model", default="smollm2", help="whose tokens are counted")
    text.add_argument("--tokens", type=int, default=1_000_000)
    text.add_argument("--n", type=int, default=20, help="things of each task in each band")
    text.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.command == "text":
        tokenizer = streamlm.load(options.model).tokenizer
        planted, _ = build(options.data, tokenizer, tokens=options.tokens, n=options.n)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(planted, encoding="utf-8")


if __name__ == "__main__":
    main()
