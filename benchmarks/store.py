"""What a store costs: commits and resumes beside the least a disk can do, forks, and years of use.

    python -m benchmarks.store --threads 1          # half an hour
    python -m benchmarks.store --parts years        # anew, beside what is there
    python -m benchmarks.store --repeats 5 --commits 500       # a quick look

States are made up, of the sizes of small and of pretrained models: what a store does depends on
their size alone. Each commit adds a segment of 128 slots of memory and 32 compressed ones. Then two
models read a book, with a commit after every segment and with none, in turns.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import streamlm
from benchmarks.tools.saving import added_bytes, flat, save_synced
from benchmarks.tools.store_report import FORKS, TARGETS, TOKENS, draw, show
from benchmarks.tools.timing import median_interval, ratio, seconds, side_by_side
from memory_store import DirectoryStore, Ref, Retention, Snapshot, Window
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.cli.display import bar
from streamlm.config import ModelConfig
from streamlm.lab.results import usable_cores, write_results
from streamlm.models.build import build_model
from streamlm.sessions.saving import gc_is_due
from streamlm.training.documents import read_documents

SEGMENT, COMPRESSED = 128, 32
# Layers, slots of each of the two windows, width: 12.6 MB and 53 MB of bfloat16.
STATES = {"12.6 MB": (12, 512, 512), "53 MB": (24, 540, 1024)}
SMALL = (2, 512, 16)
PARTS = ("costs", "forks", "feeding", "years")
POLICIES = {
    "all": Retention(),
    "newest 32, older ones by age": Retention(last=32, thin=True),
    "newest 32": Retention(last=32),
    "newest 32, no older tokens": Retention(last=32, log=False),
}
POINTS = 20  # of each curve
# Characters that a model reads at a time, and how often for each repeat: short segments take turns
# more often, for they vary more.
READ = {"bundled": (1 << 13, 4), "larger": (1 << 12, 1)}
LARGER = {"n_layers": 12, "d_model": 512, "n_heads": 8, "head_dim": 64, "d_ff": 2048}


def states(shape: tuple[int, int, int], *, tokens: int = SEGMENT) -> Iterator[Snapshot]:
    """Snapshots of a stream, its windows full, a segment apart."""
    layers, slots, width = shape
    random = np.random.default_rng(0)

    def made(n: int) -> np.ndarray:
        return random.integers(0, 2**16, (layers, n, width), dtype=np.uint16)

    memory, compressed = made(slots), made(slots)
    position, ends = 0, [slots, slots]
    while True:
        position += tokens
        ends = [ends[0] + SEGMENT, ends[1] + COMPRESSED]
        memory = np.concatenate([memory[:, SEGMENT:], made(SEGMENT)], axis=1)
        compressed = np.concatenate([compressed[:, COMPRESSED:], made(COMPRESSED)], axis=1)
        yield Snapshot(
            position,
            {
                "memory": Window(memory, 1, ends[0], slots),
                "compressed": Window(compressed, 1, ends[1], slots),
            },
            {"segment": made(1)},
            random.integers(0, 8192, tokens, dtype=np.int32),
            {"tail": "", "stored_dtype": "bfloat16"},
        )


def costs(
    shape: tuple[int, int, int], folder: Path, *, repeats: int, progress: Callable[[], object]
) -> dict[str, Any]:
    """Commit and resume of one size, each followed by its floor."""
    store, stream = DirectoryStore.create(folder / "s.zarr"), states(shape)
    before = next(stream)
    ref = store.commit(before, parent=None)
    commits: list[float] = []
    floors: list[float] = []
    for index in range(repeats + 1):
        snapshot = next(stream)
        started = time.perf_counter()
        ref = store.commit(snapshot, parent=ref)
        spent = time.perf_counter() - started
        added = added_bytes(before, snapshot)
        file = folder / f"{index}.npy"
        floor = save_synced(file, added)
        file.unlink()
        if index:  # the first one imports
            commits.append(spent)
            floors.append(floor)
            progress()
        before = snapshot
    whole = flat([*(window.data for window in before.windows.values()), *before.arrays.values()])
    save_synced(folder / "whole.npy", whole)

    def resumes(keep: Callable[[object], object]) -> dict[str, Any]:
        return _against(
            *side_by_side(
                lambda: seconds(lambda: keep(_resume(store.path, ref))),
                lambda: seconds(lambda: keep(np.load(folder / "whole.npy"))),
                repeats=repeats,
                progress=progress,
            )
        )

    loaded: list[object] = []
    return {
        "state_bytes": whole.nbytes,
        "added_bytes": added.nbytes,
        "commit": _against(commits, floors),
        # What was loaded stays: who resumes has no memory yet that could be used again.
        "resume": resumes(loaded.append),
        "resume_into_used_memory": resumes(lambda found: None),
    }


def _resume(path: Path, ref: Ref) -> Snapshot:
    return DirectoryStore.open(path).load(ref)


def _against(spent: list[float], floors: list[float]) -> dict[str, Any]:
    return {
        "ms": median_interval([s * 1000 for s in spent]),
        "floor_ms": median_interval([s * 1000 for s in floors]),
        "to_floor": ratio(spent, floors),
    }


def disk_bytes(path: Path) -> int:
    """What the files of a session take on the disk: whole blocks, folders too."""
    return sum(each.lstat().st_blocks * 512 for each in [path, *path.rglob("*")])


def models() -> dict[str, Checkpoint]:
    """The bundled model, and an untrained one whose float32 state has 25 MB."""
    bundled = streamlm.load(device="cpu")
    config = ModelConfig(
        vocab_size=bundled.model.config.vocab_size,
        **LARGER,
        segment_len=SEGMENT,
        memory_len=512,
        compressed_len=512,
        compression_rate=4,
        norm="pre",
        final_norm=True,
    )
    return {
        "bundled": bundled,
        "larger": Checkpoint(build_model(config).freeze(), bundled.tokenizer),
    }


def feeding(
    checkpoint: Checkpoint,
    text: str,
    folder: Path,
    *,
    repeats: int,
    progress: Callable[[], object],
) -> dict[str, Any]:
    """Reading with a commit after every segment, beside reading with one at the end alone."""
    often = streamlm.open(folder / "often.zarr", checkpoint, save_every=SEGMENT)
    once = streamlm.open(folder / "once.zarr", checkpoint, save_every=1 << 40)
    with often, once:
        # Side by side from full windows on, for a state grows until then.
        config = checkpoint.model.config
        while once.position < config.memory_len + config.compressed_len * config.compression_rate:
            for session in (often, once):
                session.feed(text)
        start, n_before = often.position, len(often.history())
        with_commits, without = side_by_side(
            lambda: seconds(lambda: often.feed(text)),
            lambda: seconds(lambda: once.feed(text)),
            repeats=repeats,
            progress=progress,
        )
        n_segments = often.position // SEGMENT - start // SEGMENT
        return {
            "state_bytes": often.state.nbytes,
            "segments": n_segments,
            "commits": len(often.history()) - n_before,
            "segment_ms": median_interval(
                [s * 1000 / (n_segments / (repeats + 1)) for s in without]
            ),
            "to_none": ratio(with_commits, without),
        }


def forks(folder: Path, *, progress: Callable[[], object]) -> dict[str, Any]:
    """What so many branches of one session add to it."""
    store, stream = DirectoryStore.create(folder / "forks.zarr"), states(STATES["12.6 MB"])
    ref = store.commit(next(stream), parent=None)
    ref = store.commit(next(stream), parent=ref)
    before, held = disk_bytes(store.path), store.size()
    for index in range(FORKS):
        store.publish(ref, branch=f"fork-{index}")
        progress()
    return {
        "forks": FORKS,
        "before": before,
        "share": disk_bytes(store.path) / before - 1,
        "share_of_bytes": store.size() / held - 1,
    }


def years(
    retention: Retention, folder: Path, *, commits: int, progress: Callable[[], object]
) -> dict[str, Any]:
    """Bytes on the disk along many commits of a small state, collected as a session does."""
    # Not synced: it takes as many bytes, and less time.
    store = DirectoryStore.create(folder / "years.zarr", durability="normal")
    stream, curve = states(SMALL, tokens=TOKENS), []
    ref, collecting = None, 0.0
    for index, snapshot in zip(range(1, commits + 1), stream, strict=False):
        ref = store.commit(snapshot, parent=ref)
        if retention != Retention() and gc_is_due(ref.seq, retention):
            collecting += seconds(partial(store.gc, retention))
        if index % max(1, commits // POINTS) == 0:
            curve.append([index, disk_bytes(store.path)])
        progress()
    assert ref is not None
    last, first = curve[-1], curve[len(curve) // 2]
    store.load(ref)
    return {
        "curve": curve,
        "bytes_a_token": last[1] / (last[0] * TOKENS),
        "bytes_a_token_late": (last[1] - first[1]) / max(1, (last[0] - first[0]) * TOKENS),
        "collecting_seconds": collecting,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=30, help="of each commit and resume")
    parser.add_argument("--commits", type=int, default=10_000, help="of each policy")
    parser.add_argument("--threads", type=int, help="of the models that read")
    parser.add_argument("--data", type=Path, default=Path("data/books/valid.txt.xz"))
    parser.add_argument(
        "--folder", type=Path, default=Path("runs"), help="on a disk, not a RAM disk"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads or usable_cores())
    settings = {
        "repeats": options.repeats,
        "commits": options.commits,
        "tokens_a_commit": TOKENS,
        "threads": torch.get_num_threads(),
        "states": {name: list(shape) for name, shape in STATES.items()},
        "small": list(SMALL),
        "targets": TARGETS,
    }
    figures = measured(options.out / "store.json", settings)
    steps = {
        "costs": 3 * options.repeats * len(STATES),
        "forks": FORKS,
        "feeding": options.repeats * sum(times for _, times in READ.values()),
        "years": options.commits * len(POLICIES),
    }
    with bar("a store", total=sum(steps[part] for part in options.parts)) as (progress, task):
        for part in options.parts:
            figures[part] = measure(part, options, partial(progress.advance, task))
            write_results(options.out / "store.json", settings=settings, figures=figures)
    if set(figures) == set(PARTS):
        draw(figures, options.out / "store.png")
    show(figures)


def measured(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What was found before, if it was measured alike."""
    if not path.exists():
        return {}
    there = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = there["figures"]
    return found if there["settings"] == settings else {}


def measure(
    part: str, options: argparse.Namespace, progress: Callable[[], object]
) -> dict[str, Any]:
    """One of PARTS."""

    def folder() -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="store-", dir=options.folder)

    found: dict[str, Any] = {}
    if part == "costs":
        for name, shape in STATES.items():
            with folder() as where:
                found[name] = costs(shape, Path(where), repeats=options.repeats, progress=progress)
    elif part == "forks":
        with folder() as where:
            found = forks(Path(where), progress=progress)
    elif part == "feeding":
        text = next(read_documents(options.data))
        for name, checkpoint in models().items():
            size, times = READ[name]
            with folder() as where:
                found[name] = feeding(
                    checkpoint,
                    text[:size],
                    Path(where),
                    repeats=options.repeats * times,
                    progress=progress,
                )
    else:
        for name, retention in POLICIES.items():
            with folder() as where:
                found[name] = years(
                    retention, Path(where), commits=options.commits, progress=progress
                )
    return found


if __name__ == "__main__":
    main()
