"""Resuming in another process, bit for bit, and after kill -9."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import streamlm
from memory_store import DirectoryStore
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.config import COMPRESSIONS
from streamlm.sessions.session import Session
from tests.support.invariants import assert_same_state
from tokenizer import StreamEncoder

ROOT = Path(__file__).resolve().parents[2]

# Run by both processes after a save. All results must agree bit for bit.
GO_ON = """
def go_on(session):
    stream = session._live.stream
    first = {
        "position": session.position, "tail": stream.tail, "cut": stream.cut,
        "digest": session.state.digest(),
    }
    found = [first]
    for call in ("score", "rest", "greedy", "sampled", "feed", "score"):
        if call == "score":
            report = session.score("The whale, the sea; never mind.", logprobs=True)
            found.append([report.ids, report.logprobs])
        elif call in ("rest", "feed"):
            rest = [REST] if call == "rest" else []
            report = session.feed([*rest, " and so on, upon the sea. "])
            found.append([report.tokens, report.nats])
        elif call == "greedy":
            found.append("".join(session.generate(max_tokens=6, temperature=0)))
        else:
            options = {"temperature": 2.0, "top_p": 1.0, "repetition_penalty": 1.3}
            found.append("".join(session.generate("He said", max_tokens=6, **options)))
        found.append(session.state.digest())
    return found
"""
RESUME = """
import json, sys, torch
import streamlm
from tests.support import shape_rounding
shape_rounding.inherit()
torch.set_num_threads(int(sys.argv[1]))
checkpoints, answers = {}, {}
for name, (path, folder, rest) in json.loads(sys.stdin.read()).items():
    if folder not in checkpoints:
        checkpoints[folder] = streamlm.load(folder, device="cpu")
    globals()["REST"] = bytes.fromhex(rest)
    with streamlm.open(path, checkpoints[folder], create=False) as session:
        answers[name] = go_on(session)
assert "torch._dynamo" not in sys.modules  # loading it takes as long as loading torch
print(json.dumps(answers))
"""


def prefix(checkpoint: Checkpoint, text: str, wanted: Callable[[int], bool]) -> str:
    """The shortest prefix of a text, of 90 tokens or more, that leaves this many tokens read."""
    encoder, n = StreamEncoder(checkpoint.tokenizer), 0
    for size, character in enumerate(text, 1):
        n += len(encoder.encode(character))
        if n >= 90 and wanted(n):
            return text[:size]
    raise AssertionError("the text is too short")


def in_pieces(text: str) -> list[str]:
    """One or two tokens at a time: products of few rows differ from others in the last bits."""
    return [text[start : start + 4] for start in range(0, len(text), 4)]


def read_aligned(session: Session, text: str) -> bytes:
    session.feed(in_pieces(prefix(session.checkpoint, text, lambda n: n % 16 == 0)))
    assert session.position % 16 == 0
    return b""


def read_unaligned(session: Session, text: str) -> bytes:
    session.feed(in_pieces(prefix(session.checkpoint, text, lambda n: n % 16 == 11)))
    assert session.position % 16 == 11
    return b""


def read_half_a_word(session: Session, text: str) -> bytes:
    session.feed([text[:300] + " circumnav"])
    assert session.tail == " circumnav"
    return b"igation"


def read_half_a_character(session: Session, text: str) -> bytes:
    character = "漢".encode()
    session.feed([text[:300], b" ", character[:2]])
    assert session._live.stream.tail == {"text": " ", "bytes": character[:2].hex()}
    return character[2:]


def write_half_a_character(session: Session, text: str) -> bytes:
    session.feed([text[:300]])
    for _ in range(800):  # a Llama has no biases that make bytes likely
        list(session.generate(max_tokens=1, temperature=2.0, top_p=1.0))
        if session._live.stream.cut["bytes"]:
            return b""
    raise AssertionError("no byte of a character was written")


KINDS: dict[str, dict[str, object]] = {
    **{name: {"compression": name} for name in COMPRESSIONS},
    "plain": {"compressed_len": 0},
    "post-norm, uneven": {"norm": "post", "memory_len": 24, "compressed_len": 6},
    "llama, select": {"head": "llama"},
    "llama, most-used, 8 bits": {"head": "llama", "compression": "most-used", "slots": "int8"},
    "llama, mean, 8 bits": {"head": "llama", "compression": "mean", "slots": "int8"},
    "llama, window": {"head": "llama", "compressed_len": 0, "slots": "float32"},
}
SITUATIONS = [
    *(read_aligned, read_unaligned, read_half_a_word, read_half_a_character),
    write_half_a_character,
]
# How a text ends is no matter of the compression: one of each backbone is left within a word.
WITHIN_WORDS = ("conv", "llama, select")
TRIED = [
    f"{kind}/{situation.__name__}"
    for kind in KINDS
    for situation in (SITUATIONS if kind in WITHIN_WORDS else SITUATIONS[:2])
]


@pytest.fixture(scope="module")
def answers(
    tiny_folder: Callable[..., Path],
    prose: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Any, Any]]:
    """For every compression and situation: what the session that went on says, and the resumed one.

    One process resumes them all, because starting it is what takes time.
    """
    folder, text = tmp_path_factory.mktemp("resume"), prose(150)
    expected, tasks = {}, {}
    scope: dict[str, Any] = {}
    exec(GO_ON, scope)
    for kind, options in KINDS.items():
        likes = "" if options.get("head") == "llama" else "漢🐋ѣ"
        weights = tiny_folder(likes=likes, **options)
        checkpoint = load_checkpoint(weights, device="cpu")
        for situation in SITUATIONS:
            name = f"{kind}/{situation.__name__}"
            if name not in TRIED:
                continue
            path = folder / f"{len(tasks)}.zarr"
            with streamlm.open(path, checkpoint, seed=3) as session:
                scope["REST"] = situation(session, text)
                session.save()
                copy = folder / f"{len(tasks)} resumed.zarr"
                shutil.copytree(path, copy)
                expected[name] = scope["go_on"](session)
            tasks[name] = (str(copy), str(weights), scope["REST"].hex())
    result = subprocess.run(
        [sys.executable, "-c", GO_ON + RESUME, str(torch.get_num_threads())],
        input=json.dumps(tasks),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    resumed = json.loads(result.stdout)
    assert len(resumed) == len(tasks) == len(TRIED)
    return {name: (json.loads(json.dumps(expected[name])), resumed[name]) for name in tasks}


@pytest.mark.parametrize("name", TRIED)
def test_a_new_process_resumes_bit_for_bit(name: str, answers: dict[str, tuple[Any, Any]]) -> None:
    went_on, resumed = answers[name]
    assert resumed == went_on


def test_the_compared_values_distinguish_states(answers: dict[str, tuple[Any, Any]]) -> None:
    everything = [json.dumps(went_on) for went_on, _ in answers.values()]
    assert len(set(everything)) == len(everything)
    for went_on, _ in answers.values():
        digests = [item for item in went_on if isinstance(item, str) and len(item) == 64]
        # Everything but score changes the state.
        assert digests[0] == went_on[0]["digest"] and digests[4] == digests[5]
        assert len(set(digests)) == 5


OTHER_THREADS = """
import sys, torch
import streamlm
from tests.support import shape_rounding
shape_rounding.inherit()
model = streamlm.load(sys.argv[1], device="cpu")
for threads, path in enumerate(sys.argv[2:], 1):
    torch.set_num_threads(threads)
    with streamlm.open(path, model, create=False) as session:
        print(session.state.digest())
        session.feed(" And so on, upon the sea. ")
        text = "".join(session.generate("He said", max_tokens=40, temperature=1.5, top_p=1.0))
        print(text.encode().hex())
