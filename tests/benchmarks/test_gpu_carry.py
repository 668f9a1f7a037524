"""What travels to a borrowed GPU and back: data as packs of token ids, weights in pieces."""

import json
import lzma
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import carry as carrying
from benchmarks.gpu_parts.carry import carry, commands, tree_bytes
from benchmarks.gpu_parts.packs import data_files, read_packs, write_packs
from benchmarks.gpu_parts.weights import LIST, export, join
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.training.data import load_corpus
from tokenizer import Tokenizer

Prose = Callable[..., str]


@pytest.fixture
def data(tmp_path: Path, prose: Prose) -> Path:
    """A folder named as the recipe's: two files to train on and one to validate."""
    folder = tmp_path / "data"
    folder.mkdir()
    for index, name in enumerate(("train-000", "train-001", "valid")):
        documents = [prose(90 + 30 * index, seed=index), prose(50, seed=9 + index)]
        with lzma.open(folder / f"{name}.txt.xz", "wt", encoding="utf-8") as file:
            file.write("\f\n".join(documents))
    (folder / "test.txt").write_text("not of the recipe")
    return folder


def test_packs_are_the_corpus(data: Path, tmp_path: Path, books_tokenizer: Tokenizer) -> None:
    files = data_files(gpu.RECIPE, data)
    assert [path.name[:9] for path in files] == ["train-000", "train-001", "valid.txt"]
    packs = tmp_path / "packs"
    write_packs(files, books_tokenizer, packs)
    found = read_packs(packs, "train-*", books_tokenizer)
    wanted = load_corpus(files[:2], books_tokenizer)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.offsets, wanted.offsets)
    assert (found.n_bytes, found.n_words) == (wanted.n_bytes, wanted.n_words)
    assert found.tokens.dtype == np.uint16 and len(found) == 4
    assert len(read_packs(packs, "valid", books_tokenizer)) == 2


def test_packs_are_not_made_twice(data: Path, tmp_path: Path, books_tokenizer: Tokenizer) -> None:
    told: list[str] = []
    files, packs = data_files(gpu.RECIPE, data), tmp_path / "packs"
    write_packs(files, books_tokenizer, packs)
    (packs / "valid.json").unlink()  # as if it had been interrupted
    write_packs(files, books_tokenizer, packs, tell=told.append)
    assert [": there already" in message for message in told] == [True, True, False]


