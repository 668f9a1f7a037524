"""How many bytes PPMd needs for each book after it has read training files.

It reads the training text once; then, for each book, a copy of the process (fork) goes on with that
book. What a book adds to the compressed training text is its size. In a process of its own, because
the model takes gigabytes. Prints one JSON object per line, the last of them with the result.
"""

import argparse
import json
import lzma
import os
from pathlib import Path
from typing import Any

STEP = 1 << 22


def grown(encoder: Any, data: bytes) -> int:
    """Bytes that the encoder would give out for `data` and its end; the encoder stays as it is."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        size = len(encoder.encode(data)) if data else 0
        os.write(write, str(size + len(encoder.flush())).encode())
        os._exit(0)
    os.close(write)
    answer = os.read(read, 64)
    os.close(read)
    os.waitpid(child, 0)
    return int(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--order", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("training", type=Path, nargs="+")
    options = parser.parse_args()
    from pyppmd import PPMD8_RESTORE_METHOD_CUT_OFF, Ppmd8Encoder

    encoder: Any = Ppmd8Encoder(options.order, options.memory, PPMD8_RESTORE_METHOD_CUT_OFF)
    training_bytes = 0
    for path in options.training:
        opener: Any = lzma.open if path.suffix == ".xz" else open
        with opener(path, "rb") as file:
            while block := file.read(STEP):
                encoder.encode(block)
                training_bytes += len(block)
        print(json.dumps({"note": f"{training_bytes / 1e6:.0f} MB of training text"}), flush=True)
    end = grown(encoder, b"")
    sizes = []
    books = options.books.read_bytes().split(b"\f\n")
    for book in books:
        sizes.append(grown(encoder, book) - end)
        print(json.dumps({"note": f"book {len(sizes)} of {len(books)}"}), flush=True)
    result = {"note": "done", "sizes": sizes, "training_bytes": training_bytes}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