"""


def test_other_thread_counts_generate_the_same_tokens(
    tiny_folder: Callable[..., Path], prose: Callable[..., str], tmp_path: Path
) -> None:
    folder, paths = tiny_folder(), [tmp_path / f"{threads}.zarr" for threads in (1, 2, 3)]
    with streamlm.open(tmp_path / "s.zarr", load_checkpoint(folder, device="cpu")) as session:
        session.feed([prose(150)])
        digest = session.state.digest()
    for path in paths:
        shutil.copytree(tmp_path / "s.zarr", path)
    found = subprocess.run(
        [sys.executable, "-c", OTHER_THREADS, str(folder), *map(str, paths)],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},  # there may be fewer cores than threads
        capture_output=True,
        text=True,
        check=True,
    )
    first, *others = zip(*[iter(found.stdout.split())] * 2, strict=True)
    assert first[0] == digest and len(first[1]) > 40
    assert others == [first] * 2


def score_and_feed(path: Path, checkpoint: Checkpoint) -> list[Any]:
    with streamlm.open(path, checkpoint, create=False) as session:
        before = session.state.digest()
        report = session.score("The whale, the sea; never mind.", logprobs=True)
        session.feed(" And so on, upon the sea. ")
        return [before, report.logprobs, session.position, session.tail]


OTHER_PROCESSOR = """
import json, sys, torch
import streamlm
from tests.sessions.test_resume import score_and_feed
torch.set_num_threads(1)
answer = score_and_feed(sys.argv[1], streamlm.load(sys.argv[2], device="cpu"))
print(json.dumps([torch.backends.cpu.get_cpu_capability(), answer]))
"""


@pytest.mark.slow
def test_another_processor_resumes_closely(
    tiny_folder: Callable[..., Path], prose: Callable[..., str], tmp_path: Path
) -> None:
    """The state is equal bit for bit with any kernels; later results agree closely."""
    folder = tiny_folder()
    checkpoint = load_checkpoint(folder, device="cpu")
    with streamlm.open(tmp_path / "s.zarr", checkpoint) as session:
        session.feed([prose(150)])
        digest = session.state.digest()
    path = tmp_path / "other.zarr"
    shutil.copytree(tmp_path / "s.zarr", path)
    environment = {**os.environ, "MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, "-c", OTHER_PROCESSOR, str(path), str(folder)]
    found = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    capability, (before, log_probs, position, tail) = json.loads(found.stdout)
    assert capability in ("DEFAULT", "NO AVX")
    here = score_and_feed(tmp_path / "s.zarr", checkpoint)
    assert here[0] == digest == before
    assert log_probs == pytest.approx(here[1], abs=1e-4)
    assert [position, tail] == here[2:]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_saving_does_not_change_results(
    compression: str, tiny_folder: Callable[..., Path], prose: Callable[..., str], tmp_path: Path
) -> None:
    """Many resumes and no save at all give the same result up to the last bits."""
    checkpoint = load_checkpoint(tiny_folder(compression=compression), device="cpu")
    text, unsaved = prose(70), Session(checkpoint)
    unsaved.feed([text])
    for start in range(0, len(text), 60):
        with streamlm.open(tmp_path / "s.zarr", checkpoint) as session:
            session.feed([text[start : start + 60]])
    assert (session.position, session.tail) == (unsaved.position, unsaved.tail)
    if compression != "most-used":  # the order of two usages may depend on the last bit
        assert_same_state(session.state, unsaved.state, tolerance=1e-4)


# -- killed -----------------------------------------------------------------------------------

# Loads the model once, then forks a process for each line of input, which reads files. It prints
# the process's id, then "+" after each block, "." after the last, after which it waits for an empty
# line, and finally the exit status.
READER = """
import gc, json, os, sys, torch
from pathlib import Path
import streamlm, streamlm.sessions.opening, streamlm.sessions.sources
torch.set_num_threads(1)
streamlm.sessions.sources.BLOCK = 64
model = streamlm.load(sys.argv[1], device="cpu")
gc.freeze()  # a collection would copy every page that the processes share

