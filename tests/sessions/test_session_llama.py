"""Sessions of Llama-family models: forks, rewinding, memory reports, and what a commit takes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import streamlm
from memory_store import DirectoryStore
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from tests.support.invariants import assert_same_state


@pytest.fixture
def llama(tiny_folder: Callable[..., Path]) -> Checkpoint:
    return load_checkpoint(tiny_folder(head="llama"), device="cpu")


def test_forks_and_rewinding(llama: Checkpoint, prose: Callable[..., str], tmp_path: Path) -> None:
    with streamlm.open(tmp_path / "s.zarr", llama, seed=5) as session:
        session.feed([prose(120)])
        ref, digest = session.save(), session.state.digest()
        wanted = list(session.generate(max_tokens=20, temperature=1.0))
        session.save()
        session.rewind(snapshot=ref)
        assert session.state.digest() == digest
        assert list(session.generate(max_tokens=20, temperature=1.0)) == wanted
        with session.fork("other") as fork:
            assert fork.state.digest() == session.state.digest()
            fork.feed("And so on, upon the sea. ")
            assert fork.state.digest() != session.state.digest()


def test_a_position_between_commits_is_read_again(
    llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        session.feed([prose(60)])
        middle, state = session.position, session.state
        session.feed([prose(60)])
        session.save()
        session.rewind(to=middle)
        assert session.position == middle
        # Products of other numbers of rows may round otherwise; a slot has 8 bits of mantissa.
        assert_same_state(session.state, state, tolerance=0.05)


@pytest.mark.parametrize("compression", ["select", "most-used"])
def test_a_memory_report_names_tokens_that_were_read(
    compression: str, tiny_folder: Callable[..., Path], prose: Callable[..., str], tmp_path: Path
) -> None:
    folder = tiny_folder(head="llama", compression=compression)
    with streamlm.open(tmp_path / "s.zarr", load_checkpoint(folder, device="cpu")) as session:
        session.feed([prose(200)])
        report = session.memory_report()
        config = session.checkpoint.model.config
        assert len(report) == config.past_len + session.state.phase
        assert report.position == session.position
        assert report.stop.max() <= session.position and (report.start < report.stop).all()
        # Whole slots: memory holds every token of its span, one a slot.
        assert (np.diff(report.start[:, report.compressions == 0]) == 1).all()
        assert ((report.attention >= 0) & (report.attention <= 1)).all()
        assert (report.error == 0).all()


def test_slots_of_8_bits_take_half_the_bytes(
    tiny_folder: Callable[..., Path], prose: Callable[..., str], tmp_path: Path
) -> None:
    sizes = {}
    for slots in ("float32", "bfloat16", "int8"):
        checkpoint = load_checkpoint(tiny_folder(head="llama", slots=slots), device="cpu")
        with streamlm.open(tmp_path / f"{slots}.zarr", checkpoint) as session:
            session.feed([prose(200)])
            session.save()
            digest = session.state.digest()
        with streamlm.open(tmp_path / f"{slots}.zarr", checkpoint, create=False) as session:
            assert session.state.digest() == digest
            assert session.saved is not None
            store = DirectoryStore.open(tmp_path / f"{slots}.zarr")
            sizes[slots] = store.load(session.saved).windows["memory"].data.nbytes
            dtypes = {"float32": torch.float32}
            assert session.state.past.dtype == dtypes.get(slots, torch.bfloat16)
    heads, width = 2, 32
    assert sizes["float32"] == 2 * sizes["bfloat16"]
    assert sizes["int8"] * 2 * width == sizes["bfloat16"] * (width + heads)


def test_a_mean_of_keys_and_values_has_no_memory_report(
    tiny_folder: Callable[..., Path], prose: Callable[..., str], tmp_path: Path
) -> None:
    folder = tiny_folder(head="llama", compression="mean")
    with streamlm.open(tmp_path / "s.zarr", load_checkpoint(folder, device="cpu")) as session:
        session.feed([prose(60)])
        with pytest.raises(ValueError, match="unless its compression is 'mean'"):
            session.memory_report()
