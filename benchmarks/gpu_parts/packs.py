"""Training data as packs of token ids: what travels instead of the text.

A pack is two files: NAME.ids.xz, the ids of all documents one after another as uint16 (little
endian), and NAME.json, where they begin and what they were. Reading one needs no tokenizer and
nothing but Python and numpy.
"""

import json
import lzma
import os
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from streamlm.training.data import Corpus, load_corpus
from tokenizer import Tokenizer

# Ids are pairs of bytes: position bits of one suit them half a per cent better than the preset's.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 1, "pb": 1}]


def data_files(recipe: Path, folder: Path) -> list[Path]:
    """The recipe's data files, looked for in a folder.

    Raises:
        FileNotFoundError: none is there; names the patterns.
    """
    data = tomllib.loads(recipe.read_text(encoding="utf-8"))["data"]
    patterns = [Path(pattern).name for pattern in (*data["train"], *data["valid"])]
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    if not found:
        raise FileNotFoundError(f"no data in {folder}; looked for {', '.join(patterns)}")
    return found


def pack_name(path: Path) -> str:
    """ "train-000" of `train-000.txt.xz`."""
    return path.name.partition(".")[0]


def write_pack(path: Path, tokenizer: Tokenizer, folder: Path) -> int:
    """Encode a file of documents into a pack; returns its bytes.

    Raises:
        ValueError: ids that two bytes do not hold.
    """
    if tokenizer.vocab_size > 1 << 16:
        raise ValueError(f"vocab_size = {tokenizer.vocab_size}; allowed: at most 65536")
    corpus, name = load_corpus([path], tokenizer), pack_name(path)
    meta = {
        "lengths": np.diff(corpus.offsets).tolist(),
        "n_bytes": corpus.n_bytes,
        "n_words": corpus.n_words,
        "tokenizer": tokenizer.fingerprint,
    }
    ids = corpus.tokens.astype("<u2").tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    data = lzma.compress(ids, filters=FILTERS)
    put(folder / f"{name}.ids.xz", data)
    put(folder / f"{name}.json", json.dumps(meta).encode())  # last: with it the pack is whole
    return len(data)


def put(path: Path, data: bytes) -> None:
    """Write a file beside its place, and put it there at once."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(data)
    os.replace(fresh, path)


def has_pack(folder: Path, name: str, tokenizer: Tokenizer) -> bool:
    """Whether a pack of this tokenizer is there."""
    try:
        meta = json.loads((folder / f"{name}.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(meta.get("tokenizer") == tokenizer.fingerprint)


def write_packs(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    tell: Callable[[str], None] = lambda message: None,
) -> None:
    """Pack what is not packed yet."""
    for path in files:
        name = pack_name(path)
        if has_pack(folder, name, tokenizer):
            tell(f"{name}: there already")
        else:
            tell(f"{name}: {write_pack(path, tokenizer, folder):,} bytes")


def read_packs(folder: Path, pattern: str, tokenizer: Tokenizer) -> Corpus:
    """The documents of all packs whose names match, in the order of the names.

    Raises:
        FileNotFoundError: there is none.
        ValueError: made with another tokenizer, or damaged.
    """
    metas = sorted(folder.glob(f"{pattern}.json"))
    if not metas:
        raise FileNotFoundError(f"no packs {pattern!r} in {folder}; `carry` makes them")
    with ThreadPoolExecutor() as threads:  # unpacking lets go of the interpreter
        parts = list(threads.map(lambda path: _read_pack(path, tokenizer), metas))
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return Corpus(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]),
        sum(part.n_bytes for part in parts),
        sum(part.n_words for part in parts),
    )


def _read_pack(path: Path, tokenizer: Tokenizer) -> Corpus:
    meta = json.loads(path.read_text())
    if meta["tokenizer"] != tokenizer.fingerprint:
        raise ValueError(f"{path.stem} was encoded with another tokenizer: pack it again")
    data = path.with_name(path.stem + ".ids.xz").read_bytes()
    try:
        ids = np.frombuffer(lzma.decompress(data), "<u2").astype(np.uint16, copy=False)
    except lzma.LZMAError as error:
        raise ValueError(f"{path.stem} is damaged: {error}") from None
    offsets = np.concatenate([[0], np.cumsum(meta["lengths"])])
    if offsets[-1] != len(ids):
        raise ValueError(f"{path.stem} is damaged: {len(ids)} ids, {offsets[-1]} were packed")
    return Corpus(ids, offsets, meta["n_bytes"], meta["n_words"])
