"""Many documents: names, pools whose workers die, reports that are gone on with."""

import gzip
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from memory_store import DirectoryStore, StoreError
from memory_store.backends.object_client import connect
from streamlm.jobs import pool
from streamlm.jobs.job import Job, Plan
from streamlm.jobs.listing import jobs_of, name_of
from streamlm.jobs.pool import local_rows
from streamlm.jobs.report import done_before, run_all
from streamlm.jobs.worker import run_job
from tests.support.command_line import CommandLine, refuses
from tests.support.s3 import S3Server

PATIENCE = 120.0  # seconds; a limit for what takes a few
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def workers_find_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, sys.path)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def documents(tmp_path: Path, prose: Callable[..., str]) -> list[str]:
    """Four texts, the first longer than the others, some of them packed."""
    folder = tmp_path / "docs" / "deep"
    folder.mkdir(parents=True)
    for n in range(4):
        text = prose(1200 if n == 0 else 60, seed=n)
        path = folder / f"{n}.txt"
        if n == 2:
            path = path.with_name("2.txt.gz")
            path.write_bytes(gzip.compress(text.encode()))
        elif n == 3:
            path = path.with_name("3.txt.zst")
            path.write_bytes(zstandard.compress(text.encode()))
        else:
            path.write_text(text, encoding="utf-8")
    return [str(path) for path in sorted(folder.iterdir())]


