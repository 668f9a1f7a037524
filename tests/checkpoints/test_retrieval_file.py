"""retrieval.json: written, found beside a model, switched off, and refused where it is wrong."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.checkpoints.retrieval import RETRIEVAL_FILE, read_retrieval, write_retrieval
from streamlm.checkpoints.sources import find_model
from streamlm.models.llama_config import LlamaConfig
from streamlm.models.retrieval import RetrievalHeads
from tests.support.pretrained import settings, weights, write_gguf

HEADS = RetrievalHeads(((0, 3), (1, 0), (1, 1)))
Folder = Callable[..., Path]


def config_of(folder: Path) -> LlamaConfig:
    config = find_model(folder).config
    assert isinstance(config, LlamaConfig)
    return config


def test_a_file_is_read_as_it_was_written(folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "new" / "heads.json"
    write_retrieval(path, HEADS, measured={"facts": 4})
    assert read_retrieval(path, config_of(folder())) == HEADS
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "heads": [[0, 3], [1, 0], [1, 1]],
        "measured": {"facts": 4},
    }


def test_a_model_loads_the_file_of_its_folder(folder: Folder, tmp_path: Path) -> None:
    """It changes no fingerprint, so sessions go on with other heads or with none."""
    model, other = folder(), tmp_path / "other.json"
    assert find_model(model).retrieval is None
    before = load_checkpoint(model, device="cpu")
    write_retrieval(model / RETRIEVAL_FILE, HEADS, measured={})
    write_retrieval(other, RetrievalHeads(((0, 0),)), measured={})
    loaded = load_checkpoint(model, device="cpu")
    assert loaded.retrieval == HEADS and loaded.fingerprints == before.fingerprints
    without = load_checkpoint(model, device="cpu", settings={"retrieval": False})
    assert without.retrieval is None
    named = load_checkpoint(model, device="cpu", settings={"retrieval": str(other)})
    assert named.retrieval == RetrievalHeads(((0, 0),))
    (model / RETRIEVAL_FILE).write_text("{", encoding="utf-8")
    load_checkpoint(model, device="cpu", settings={"retrieval": False})
    with pytest.raises(ValueError, match=re.escape(str(model / RETRIEVAL_FILE))):
        load_checkpoint(model, device="cpu")


def test_a_gguf_file_takes_a_file_that_is_named(tmp_path: Path) -> None:
    values, heads = settings(), tmp_path / "heads.json"
    path = write_gguf(tmp_path / "model.gguf", values, weights(values))
    write_retrieval(heads, HEADS, measured={})
    assert find_model(path).retrieval is None
    assert find_model(path, settings={"retrieval": heads}).retrieval == HEADS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ""),
        ("[]", ""),
        ("{}", "heads = None.*allowed: different"),
        ('{"heads": []}', "allowed: different"),
        ('{"heads": {"0": 1}}', "allowed: different"),
        ('{"heads": [[0]]}', "not enough values"),
        ('{"heads": [[0, 1, 2]]}', "too many values"),
        ('{"heads": [3]}', "cannot unpack"),
        ('{"heads": [[0, 1.0]]}', "1.0 is no whole number"),
        ('{"heads": [[true, 1]]}', "True is no whole number"),
        ('{"heads": [["0", 1]]}', "'0' is no whole number"),
        ('{"heads": [[0, 1], [0, 1]]}', "allowed: different"),
        ('{"heads": [[-1, 0]]}', "layers 0 to 1, heads 0 to 3"),
        ('{"heads": [[0, -1]]}', "layers 0 to 1, heads 0 to 3"),
        ('{"heads": [[2, 0]]}', "layers 0 to 1, heads 0 to 3"),
        ('{"heads": [[0, 4]]}', "layers 0 to 1, heads 0 to 3"),
    ],
)
def test_damaged_files_and_those_of_other_models(
    folder: Folder, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "heads.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"heads.json.*{message}"):
        read_retrieval(path, config_of(folder()))


def test_a_missing_file_and_other_kinds_of_models(tmp_path: Path, folder: Folder) -> None:
    with pytest.raises(FileNotFoundError, match=r"heads\.json"):
        read_retrieval(tmp_path / "heads.json", config_of(folder()))
    write_retrieval(tmp_path / "heads.json", HEADS, measured={})
    with pytest.raises(ValueError, match=r"heads\.json for head 'relative'; allowed: Llama"):
        find_model("books", settings={"retrieval": tmp_path / "heads.json"})
