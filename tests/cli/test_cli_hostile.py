"""Input that never ends or exhausts: each is refused with one line."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.command_line import COMMAND, ROOT, CommandLine, refuses

SIZES = ("vocab_size", "n_layers", "d_model", "n_heads", "head_dim", "d_ff")
LENGTHS = ("segment_len", "memory_len", "compressed_len", "clamp_len", "pinned_len", "factor")


@pytest.fixture
def own(kept: CommandLine, tmp_path: Path) -> Path:
    """A copy of the model, to be changed."""
    folder = tmp_path / "own"
    folder.mkdir()
    for file in Path(kept.model).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("name", [*SIZES, *LENGTHS])
def test_sizes_that_the_weights_do_not_have(kept: CommandLine, own: Path, name: str) -> None:
    config = json.loads((own / "config.json").read_text())
    # Settings that nothing is made of are bounded by 64 bits only.
    for size in (10**7, 10**12, 10**30) if name in SIZES else (10**12, 10**30):
        (own / "config.json").write_text(json.dumps({**config, name: size}))
        refuses(kept, name.removeprefix("n_"), "generate", "--prompt", "a", "--model", own)


def test_deep_nesting(kept: CommandLine, own: Path) -> None:
    (own / "config.json").write_text('{"a":' * 10**5 + "1" + "}" * 10**5)
    refuses(kept, "nested too deeply", "generate", "--prompt", "a", "--model", own)


@pytest.mark.parametrize("device", ["mps", "meta", "xla", "hip", "cpu:3", "privateuseone", "CPU"])
def test_devices_without_support(kept: CommandLine, device: str) -> None:
    allowed = "allowed: auto, cpu, cuda or cuda:N"
    refuses(kept, allowed, "generate", "--prompt", "a", "--device", device)


def test_weights_that_are_no_numbers(kept: CommandLine, own: Path) -> None:
    weights = load_file(own / "model.safetensors")
    weights = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}
    save_file(weights, own / "model.safetensors")
    message = "weights are NaN or infinite in compressors.0.weight"
    for words in (("score",), ("score", "--json"), ("feed", "--session", "new")):
        result = kept(*words, "text.txt", "--model", own)
        assert result.status == 1 and result.out == "" and message in result.err


@pytest.mark.parametrize("where", ["score", "feed"])
def test_nul_on_standard_input(kept: CommandLine, where: str) -> None:
    words = [where, "-", *(("--session", "new") if where == "feed" else ())]
    refuses(kept, "looks binary: it has a NUL byte", *words, stdin=b"text \0 text")
    refuses(kept, "looks binary: it has a NUL byte", where, "/dev/zero", *words[2:])
    assert kept(*words, "--errors", "replace", stdin=b"text \0 text").status == 0


def test_archives_without_an_end(kept: CommandLine) -> None:
    refuses(kept, "no regular file", "sessions", "import", "/dev/zero", "new")


def test_tokenizers_with_groups(kept: CommandLine, own: Path) -> None:
    model = (own / "tokenizer.model").read_bytes()
    group = b"\xa3\x01" * 1000 + b"\xa4\x01" * 1000  # well-formed, of an unknown field
    for more in (group, b"\xa3\x01", b"\x13" * 1000, b"\x0b\x0c", b"\x80" * 10**6):
        (own / "tokenizer.model").write_bytes(model + more)
        refuses(
            kept, "protobuf|no SentencePiece model", "generate", "--prompt", "a", "--model", own
        )


@pytest.mark.parametrize("redirection", ["1>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-", "1>/dev/full"])
def test_closed_and_full_standard_streams(tmp_path: Path, redirection: str) -> None:
    given = [*COMMAND, "sessions", "list", "--store", str(tmp_path)]
    result = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *given], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == ("full" in redirection)
    assert "Traceback" not in result.stderr and result.stderr.count("\n") <= 1


def test_bursts_of_signals(kept: CommandLine, tmp_path: Path) -> None:
    """Sent at once and for a while, at any moment of a command: no traceback."""
    chance = random.Random(0)
    (tmp_path / "long.txt").write_text("Call me Ishmael. Some years ago I went to sea. " * 40_000)
    command = [*COMMAND, "feed", str(tmp_path / "long.txt"), "--session", "new", "--store"]
    for wait in (0.1, 1.0, 4.0):
        process = subprocess.Popen(
            [*command, str(tmp_path / f"store-{wait}"), "--model", str(kept.model)],
            cwd=ROOT,
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        time.sleep(wait)
        for _ in range(8):
            if process.poll() is None:
                process.send_signal(chance.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)))
            time.sleep(chance.choice((0, 0.001, 0.01)))
        _, err = process.communicate(timeout=300)
        assert "Traceback" not in err and "Exception ignored" not in err, err
        assert process.returncode in (130, 0, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)