def test_packs_that_do_not_fit_are_refused(
    data: Path, tmp_path: Path, books_tokenizer: Tokenizer
) -> None:
    packs = tmp_path / "packs"
    with pytest.raises(FileNotFoundError, match=r"train-\*\.txt\.xz"):
        data_files(gpu.RECIPE, tmp_path)
    with pytest.raises(FileNotFoundError, match="valid"):
        read_packs(packs, "valid", books_tokenizer)
    write_packs(data_files(gpu.RECIPE, data), books_tokenizer, packs)
    whole, meta = (packs / "valid.ids.xz").read_bytes(), (packs / "valid.json").read_text()
    (packs / "valid.ids.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="valid is damaged"):
        read_packs(packs, "valid", books_tokenizer)
    (packs / "valid.ids.xz").write_bytes(lzma.compress(b"\0\0" * 5))
    with pytest.raises(ValueError, match="5 ids"):
        read_packs(packs, "valid", books_tokenizer)
    (packs / "valid.json").write_text(meta.replace(books_tokenizer.fingerprint, "another"))
    with pytest.raises(ValueError, match="another tokenizer"):
        read_packs(packs, "valid", books_tokenizer)


def test_carry_counts_what_travels(
    data: Path, tmp_path: Path, books_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / ".gitignore").write_text("/.carry/\n/ignored\n")
    (root / "ignored").write_bytes(bytes(5000))
    (root / "code.py").write_bytes(bytes(1000))
    folder = root / ".carry"
    tree = 1000 + len("/.carry/\n/ignored\n")
    assert tree_bytes(root, folder) == tree

    def assemble(*without: str) -> int:
        return carry(
            root, gpu.RECIPE, data, folder, books_tokenizer, without=without, python="",
            tell=lambda message: None,
        )  # fmt: skip

    whole = assemble()
    assert whole == tree + sum(path.stat().st_size for path in (folder / "packs").iterdir())
    assert assemble("train-001") < whole
    assert not list((folder / "packs").glob("train-001*"))
    monkeypatch.setattr(carrying, "LIMIT", whole - 1)
    with pytest.raises(ValueError, match=r"allowed: .* --without, largest first: (train|valid)"):
        assemble()
    assert assemble("train-001")


def test_the_commands_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that `carry` prints name parts and options that there are."""
    lines = [line.split() for line in commands(".carry").splitlines() if "benchmarks.gpu" in line]
    assert len(lines) == 2
    for line in lines:
        words = line[line.index("benchmarks.gpu") + 1 :]
        parts = words[words.index("--parts") + 1 : words.index("--parts") + 4]
        assert set(parts) <= set(gpu.PARTS)
        words = [str(tmp_path) if word == '"$OUT"' else word for word in words]
        with pytest.raises(SystemExit) as ended:
            gpu.main([*words, "--limit", "0"])  # everything is skipped
        assert ended.value.code == 0
    found = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert list(found) == ["card", "train", "streaming"]


@pytest.fixture
def pieces(tmp_path: Path, tiny: Checkpoint) -> Path:
    folder = tmp_path / "out" / "weights"
    folder.parent.mkdir()
    found = export(tiny.model, tiny.tokenizer, folder, piece=100_000, steps=7)
    assert found["pieces"] > 3
    return folder


def test_pieces_make_a_checkpoint_again(pieces: Path, tmp_path: Path, tiny: Checkpoint) -> None:
    sizes = [path.stat().st_size for path in sorted(pieces.glob("model.safetensors.*"))]
    assert sizes[:-1] == [100_000] * (len(sizes) - 1) and 0 < sizes[-1] <= 100_000
    out = tmp_path / "runs" / "joined"
    gpu.main(["join", str(pieces), "--out", str(out)])
    joined = load_checkpoint(out, device="cpu")
    assert joined.model.config == tiny.model.config
    assert joined.tokenizer.fingerprint == tiny.tokenizer.fingerprint
    for name, weight in tiny.model.state_dict().items():
        assert torch.equal(joined.model.state_dict()[name], weight.bfloat16().float())
    with pytest.raises(SystemExit, match="exists"):
        gpu.main(["join", str(pieces), "--out", str(out)])


def test_pieces_that_do_not_belong_together_are_refused(
    pieces: Path, tmp_path: Path, tiny: Checkpoint
) -> None:
    out = tmp_path / "joined"
    piece = pieces / "model.safetensors.1"
    data = piece.read_bytes()
    piece.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"model\.safetensors\.1 is damaged"):
        join(pieces, out, tiny.tokenizer)
    piece.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors\.1"):
        join(pieces, out, tiny.tokenizer)
    piece.write_bytes(data)
    listed = json.loads((pieces / LIST).read_text())
    (pieces / LIST).write_text(json.dumps({**listed, "tokenizer": "another"}))
    with pytest.raises(ValueError, match="another tokenizer"):
        join(pieces, out, tiny.tokenizer)
    assert not out.exists()


def test_an_export_replaces_the_last_as_a_whole(
    pieces: Path, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    before = (pieces / LIST).read_bytes()
    other = load_checkpoint(tiny_folder(seed=2, n_layers=1), device="cpu")
    (pieces.parent / "weights.new").mkdir()  # left by one that was killed
    export(other.model, other.tokenizer, pieces)
    assert sorted(path.name for path in pieces.iterdir()) == ["model.safetensors.0", LIST]
    assert [path.name for path in pieces.parent.iterdir()] == ["weights"]
    assert join(pieces, tmp_path / "joined", other.tokenizer)["sha256"]
    assert (pieces / LIST).read_bytes() != before


def test_weights_that_are_not_finite_replace_nothing(
    pieces: Path, tiny_folder: Callable[..., Path]
) -> None:
    before = (pieces / LIST).read_bytes()
    other = load_checkpoint(tiny_folder(seed=3), device="cpu")
    other.model.output_bias[3] = torch.nan
    with pytest.raises(FloatingPointError, match="output_bias"):
        export(other.model, other.tokenizer, pieces)
    assert (pieces / LIST).read_bytes() == before


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_carried_folder_is_ignored() -> None:
    command = ["git", "check-ignore", "-q", str(gpu.CARRIED / "packs")]
    inside = subprocess.run(["git", "rev-parse"], cwd=gpu.ROOT, capture_output=True)
    if inside.returncode:
        pytest.skip("not a repository")
    assert subprocess.run(command, cwd=gpu.ROOT).returncode == 0
