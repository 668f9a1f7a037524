"""Sessions with other windows than the default: recorded, resumed, and named if they differ."""

from pathlib import Path

import pytest

import streamlm
from memory_store import Mismatch
from memory_store.places import create_store, open_store
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.models.layers.packed import has_int8_kernels
from streamlm.sessions.windows import recorded_model
from tests.support.pretrained import settings, weights, write_huggingface

TEXT = "It was a dark and stormy night; the rain fell in torrents. " * 30
SHORT = {"segment_len": 20, "memory_len": 60, "compressed_len": 20}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = settings()
    return write_huggingface(tmp_path / "model", values, weights(values))


def test_a_session_is_resumed_with_its_windows(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with streamlm.open(path, folder, settings=SHORT, device="cpu") as session:
        session.feed(TEXT)
        position, wanted = session.position, "".join(session.fork().generate(max_tokens=9, seed=1))
    for given in (None, {}, {"memory_len": 60}):
        with streamlm.open(path, folder, settings=given, device="cpu") as session:
            assert session.position == position
            assert session.checkpoint.model.config.segment_len == 20
            assert "".join(session.fork().generate(max_tokens=9, seed=1)) == wanted
    assert open_store(path).attributes["windows"]["memory_len"] == 60  # type: ignore[call-overload,index]


def test_windows_that_differ_are_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with streamlm.open(path, folder, settings=SHORT, device="cpu") as session:
        session.feed(TEXT)
    with pytest.raises(Mismatch, match=r"memory_len = 80 \(recorded: 60\)") as caught:
        streamlm.open(path, folder, settings={"memory_len": 80}, device="cpu")
    assert caught.value.differing == {"memory_len": ("60", "80")}
    loaded = load_checkpoint(folder, device="cpu")
    with pytest.raises(Mismatch, match=r"segment_len = \d+ \(recorded: 20\)"):
        streamlm.open(path, loaded)
    with pytest.raises(ValueError, match="settings for a model that is loaded; allowed"):
        streamlm.open(path, loaded, settings=SHORT)


def test_another_model_is_a_mismatch_of_more_than_windows(
    folder: Path, tmp_path: Path, tiny: Checkpoint
) -> None:
    path = tmp_path / "s.zarr"
    with streamlm.open(path, folder, settings=SHORT, device="cpu") as session:
        session.feed(TEXT)
    for other in ("books", tiny):  # it has no such windows
        with pytest.raises(Mismatch) as caught:
            streamlm.open(path, other, device="cpu")
        assert set(caught.value.differing) == {"weights", "architecture", "tokenizer"}


def test_own_models_record_no_windows(tmp_path: Path, tiny: Checkpoint) -> None:
    with streamlm.open(tmp_path / "s.zarr", tiny) as session:
        session.feed(TEXT)
    assert "windows" not in open_store(tmp_path / "s.zarr").attributes


@pytest.mark.parametrize("windows", [7, "x", [], {"n_layers": 1}, {}])
def test_damaged_records_are_ignored(folder: Path, tmp_path: Path, windows: object) -> None:
    """The fingerprint of the architecture is what counts."""
    path, loaded = tmp_path / "s.zarr", load_checkpoint(folder, device="cpu")
    attributes = {"windows": windows}
    create_store(path, attributes=attributes, fingerprints=loaded.fingerprints)  # type: ignore[arg-type]
    with streamlm.open(path, folder, device="cpu") as session:
        session.feed(TEXT)
    with streamlm.open(path, loaded) as session:
        assert session.position > 100


def test_a_session_records_a_model_with_a_name(folder: Path, tmp_path: Path) -> None:
    """Resumed without a model, it takes the one that it was begun with."""
    books = load_checkpoint("books", device="cpu")
    with streamlm.open(tmp_path / "b.zarr", books) as session:
        session.feed(TEXT)
    store = open_store(tmp_path / "b.zarr")
    assert recorded_model(store) == store.attributes["model"] == "books"
    with streamlm.open(tmp_path / "b.zarr", device="cpu") as session:
        assert session.checkpoint.name == "books" and session.position > 0
    # The place of a directory on this machine is not recorded.
    with streamlm.open(tmp_path / "s.zarr", folder, device="cpu") as session:
        session.feed(TEXT)
    assert "model" not in open_store(tmp_path / "s.zarr").attributes


@pytest.mark.parametrize("given", ["smollm2", "/tmp/evil", 7, None])
def test_a_recorded_model_is_one_that_this_package_knows(given: object, tmp_path: Path) -> None:
    store = create_store(tmp_path / "s.zarr", attributes={"model": given}, fingerprints={})  # type: ignore[dict-item]
    assert recorded_model(store) == ("smollm2" if given == "smollm2" else "books")


@pytest.mark.skipif(not has_int8_kernels(), reason="this processor has no FBGEMM kernels")
def test_8_bit_weights_of_a_transformer_xl_are_recorded(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with streamlm.open(path, model, settings={"precision": "int8"}, device="cpu") as session:
        session.feed(TEXT)
        wanted = "".join(session.fork().generate(max_tokens=9, seed=1))
    with streamlm.open(path, model, device="cpu") as session:
        assert session.checkpoint.precision == "int8"
        assert "".join(session.fork().generate(max_tokens=9, seed=1)) == wanted
    given = {"precision": "float32"}
    with streamlm.open(path, model, settings=given, device="cpu") as session:
        assert session.checkpoint.precision == "float32" and session.position
    plain = tmp_path / "plain.zarr"
    with streamlm.open(plain, model, device="cpu") as session:
        session.feed(TEXT)
    assert "windows" not in open_store(plain).attributes
