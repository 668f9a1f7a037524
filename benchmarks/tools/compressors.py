"""What text compressors make of the same books: xz, PPMd, and PPMd that has read other books first.

PPMd is a byte-level context model of bounded order, the strongest of the classic text compressors
that is at hand as a package. Its order and variant are chosen on validation books, for each use.
"""

import json
import lzma
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ORDERS = tuple(range(5, 17))
VARIANTS = ("H", "I")
PRIMED_ORDERS = (8, 10, 12)
MEMORY = 2 << 30  # bytes that a PPMd model may grow to

Note = Callable[[str], object]


@dataclass(frozen=True)
class Compressed:
    """One compressor in one way of using it.

    Attributes:
        name: for people; sizes: bytes per book, or one number where all books are one stream.
        settings: what was chosen, and on what.
    """

    name: str
    sizes: list[int]
    n_bytes: int
    settings: dict[str, Any]

    @property
    def bits_per_byte(self) -> float:
        return 8 * sum(self.sizes) / self.n_bytes

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bits_per_byte": self.bits_per_byte,
            "sizes": self.sizes,
            **self.settings,
        }


def xz_size(data: bytes) -> int:
    """Bytes that `xz -9e` makes of it."""
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def ppmd_size(data: bytes, *, order: int, variant: str, memory: int = MEMORY) -> int:
    """Bytes that PPMd makes of it."""
    import pyppmd

    return len(pyppmd.compress(data, max_order=order, mem_size=memory, variant=variant))


def xz(books: Sequence[bytes]) -> list[Compressed]:
    """Each book alone, and all of them in one file."""
    n_bytes = sum(map(len, books))
    alone = Compressed("xz -9e, each book alone", [xz_size(book) for book in books], n_bytes, {})
    together = Compressed("xz -9e, all in one file", [xz_size(b"".join(books))], n_bytes, {})
    return [alone, together]


def ppmd(
    books: Sequence[bytes],
    tuning: Sequence[bytes],
    *,
    orders: Sequence[int] = ORDERS,
    note: Note = lambda message: None,
) -> list[Compressed]:
    """Each book alone, and all in one stream, with the settings that suit the `tuning` books best.

    Args:
        tuning: validation books, used in the same two ways.
    """
    n_bytes = sum(map(len, books))
    found = []
    for name, used, tried in (
        ("PPMd, each book alone", list(books), list(tuning)),
        ("PPMd, all in one stream", [b"".join(books)], [b"".join(tuning)]),
    ):
        sizes: dict[tuple[int, str], int] = {}
        for order in orders:
            for variant in VARIANTS:
                note(f"{name}: variant {variant}, order {order}")
                sizes[order, variant] = sum(
                    ppmd_size(text, order=order, variant=variant) for text in tried
                )
        order, variant = min(sizes, key=lambda key: sizes[key])
        note(f"{name}: the test books")
        settings = {
            "order": order,
            "variant": variant,
            "memory_bytes": MEMORY,
            "orders_tried": [min(orders), max(orders)],
            "tuning_bits_per_byte": 8 * sizes[order, variant] / sum(map(len, tried)),
        }
        final = [ppmd_size(text, order=order, variant=variant) for text in used]
        found.append(Compressed(name, final, n_bytes, settings))
    return found


def primed_ppmd(
    books: Sequence[bytes],
    tuning: Sequence[bytes],
    *,
    training: Sequence[Path],
    orders: Sequence[int] = PRIMED_ORDERS,
    note: Note = lambda message: None,
) -> Compressed:
    """Each book alone, by a PPMd model that has read the training files before each of them.

    The size is what the book adds to the compressed training text; see `benchmarks.tools.primed`.
    """
    n_tuning, results = len(tuning), {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "books"
        file.write_bytes(b"\f\n".join([*tuning, *books]))
        for order in orders:
            command = [sys.executable, "-m", "benchmarks.tools.primed"]
            command += ["--books", str(file), "--order", str(order), "--memory", str(MEMORY)]
            command += list(map(str, training))
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    values = json.loads(line)
                    note(f"PPMd, order {order}: {values['note']}")
            if process.returncode:
                raise RuntimeError(f"priming failed with exit code {process.returncode}")
            results[order] = values
    best = min(results, key=lambda order: sum(results[order]["sizes"][:n_tuning]))
    chosen = results[best]
    settings = {
        "order": best,
        "variant": "I, which forgets the oldest contexts when its memory is full",
        "memory_bytes": MEMORY,
        "orders_tried": list(orders),
        "training_bytes": chosen["training_bytes"],
        "tuning_bits_per_byte": 8 * sum(chosen["sizes"][:n_tuning]) / sum(map(len, tuning)),
    }
    name = f"PPMd primed with {chosen['training_bytes'] / 1e6:.3g} MB"
    return Compressed(name, chosen["sizes"][n_tuning:], sum(map(len, books)), settings)
