"""Error messages about missing data files name the source of the data."""

import tomllib
from pathlib import Path

import pytest

from streamlm.training.data_sources import BOOKS, SPLITS, missing_data, source_of, split_file
from streamlm.training.recipe import Recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_is_known_by_its_books(split: str) -> None:
    path = split_file(split, Path("elsewhere"))
    assert path == Path(f"elsewhere/books/{split}.txt.xz")
    text = missing_data(path)
    assert f"{len(BOOKS[split])} Project Gutenberg books of the PG-19" in text
    assert all(str(number) in text for number in BOOKS[split])
    assert "compressed with xz" in text and "only a form feed" in text


def test_no_book_is_in_two_splits() -> None:
    numbers = [number for books in BOOKS.values() for number in books]
    assert len(numbers) == len(set(numbers)) == 18 + 20 + 12 + 32


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_names_data_of_known_source(recipe: Path) -> None:
    data = tomllib.loads(recipe.read_text(encoding="utf-8"))["data"]
    for pattern in (*data["train"], *data.get("valid", [])):
        assert source_of(Path(pattern)), pattern


def test_other_files_are_not_explained() -> None:
    for name in ("text.txt", "data/books/mine.txt.xz", "valid.txt.xz", "wiki/other.txt.xz"):
        assert source_of(Path(name)) is None and missing_data(Path(name)) == ""
    assert "ETDataset" in missing_data(Path("data/ett/ETTh1.csv"))


def test_a_recipe_without_its_data_names_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train-\*\.txt\.xz'\. .*PG-19 training set"):
        Recipe.load(RECIPES / "books-cpu.toml")
