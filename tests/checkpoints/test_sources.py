"""Finding models by name, folder and file; the hub's cache; digests that are kept."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from streamlm.checkpoints import digests
from streamlm.checkpoints.catalogue import BUNDLED, DOWNLOADABLE
from streamlm.checkpoints.checkpoint import load_checkpoint, load_model, save_checkpoint
from streamlm.checkpoints.home import home
from streamlm.checkpoints.hub import is_hub_name
from streamlm.checkpoints.sources import find_model
from tests.support.pretrained import settings, weights, write_gguf, write_huggingface


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAMLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_home_is_a_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert home() == tmp_path / "home"
    monkeypatch.setenv("STREAMLM_HOME", "~/models")
    assert home() == Path.home() / "models"
    monkeypatch.delenv("STREAMLM_HOME")
    assert home().name == "streamlm" and home().is_absolute()


def test_what_the_catalogue_says_of_bundled_models_is_so() -> None:
    for name, entry in BUNDLED.items():
        stored = find_model(name)
        assert stored.n_parameters == entry.parameters and stored.format == "streamlm"
        assert load_checkpoint(name, device="cpu").name == name


def test_a_model_that_is_not_downloaded_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"not downloaded .*: streamlm models get smollm2"):
        load_checkpoint("smollm2", device="cpu")


def test_names_come_before_folders_and_a_path_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BUNDLED["books"].path, "smollm2")
    with pytest.raises(FileNotFoundError, match="not downloaded"):
        find_model("smollm2")
    assert find_model("./smollm2").config == find_model("books").config


def test_downloaded_models_are_found_by_name(tmp_path: Path) -> None:
    values, without = settings(), {"gates": False, "retrieval": False}
    entry = DOWNLOADABLE["smollm2"]
    entry.folder.mkdir(parents=True)
    write_gguf(entry.path, values, weights(values))
    assert find_model("smollm2", settings=without).path == entry.path
    assert find_model("smollm2", settings=without).name == "smollm2"


@pytest.mark.parametrize("content", [b"text", b""])
def test_other_files_are_no_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.txt").write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*; allowed: a checkpoint dir"):
        find_model(tmp_path / "model.txt")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        find_model(tmp_path)


def test_gguf_files_are_known_by_their_content(tmp_path: Path) -> None:
    values = settings()
    path = write_gguf(tmp_path / "model.gguf", values, weights(values))
    assert find_model(path.rename(tmp_path / "model")).format == "gguf"


def test_own_directories_of_a_hostile_shape_are_refused(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED["books"].path, tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text().replace('"n_layers": 4', '"n_layers": 1000000000'))
    with pytest.raises(ValueError, match=r"do not agree: 1,000,000,000 layers, but \d+ tensors"):
        load_checkpoint(tmp_path / "copy", device="cpu")


def test_own_directories_of_llamas_must_fit(tmp_path: Path) -> None:
    values = settings()
    folder = write_huggingface(tmp_path / "theirs", values, weights(values))
    save_checkpoint(tmp_path / "own", load_model(folder, device="cpu", dtype=None), None)
    config = tmp_path / "own" / "config.json"
    config.write_text(config.read_text().replace('"d_ff": 96', '"d_ff": 95'))
    with pytest.raises(ValueError, match=r"weights and config\.json do not agree: .*another shape"):
        load_model(tmp_path / "own", device="cpu")


# -- the hub --------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(hub: Path, name: str, folder: Path) -> Path:
    """Put a folder into the cache as the hub's library does: links to blobs."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    base = hub / f"models--{name.replace('/', '--')}"
    snapshot = base / "snapshots" / revision
    for folder_ in (snapshot, base / "blobs", base / "refs"):
        folder_.mkdir(parents=True)
    (base / "refs" / "main").write_text(revision)
    for file in folder.iterdir():
        blob = base / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        os.symlink(os.path.relpath(blob, snapshot), snapshot / file.name)
    return snapshot


