"""Recipes: a full run from a file, and refused recipes."""

from pathlib import Path

import pytest

from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.training.config import TrainConfig
from streamlm.training.from_recipe import trainer_for
from streamlm.training.recipe import Recipe
from tokenizer import Tokenizer

RECIPE = """
[data]
tokenizer = "{tokenizer}"
train = ["train-*.txt", "more.txt"]
valid = ["valid.txt"]

[model]
n_layers = 1
d_model = 16
n_heads = 1
head_dim = 16
d_ff = 16
segment_len = 8
memory_len = 8
compressed_len = 4
compression_rate = 2

[train]
steps = 2
batch_size = 2
warmup_steps = 0
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, books_tokenizer: Tokenizer) -> str:
    """The text of a recipe whose files are in the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("books.model").write_bytes(books_tokenizer.model_bytes)
    for name in ("train-2", "train-1", "more", "valid", "other"):
        Path(f"{name}.txt").write_text(f"The book {name} of the sea, and so on.\n" * 4)
    return RECIPE.format(tokenizer="books.model")


def load(text: str) -> Recipe:
    Path("recipe.toml").write_text(text, encoding="utf-8")
    return Recipe.load("recipe.toml")


def test_a_recipe_defines_a_full_run(recipe: str, tmp_path: Path) -> None:
    loaded = load(recipe)
    assert [path.name for path in loaded.train_files] == ["train-1.txt", "train-2.txt", "more.txt"]
    assert loaded.train == TrainConfig(steps=2, batch_size=2, warmup_steps=0)
    messages: list[str] = []
    trainer = trainer_for(loaded, tmp_path / "run", device="cpu", progress=messages.append)
    assert messages == [f"encoding {n}.txt" for n in ("train-1", "train-2", "more", "valid")]
    assert trainer.model.config.vocab_size == trainer.tokenizer.vocab_size  # of the tokenizer
    steps = list(trainer.run())
    assert steps[-1].step == 2 and steps[-1].valid_bits_per_byte is not None
    assert load_checkpoint(tmp_path / "run" / "model").model.config.n_layers == 1
    messages.clear()
    trainer_for(loaded, tmp_path / "second run", device="cpu", progress=messages.append)
    assert not messages  # encoded once for all runs in a folder


def test_a_recipe_holds_out_the_end_of_one_large_file(recipe: str, tmp_path: Path) -> None:
    lines = [f"This is line {n} of it, more or less like all the others.\n" for n in range(200)]
    Path("large.txt").write_text("".join(lines))
    changed = recipe.replace('"train-*.txt", "more.txt"', '"large.txt"')
    changed = changed.replace('valid = ["valid.txt"]', "valid_share = 0.2\ncut_bytes = 600")
    trainer = trainer_for(load(changed), tmp_path / "run", device="cpu")
    train, valid = trainer.batches[0].corpus, trainer.valid
    assert len(valid) == round(0.2 * (len(train) + len(valid))) > 1
    decode = trainer.tokenizer.decode
    pieces = [decode(corpus.document(i)) for corpus in (train, valid) for i in range(len(corpus))]
    assert "".join(pieces) == "".join(lines)
    assert all(600 <= len(piece) < 700 and piece.endswith("\n") for piece in pieces[:-1])
    assert (train.n_bytes, train.n_words) != (valid.n_bytes, valid.n_words)
    assert train.n_bytes + valid.n_bytes == len("".join(lines))
    assert train.n_words + valid.n_words == len("".join(lines).split())


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("[train]", "[training]", ValueError, r"recipe\.toml: allowed are \[data\] with"),
        ('valid = ["valid.txt"]', "", ValueError, r"\[data\] with tokenizer, train, valid"),
        ("[data]", "[data]\nvalid_share = 0.1", ValueError, r"train, valid or valid_share"),
        ('valid = ["valid.txt"]', "valid_share = 1.0", ValueError, r"valid_share = 1\.0; allowed"),
        ("[data]", "[data]\ncut_bytes = -1", ValueError, r"cut_bytes = -1; allowed"),
        ("[data]", '[data]\ntest = ["x"]', ValueError, r"\[data\] with tokenizer, train, valid"),
        ('"more.txt"', '"mroe.txt"', FileNotFoundError, r"no data file matches 'mroe\.txt'"),
        ("train-*", "trian-*", FileNotFoundError, r"no data file matches 'trian-\*\.txt'"),
        ('["valid.txt"]', '"valid.txt"', ValueError, r"valid = 'valid\.txt'; allowed: a list"),
        ('["valid.txt"]', "[1]", ValueError, r"valid = \[1\]; allowed: a list"),
        ("steps = 2", "stesp = 2", ValueError, "TrainConfig has no stesp; allowed:"),
        ("steps = 2", "steps = 0", ValueError, "steps = 0; allowed: an integer of at least 1"),
        ("steps = 2", "steps = ", ValueError, r"recipe\.toml is no TOML: .*line 19"),
    ],
)
def test_a_wrong_recipe_is_refused(
    recipe: str, old: str, new: str, error: type[Exception], message: str
) -> None:
    assert old in recipe
    with pytest.raises(error, match=message):
        load(recipe.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("n_layers = 1", "n_layer = 1", ValueError, "ModelConfig has no n_layer; allowed:"),
        ("segment_len = 8", "segment_len = 7", ValueError, "a multiple of compression_rate = 2"),
        ("books.model", "books.modle", FileNotFoundError, r"books\.modle"),
        ("books.model", "more.txt", ValueError, "no SentencePiece model"),
        ("[model]", "[model]\nvocab_size = 99", ValueError, "vocab_size = 99.*8192"),
    ],
)
def test_settings_and_files_of_a_recipe_are_checked(
    recipe: str, tmp_path: Path, old: str, new: str, error: type[Exception], message: str
) -> None:
    assert old in recipe
    with pytest.raises(error, match=message):
        trainer_for(load(recipe.replace(old, new)), tmp_path / "run", device="cpu")
