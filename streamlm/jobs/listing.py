"""Which jobs there are: files, folders, globs, objects in storage, and manifests."""

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from memory_store.backends.object_client import connect, is_url, split
from streamlm.jobs.job import Job

WILD = re.compile(r"[*?\[]")
PACKED = (".gz", ".xz", ".bz2", ".zst")


def jobs_of(sources: Sequence[str], manifests: Iterable[Path] = ()) -> list[Job]:
    """A job for each document that is named, and for each line of the manifests.

    Args:
        sources: files; folders, for all files below them that are not hidden; globs, with ** for
            folders; s3://, gs:// and az:// URLs of objects, prefixes and globs.
        manifests: files of lines `SOURCE`, or `NAME<TAB>SOURCE` with further sources after further
            tabs. Sources are relative to the manifest's folder. Lines that begin with # are left
            out.

    Raises:
        ValueError: there are none, or two have the same name.
        FileNotFoundError: a file does not exist.
    """
    found = [Job(name_of(place, root), (place,)) for place, root in _places(sources)]
    for manifest in manifests:
        found += _lines(manifest)
    if not found:
        raise ValueError("no documents; allowed: files, folders, globs, URLs, or --manifest FILE")
    named: dict[str, Job] = {}
    for job in found:
        other = named.setdefault(job.name, job)
        if other is not job and other != job:
            raise ValueError(
                f"{other.sources[0]} and {job.sources[0]} would both be session {job.name}; "
                "allowed: a manifest with NAME<TAB>SOURCE"
            )
    return list(named.values())


def name_of(place: str, root: str = "") -> str:
    """The session's name for a document: its path below `root`, in the letters of a name."""
    inner = place.removeprefix(root).lstrip("/") or PurePosixPath(place).name
    while PurePosixPath(inner).suffix.lower() in PACKED:
        inner = inner[: -len(PurePosixPath(inner).suffix)]
    path = PurePosixPath(inner)
    inner = str(path.with_suffix("")) if path.suffix and len(path.suffix) <= 6 else inner
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", inner).lstrip(".-")
    if not name or len(name) > 100:
        raise ValueError(
            f"{place}: no name for a session can be made of it; allowed: a manifest with "
            "NAME<TAB>SOURCE"
        )
    return name


def _places(sources: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each document, and the folder or prefix that is not part of its name."""
    for source in sources:
        if is_url(source):
            yield from _objects(source)
        elif WILD.search(source) and not Path(source).exists():
            root = str(Path(source[: WILD.search(source).start()] + "x").parent)  # type: ignore[union-attr]
            matches = sorted(glob.glob(source, recursive=True))
            if not matches:
                raise FileNotFoundError(f"no file matches {source!r}")
            yield from ((match, root) for match in matches if Path(match).is_file())
        elif Path(source).is_dir():
            for path in sorted(Path(source).rglob("*")):
                hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
                if path.is_file() and not hidden:
                    yield str(path), source
        elif Path(source).exists():
            yield source, str(Path(source).parent)
        else:
            raise FileNotFoundError(f"no file {source!r}")


def _objects(url: str) -> Iterator[tuple[str, str]]:
    scheme, bucket, key = split(url)
    wild = WILD.search(key)
    prefix = key[: wild.start()].rpartition("/")[0] if wild else key
    whole = f"{scheme}://{bucket}"
    client, _ = connect(whole)
    below = [each["path"] for chunk in client.list(prefix or None) for each in _rows(chunk)]
    matching = sorted(path for path in below if not wild or fnmatchcase(path, key))
    if not matching and not wild and _exists(client, key):
        matching, prefix = [key], key.rpartition("/")[0]
    if not matching:
        raise FileNotFoundError(f"no object at {url}")
    yield from ((f"{whole}/{path}", f"{whole}/{prefix}") for path in matching)


def _rows(chunk: Any) -> Iterable[Any]:
    return chunk if isinstance(chunk, (list, tuple)) else list(chunk)


def _exists(client: Any, key: str) -> bool:
    try:
        client.head(key)
    except FileNotFoundError:
        return False
    return True


def _lines(manifest: Path) -> Iterator[Job]:
    if not manifest.is_file():
        raise FileNotFoundError(f"no file {str(manifest)!r}")
    text = manifest.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        first, *rest = (part.strip() for part in line.split("\t"))
        given = rest or [first]
        places = [each if is_url(each) else str(manifest.parent / each) for each in given]
        for place in places:
            if not is_url(place) and not Path(place).exists():
                raise FileNotFoundError(f"{manifest}, line {number}: no file {place!r}")
        yield Job(first if rest else name_of(places[0], str(manifest.parent)), tuple(places))
