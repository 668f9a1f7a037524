"""The benchmark of pretrained models, on a tiny one, with a peer that is a stand-in program."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pretrained
from benchmarks.tools.llama_cpp import LlamaBench
from streamlm.models.layers.packed import has_int8_kernels
from tests.support.pretrained import settings, weights, write_huggingface

# Speaks the language of llama-bench: a prompt and a generation, each with its speed.
PROGRAM = """#!{python}
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert options["-o"] == "json" and options["-t"] == "1" and int(options["-d"]) > 0
print(json.dumps([
    {{"n_prompt": int(options["-p"]), "n_gen": 0, "avg_ts": 200.0}},
    {{"n_prompt": 0, "n_gen": int(options["-n"]), "avg_ts": 50.0}},
]))
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "llama-bench"
    path.write_text(PROGRAM.format(python=sys.executable), encoding="utf-8")
    path.chmod(0o755)
    return path


def test_pretrained(
    tmp_path: Path, prose: Any, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    monkeypatch.setattr(pretrained, "READ", 32)
    monkeypatch.setattr(pretrained, "WRITTEN", 3)
    shelf, out = tmp_path / "shelf.txt", tmp_path / "out"
    shelf.write_text("\f\n".join(prose(150, seed=i) for i in range(3)), encoding="utf-8")
    values = settings("llama")
    model = write_huggingface(tmp_path / "model", values, weights(values))
    names = ["float32", "bfloat16", *(["int8"] if has_int8_kernels() else [])]
    options = ["--model", str(model), "--threads", "1", "--rounds", "2", "--far", "100"]
    options += ["--precisions", *names, "--llama-bench", f"peer={program}"]
    options += ["--data", str(shelf), "--books", "2", "--tokens", "40", "--out", str(out)]
    pretrained.main(options)
    found: Any = json.loads((out / "pretrained.json").read_text())
    speed, text = found["figures"]["speed"], found["figures"]["text"]
    assert set(speed) == {"peer", *names, *(f"{name}, far" for name in names)}
    assert speed["peer"]["reading"]["median"] == 200 and speed["peer"]["writing"]["median"] == 50
    for name in names:
        for what, peer in (("reading", 200), ("writing", 50)):
            mine = speed[name][what]
            assert mine["median"] > 0 and mine["to_peer"]["pairs"] == 2
            assert mine["to_peer"]["quartile_3"] <= mine["quartile_3"] / peer * 1.01
        assert text[name]["books"] == 2
        assert abs(text[name]["bits_per_byte"] - text["float32"]["bits_per_byte"]) < 0.1
    assert text["float32"]["added_bits_per_byte"]["median"] == 0


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no program 'no-such-llama-bench'; allowed"):
        LlamaBench("no-such-llama-bench", tmp_path, threads=1)
