"""The files of a session: plain Zarr v3, chained by ids, read without zarr-python."""

import json
import shutil
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from memory_store import LogRows, Snapshot, Window
from memory_store.format.json import canonical, sha256
from memory_store.format.zarr import FILL, array_document
from tests.support.stores import ROOT, Stream, assert_same_bits, files, members, new_store


def test_zarr_reads_and_writes_the_same(tmp_path: Path) -> None:
    import zarr
    from zarr.codecs import Crc32cCodec

    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    stream.read(8, memory=8, compressed=2)
    snapshot = stream.snapshot()
    small = {f"a-{dtype}": np.ones((2, 3), dtype) for dtype in FILL}
    snapshot = replace(snapshot, arrays={**snapshot.arrays, **small, "scalar": np.array(3.5)})
    ref = store.commit(snapshot, parent=None)

    path = tmp_path / "s.zarr" / "commits" / ref.commit.name
    inside = members(path.read_bytes())
    for name, array in snapshot.arrays.items():
        assert_same_bits(np.asarray(store.group(ref)[name]), array)
        written = zarr.create_array(
            tmp_path / "zarr" / name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=array.shape,
            compressors=Crc32cCodec(),
            fill_value=0,
            chunk_key_encoding={"name": "default", "separator": "."},
            config={"write_empty_chunks": True},
        )
        written[...] = array
        document = json.loads((tmp_path / "zarr" / name / "zarr.json").read_text())
        assert document == array_document(array.shape, array.dtype.name), name
        ours = {key: data for key, data in inside.items() if key.startswith(f"{name}/")}
        assert json.loads(ours.pop(f"{name}/zarr.json")) == document
        theirs = files(tmp_path / "zarr" / name)
        assert ours == {f"{name}/{k}": v for k, v in theirs.items() if "json" not in k}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata is not in the specification yet
        plain, consolidated = (
            zarr.open_group(zarr.storage.ZipStore(path), mode="r", use_consolidated=which)
            for which in (False, True)
        )
    assert set(plain.array_keys()) == {*snapshot.arrays, *snapshot.windows, "tokens"}
    assert set(consolidated.array_keys()) == set(plain.array_keys())
    assert plain.attrs["position"] == 8


def test_zarr_reads_arrays_of_many_chunks(tmp_path: Path) -> None:
    data = np.arange(5 * 2_000_000, dtype=np.float32).reshape(5, 2_000_000)  # 40 MB
    store = new_store(tmp_path / "s.zarr")
    ref = store.commit(Snapshot(0, {"w": Window(data, 1, 2_000_000, 2_000_000)}), parent=None)
    assert_same_bits(np.asarray(store.group(ref)["w"]), data)
    rows = np.arange(5_000_000, dtype=np.int8).reshape(25_000, 200)
    log = Snapshot(25_000, tokens=np.arange(25_000), logs={"keys": LogRows(0, rows)})
    array = store.group(store.commit(log, parent=ref))["keys"]
    assert array.chunks == (8334, 200)  # 2 MiB at most
    assert_same_bits(np.asarray(array), rows)


def test_other_tools_read_a_commit(tmp_path: Path) -> None:
    """Python's zipfile and, where it is installed, Info-ZIP's unzip."""
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    stream.read(8, memory=8, compressed=2)
    ref = store.commit(stream.snapshot(), parent=None)
    path = tmp_path / "s.zarr" / "commits" / ref.commit.name
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[0] == "zarr.json"
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    if unzip := shutil.which("unzip"):
        subprocess.run([unzip, "-tqq", path], check=True)


def test_the_id_chain(tmp_path: Path) -> None:
    store, stream, ref = new_store(tmp_path / "s.zarr"), Stream(), None
    for _ in range(3):
        stream.read(4, memory=4)
        before, ref = ref, store.commit(stream.snapshot(), parent=ref)
        path = tmp_path / "s.zarr" / "commits" / ref.commit.name
        attributes = json.loads(members(path.read_bytes())["zarr.json"])["attributes"]
        assert sha256(canonical(attributes)) == ref.commit.id
        assert attributes["parent"] == (
            before
            and {
                "commit": before.commit.name,
                "id": before.commit.id,
                "position": before.position,
            }
        )


def test_importing_and_using_it_is_light(tmp_path: Path) -> None:
    code = """
import sys
import tracemalloc
from memory_store import DirectoryStore, Snapshot
store = DirectoryStore.create(sys.argv[1])
store.load(store.commit(Snapshot(0), parent=None))
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "s.zarr")]
    out = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "memory_store" in out.split()
    assert not {"zarr", "torch", "streamlm"} & set(out.split())