def tell(now):
    print("." if (now.name, now.read) == (files[-1], now.size) else "+", flush=True)
    sys.stdin.readline()

for line in filter(str.strip, sys.stdin):
    child = os.fork()
    if child:
        print(os.waitpid(child, 0)[1], flush=True)
        continue
    print(os.getpid(), flush=True)
    path, files, once = json.loads(line)
    with streamlm.open(path, model, save_every=12) as session:
        session.feed(*map(Path, files), once=once, progress=tell)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def reader(tiny_folder: Callable[..., Path]) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", READER, str(tiny_folder())]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize(("n_files", "once"), [(1, False), (2, True), (3, False)])
def test_kill_9_loses_nothing_saved(
    n_files: int,
    once: bool,
    reader: "subprocess.Popen[str]",
    tiny_folder: Callable[..., Path],
    prose: Callable[..., str],
    token_log: Callable[..., list[int]],
    tmp_path: Path,
) -> None:
    assert reader.stdin is not None and reader.stdout is not None
    chance = random.Random(n_files)
    text = prose(160, seed=n_files)
    bounds = [len(text) * index // n_files for index in range(n_files + 1)]
    files = [tmp_path / f"{index}.txt" for index in range(n_files)]
    for file, start, stop in zip(files, bounds, bounds[1:], strict=False):
        file.write_text(text[start:stop], encoding="utf-8", newline="")
    path, n_killed, positions = tmp_path / "killed.zarr", 0, [0]
    checkpoint = load_checkpoint(tiny_folder(), device="cpu")
    while True:
        reader.stdin.write(json.dumps([str(path), list(map(str, files)), once]) + "\n")
        reader.stdin.flush()
        # Later processes may read more blocks; otherwise a fast reader would never save in time.
        child, left = int(reader.stdout.readline()), chance.randrange(1, 3 + n_killed // 2)
        while (line := reader.stdout.readline()) in ("+\n", ".\n"):
            left -= 1
            # Without `once`, files that were read to their end are read again by the next call, so
            # there the process may not get to its end before it is killed.
            waits = left == 0 and line == ".\n" and not once
            if not waits:
                reader.stdin.write("\n")
                reader.stdin.flush()
            if left == 0:
                for _ in range(0 if waits else chance.randrange(100_000)):
                    pass  # kill it at a random moment of reading or saving
                with suppress(ProcessLookupError):  # it has ended already
                    os.kill(child, signal.SIGKILL)
        if int(line) == 0:
            break
        assert int(line) == signal.SIGKILL
        n_killed += 1
        if path.exists() and DirectoryStore.open(path).head("main"):
            assert DirectoryStore.open(path).verify().commits > 0
            positions.append(len(token_log(path)))
    assert n_killed > 2
    assert positions == sorted(positions) and positions[-1] > 0  # never backwards
    with streamlm.open(path, checkpoint) as killed:
        alone = tmp_path / "alone.zarr"
        with streamlm.open(alone, checkpoint) as session:
            session.feed(*files)
        assert (killed.position, killed.tail) == (session.position, session.tail)
        assert token_log(path) == token_log(alone)
        assert_same_state(killed.state, session.state, tolerance=1e-4)
