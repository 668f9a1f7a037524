"""Training of tokenizers on texts and on files of books."""

import lzma
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.texts import CORPUS, SYMBOL
from tokenizer import SentencePieceTokenizer, train
from tokenizer.training import main, read_books, sample_books

ROOT = Path(__file__).resolve().parents[2]


def test_training_is_deterministic_and_leaves_one_file(tmp_path: Path) -> None:
    out = tmp_path / "a.model"
    out.write_bytes(b"an older model")
    texts = [CORPUS, "1859, " * 100, "a" * 10_000]
    assert train(texts, out, vocab_size=400, character_coverage=1.0) == out
    again = train(iter(texts), tmp_path / "b.model", vocab_size=400, character_coverage=1.0)
    assert out.read_bytes() == again.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.model", "b.model"]
    tok = SentencePieceTokenizer(out)
    assert tok.vocab_size == 400
    pieces = [tok.decode_bytes([i]) for i in range(400)]
    assert b"1" in pieces[261:] and not [p for p in pieces if re.search(rb"\d\d", p)]


def test_training_ignores_newlines_spaces_and_nul(tmp_path: Path) -> None:
    one, two = (
        train([text * 50], tmp_path / name, vocab_size=273).read_bytes()
        for name, text in (("a", f"was{SYMBOL}it\0best\n"), ("b", "was\nit\nbest\n"))
    )
    assert one == two


def test_training_needs_text(tmp_path: Path) -> None:
    for texts in ([], ["", "\n\n"]):
        with pytest.raises(ValueError, match="no text"):
            train(texts, tmp_path / "x.model")
    for size in (100, 50_000):
        with pytest.raises(ValueError, match=f"cannot train {size} pieces"):
            train([CORPUS], tmp_path / "x.model", vocab_size=size)
    assert not list(tmp_path.iterdir())


def write_books(folder: Path) -> tuple[list[Path], list[str]]:
    """Three books of numbered lines in two files, one of them compressed."""
    sizes = {"a": 6400, "b": 3200, "c": 640}
    books = ["".join(f"{name} line {i}\r\n" for i in range(n)) for name, n in sizes.items()]
    (folder / "plain.txt").write_bytes(books[0].encode())
    with lzma.open(folder / "packed.txt.xz", "wb") as packed:
        packed.write("\f\n".join(books[1:]).encode())
    return [folder / "plain.txt", folder / "packed.txt.xz"], books


def test_books_are_read_unchanged(tmp_path: Path) -> None:
    (plain, packed), books = write_books(tmp_path)
    assert read_books(plain) == books[:1]
    assert read_books(packed) == books[1:]
    with pytest.raises(ValueError, match=r"books\.pdf: expected a \.txt or \.txt\.xz file"):
        read_books(tmp_path / "books.pdf")


def test_a_sample_takes_its_share_of_each_book(tmp_path: Path) -> None:
    files, books = write_books(tmp_path)
    total = sum(map(len, books))
    assert "\n".join(sample_books(files, 2 * total)) == "\n".join(books)
    sample = list(sample_books(files, total // 4))
    for name, book in zip("abc", books, strict=True):
        found = re.findall(rf"^{name} line (\d+)", "\n".join(sample), re.MULTILINE)
        mine = [int(number) for number in found]
        lines = book.count("\n")
        assert len(mine) == pytest.approx(lines / 4, rel=0.25)
        assert max(mine) > 0.8 * lines and min(mine) < 0.5 * lines and mine == sorted(set(mine))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, _ = write_books(tmp_path)
    out = tmp_path / "cli.model"
    arguments = ["--out", str(out), "--vocab-size", "280", *map(str, files)]
    main(arguments)
    assert "280 pieces" in capsys.readouterr().out
    same = train(sample_books(files, 40_000_000), tmp_path / "same.model", vocab_size=280)
    assert out.read_bytes() == same.read_bytes()
    out.unlink()
    command = [sys.executable, "-W", "error", "-m", "tokenizer.training", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert out.read_bytes() == same.read_bytes()