@pytest.mark.parametrize("shards", [1, 3])
def test_models_of_the_hub_are_read_from_its_cache(hub: Path, tmp_path: Path, shards: int) -> None:
    values = settings("qwen3")
    folder = write_huggingface(tmp_path / "folder", values, weights(values), shards=shards)
    cached(hub, "org/tiny-model", folder)
    found = load_checkpoint("org/tiny-model", device="cpu")
    assert found.name == "org/tiny-model"
    assert found.fingerprints == load_checkpoint(folder, device="cpu").fingerprints


def test_models_of_the_hub_that_are_not_there_are_named(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nor in the cache .*HF_HUB_OFFLINE forbids"):
        load_checkpoint("org/other", device="cpu")
    values = settings()
    folder = write_huggingface(tmp_path / "folder", values, weights(values))
    (folder / "model.safetensors").unlink()  # a download that was interrupted
    cached(hub, "org/half", folder)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE forbids"):
        load_checkpoint("org/half", device="cpu")


def test_folders_come_before_the_hub(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = settings()
    write_huggingface(tmp_path / "org" / "model", values, weights(values))
    assert find_model("org/model").path == Path("org/model")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nothing"):
        find_model(Path("org/nothing"))  # a path is never a name


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("org/name", True),
        ("HuggingFaceTB/SmolLM2-135M", True),
        ("name", False),
        ("a/b/c", False),
        ("../name", False),
        ("org/..", False),
        ("org/a..b", False),
        ("/etc", False),
        ("~/name", False),
        ("org/na me", False),
        ("https://example.org/x", False),
        ("", False),
    ],
)
def test_names_of_the_hub(name: str, good: bool) -> None:
    assert is_hub_name(name) == good


# -- digests --------------------------------------------------------------------------------------


def test_digests_of_large_files_are_kept_until_they_change(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "LARGE", 100)
    files = [tmp_path / "a", tmp_path / "b"]
    for index, file in enumerate(files):
        file.write_bytes(bytes([index]) * 200)

    def digest() -> str:
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    assert digests.digest_of(files) == digest()
    [kept] = (own_home / "digests").iterdir()
    assert kept.read_text() == digest()
    kept.write_text("0" * 64)
    assert digests.digest_of(files) == "0" * 64  # it is not computed again
    for damage in ("", "x" * 64, "0" * 63):
        kept.write_text(damage)
        assert digests.digest_of(files) == digest()
    files[1].write_bytes(b"changed" * 30)
    assert digests.digest_of(files) == digest()
    times = files[1].stat().st_atime_ns, files[1].stat().st_mtime_ns
    files[1].write_bytes(b"CHANGED" * 30)  # of the same size, with the times put back
    os.utime(files[1], ns=times)
    assert digests.digest_of(files) == digest()
    replacement = tmp_path / "c"
    replacement.write_bytes(b"replace" * 30)
    os.utime(replacement, ns=times)
    os.replace(replacement, files[1])
    assert digests.digest_of(files) == digest()


def test_digests_of_small_files_are_computed(tmp_path: Path, own_home: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digests.digest_of([tmp_path / "a"]) == hashlib.sha256(b"abc").hexdigest()
    assert not own_home.exists()


def test_a_home_that_cannot_be_written_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STREAMLM_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(digests, "LARGE", 0)
    (tmp_path / "a").write_bytes(b"abc")
    assert digests.digest_of([tmp_path / "a"]) == hashlib.sha256(b"abc").hexdigest()


def test_fingerprints_of_own_checkpoints_are_those_of_their_files(
    tmp_path: Path, tiny_folder: Any
) -> None:
    folder = tiny_folder()
    data = (folder / "model.safetensors").read_bytes()
    found = load_checkpoint(folder, device="cpu", dtype=torch.float32).fingerprints
    assert found["weights"] == hashlib.sha256(data).hexdigest()