def test_a_killed_worker_changes_nothing(
    documents: list[str], tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a document, which another goes on with: the same state."""
    started: list[Any] = []

    class Watched(pool._Worker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(pool, "_Worker", Watched)
    jobs = jobs_of([str(tmp_path / "docs")])
    assert [job.name for job in jobs] == ["deep-0", "deep-1", "deep-2", "deep-3"]

    def plan(store: str) -> Plan:
        saving = {"save_every": 32, "save_seconds": None}
        return Plan("feed", store=str(tmp_path / store), model=str(model), saving=saving)

    killed_at: list[int] = []

    def kill() -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(0.01)
            try:
                head = DirectoryStore.open(tmp_path / "killed" / "deep-0.zarr").head("main")
            except StoreError:
                continue
            if head is not None and head.position >= 64:
                worker = next(each for each in started if each.job and each.job.name == "deep-0")
                worker.process.send_signal(signal.SIGKILL)
                killed_at.append(head.position)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    run = lambda jobs: local_rows(jobs, plan("killed"), workers=2)  # noqa: E731
    rows = list(run_all(jobs, run, tmp_path / "killed.jsonl", retries=1, resume=False))
    killer.join()
    failures = [row for row in rows if row["status"] == "failed"]
    assert [(row["name"], row["attempt"]) for row in failures] == [("deep-0", 1)]
    assert failures[0]["error"] == "its worker was ended by signal 9"
    (again,) = [row for row in rows if row["attempt"] == 2]
    assert 0 < again["tokens"] < again["position"] and again["position"] > killed_at[0]

    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, sys.path)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole = {row["name"]: row for row in local_rows(jobs, plan("whole"), workers=1)}
    found = {row["name"]: row for row in rows if row["status"] == "done"}
    for name, row in whole.items():
        assert (found[name]["digest"], found[name]["position"]) == (row["digest"], row["position"])

    # Once more: nothing is read, and nothing is saved.
    before = {name: DirectoryStore.open(row["session"]).refs("main") for name, row in found.items()}
    for row in (run_job(job, plan("killed")) for job in jobs):
        assert (row["status"], row["tokens"]) == ("done", 0)
        assert row["digest"] == found[row["name"]]["digest"]
        assert DirectoryStore.open(row["session"]).refs("main") == before[row["name"]]


def test_the_commands(
    cli: CommandLine, documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs/bad.txt").write_bytes(b"caf\xe9 noir")
    model = ("--model", cli.model, "--workers", 1)
    small = "docs/deep/[123].txt*"
    words = ("feed-all", small, "docs/bad.txt", *model, "--retries", 0, "--json")
    result = cli(*words)
    assert result.status == 1 and "error: bad: " in result.err and "UTF-8" in result.err
    facts = json.loads(result.out)
    assert (facts["documents"], facts["done"]) == (4, 3) and facts["failed"].keys() == {"bad"}
    rows = [json.loads(line) for line in Path("feed-all.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows} == {"1", "2", "3", "bad"}
    assert cli.works("sessions", "list", "--json").json["unreadable"] == {}

    # The report goes on; what is done is left out.
    Path("docs/bad.txt").write_text("good now. ", encoding="utf-8")
    refuses(cli, "feed-all.jsonl exists; allowed: --resume", *words)
    facts = cli.works(*words, "--resume").json
    assert (facts["documents"], facts["done"], facts["failed"]) == (4, 4, {})
    added = Path("feed-all.jsonl").read_text().splitlines()[len(rows) :]
    assert [json.loads(line)["name"] for line in added] == ["bad"]

    facts = cli.works("score-all", small, *model, "--json").json
    assert facts["done"] == 3
    scored = [json.loads(line) for line in Path("score-all.jsonl").read_text().splitlines()]
    alone = cli.works("score", "docs/deep/1.txt", "--model", cli.model, "--json").json
    (one,) = [row for row in scored if row["name"] == "1"]
    assert one["bits_per_byte"] == pytest.approx(alone["bits_per_byte"])


def test_names_and_manifests(tmp_path: Path) -> None:
    for name in ("a/b.txt", "a/c.html.gz", "a/.hidden", "Été 1.txt", "d"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    found = jobs_of([str(tmp_path)])
    assert [job.name for job in found] == ["a-b", "a-c", "d", "t-1"]
    assert [job.name for job in jobs_of([f"{tmp_path}/**/*.txt"])] == ["a-b", "t-1"]
    assert name_of("s3://bucket/books/x/Moby Dick.txt.xz", "s3://bucket/books") == "x-Moby-Dick"
    manifest = tmp_path / "all.tsv"
    manifest.write_text("# books\nboth\ta/b.txt\td\n\na/b.txt\ns3\ts3://bucket/a.txt\n")
    assert jobs_of([], [manifest]) == [
        Job("both", (str(tmp_path / "a/b.txt"), str(tmp_path / "d"))),
        Job("a-b", (str(tmp_path / "a/b.txt"),)),
        Job("s3", ("s3://bucket/a.txt",)),
    ]
    (tmp_path / "a-b.txt").write_text("x")
    with pytest.raises(ValueError, match="would both be session a-b; allowed: a manifest"):
        jobs_of([str(tmp_path)])
    with pytest.raises(ValueError, match="no documents; allowed: files, folders"):
        jobs_of([])
    with pytest.raises(FileNotFoundError, match="no file matches"):
        jobs_of([f"{tmp_path}/*.none"])
    manifest.write_text("x\ta/none.txt\n")
    with pytest.raises(FileNotFoundError, match=r"all.tsv, line 1: no file .*none"):
        jobs_of([], [manifest])
    with pytest.raises(ValueError, match="no name for a session can be made"):
        name_of("é.txt")


def test_a_report_that_was_cut_is_gone_on_with(tmp_path: Path) -> None:
    report, jobs = tmp_path / "r.jsonl", [Job("a", ("a",)), Job("b", ("b",))]
    done = {"status": "done", "tokens": 1, "bytes": 1}
    row = {**jobs[0].to_json(), **done, "attempt": 1}
    report.write_text(json.dumps(row) + "\n" + json.dumps({**row, "name": "b"})[:30])
    assert done_before(report).keys() == {"a"}
    ran: list[str] = []

    def run(given: Any) -> Any:
        for job in given:
            ran.append(job.name)
            yield {**job.to_json(), **done}

    list(run_all(jobs, run, report, retries=0, resume=True))
    assert ran == ["b"] and done_before(report).keys() == {"a", "b"}
    # Other sources under the same name are another document.
    list(run_all([Job("a", ("c",))], run, report, retries=0, resume=True))
    assert ran == ["b", "a"]


def test_ray_is_missing_or_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlm.jobs.ray_pool import ray_rows

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"--ray without the package ray; allowed: pip install"):
        next(ray_rows([Job("a", ("a",))], Plan("feed"), address="local", workers=1))


@pytest.mark.slow
def test_a_killed_worker_of_ray_changes_nothing(
    documents: list[str], tmp_path: Path, model: Path
) -> None:
    ray = pytest.importorskip("ray")
    from streamlm.jobs.ray_pool import ray_rows

    jobs = jobs_of([str(tmp_path / "docs")])

    def plan(store: str) -> Plan:
        saving = {"save_every": 32, "save_seconds": None}
        return Plan("feed", store=str(tmp_path / store), model=str(model), saving=saving)

    def kill() -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(0.01)
            try:
                head = DirectoryStore.open(tmp_path / "killed" / "deep-0.zarr").head("main")
            except StoreError:
                continue
            if head is not None and head.position >= 64:
                lock = tmp_path / "killed" / "deep-0.zarr" / "refs" / "main" / ".lock"
                os.kill(int(lock.read_text().split()[0]), signal.SIGKILL)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    run = lambda jobs: ray_rows(jobs, plan("killed"), address="local", workers=2)  # noqa: E731
    rows = list(run_all(jobs, run, tmp_path / "killed.jsonl", retries=2, resume=False))
    killer.join()
    assert not ray.is_initialized()
    assert [row["name"] for row in rows if row["status"] == "failed"] == ["deep-0"]
    found = {row["name"]: row["digest"] for row in rows if row["status"] == "done"}
    whole = {row["name"]: row["digest"] for row in local_rows(jobs, plan("whole"), workers=1)}
    assert found == whole


def test_failures_are_tried_again_after_the_others(tmp_path: Path) -> None:
    jobs, tried = [Job(name, (name,)) for name in "abc"], list[str]()

    def run(given: Any) -> Any:
        for job in given:
            tried.append(job.name)
            good = job.name != "a" or tried.count("a") == 3
            yield {**job.to_json(), "status": "done" if good else "failed", "error": "gone"}

    rows = list(run_all(jobs, run, tmp_path / "r.jsonl", retries=2, resume=False))
    assert tried == ["a", "b", "c", "a", "a"]
    assert [row["attempt"] for row in rows] == [1, 1, 1, 2, 3]
    assert done_before(tmp_path / "r.jsonl").keys() == {"a", "b", "c"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = S3Server()
    server.make_bucket("shelf")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    yield "s3://shelf"
    server.stop()


def test_objects(bucket: str, model: Path, prose: Callable[..., str]) -> None:
    """Documents and sessions in object storage: by prefix, by glob and one by one."""
    client, _ = connect(bucket)
    texts = {f"corpus/{n}.txt": prose(40, seed=n) for n in range(2)}
    for key, text in texts.items():
        client.put(key, text.encode())
    client.put("corpus/deep/2.txt.gz", gzip.compress(prose(40, seed=2).encode()))
    assert [job.name for job in jobs_of(["s3://shelf/corpus"])] == ["0", "1", "deep-2"]
    assert [job.name for job in jobs_of(["s3://shelf/corpus/*.txt"])] == ["0", "1"]
    (one,) = jobs_of(["s3://shelf/corpus/0.txt"])
    assert one == Job("0", ("s3://shelf/corpus/0.txt",))
    with pytest.raises(FileNotFoundError, match="no object at s3://shelf/none"):
        jobs_of(["s3://shelf/none"])
    plan = Plan("feed", store="s3://shelf/sessions", model=str(model))
    for job in jobs_of(["s3://shelf/corpus"]):
        row = run_job(job, plan)
        assert row["status"] == "done" and row["tokens"] > 0, row
        again = run_job(job, plan)
        assert (again["tokens"], again["digest"]) == (0, row["digest"])
