"""Google Cloud Storage as source and target, against a server of its API on this machine."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from marrowscope.errors import DataError, ImageError, OutputError, StoreError

pytest.importorskip("pyarrow.fs", reason="pyarrow is not installed")

from marrowscope.cluster import stores
from marrowscope.cluster.stores import Folder, find_objects, read_bytes


@pytest.fixture
def upload(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, bytes], str]]:
    """Puts an object into the empty bucket ``cells``; gives its name."""
    server = subprocess.Popen([sys.executable, Path(__file__).with_name("gcs_server.py")], stdout=subprocess.PIPE)
    assert server.stdout is not None
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{int(server.stdout.readline())}")
    monkeypatch.setattr(stores, "_GIVE_UP_AFTER", timedelta(seconds=1))
    stores._filesystem.cache_clear()

    def put(key: str, data: bytes) -> str:
        fs, path = stores.locate(f"gs://cells/{key}")
        with fs.open_output_stream(path) as out:
            out.write(data)
        return f"gs://cells/{key}"

    yield put
    stores._filesystem.cache_clear()
    server.kill()
    server.wait()
    server.stdout.close()


def test_objects_are_found_in_the_order_of_files(upload: Callable[[str, bytes], str]) -> None:
    keys = ["s/2.png", "s/1.JPG", "s/10/a b é%20.png", "s/10/.hidden.png", "s/.git/x.png", "s/notes.txt", "s2/3.tif"]
    for key in keys:
        upload(key, b"x")
    assert list(find_objects("gs://cells/s")) == [f"gs://cells/s/{n}" for n in ("1.JPG", "2.png", "10/a b é%20.png")]
    assert list(find_objects("gs://cells/s*/?.*")) == [f"gs://cells/{n}" for n in ("s/1.JPG", "s/2.png", "s2/3.tif")]
    assert len(list(find_objects("gs://cells"))) == 4
    assert list(find_objects("gs://cells/s/2.png")) == ["gs://cells/s/2.png"]
    with pytest.raises(DataError, match="Nothing is at gs://cells/none"):
        list(find_objects("gs://cells/none"))


def test_reading(upload: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = upload("a/é #?.png", b"12345")
    assert read_bytes(name) == b"12345"
    for refused, reason in (
        ("gs://cells/none.png", "missing: no such file"),
        ("gs://cells/a", "missing: no such file"),
        ("gs://other/a.png", "missing: no such file"),
        (upload("locked.png", b"1"), "unreadable: access denied"),
        (upload("empty.png", b""), "empty file"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_bytes(refused)
    with pytest.raises(StoreError, match=r"Can't read gs://cells/failing.png: .*UNAVAILABLE"):
        read_bytes("gs://cells/failing.png")
    monkeypatch.setattr("marrowscope.images.MAX_BYTES", 4)
    with pytest.raises(ImageError, match="file too large: 5 bytes; allowed are 4"):
        read_bytes(name)


def test_waiting_for_the_store_leaves_other_threads_alone(upload: Callable[[str, bytes], str]) -> None:
    name = upload("slow.png", b"12345")
    turns, ended = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not ended.wait(0.01):
            turns += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = time.monotonic()
    assert read_bytes(name) == b"12345"
    seconds = time.monotonic() - before
    ended.set()
    thread.join()
    assert seconds > 0.8, "the server should have taken its time"
    assert turns > 20


def test_a_folder_of_results(upload: Callable[[str, bytes], str], tmp_path: Path) -> None:
    folder = Folder("gs://cells/out/")
    assert folder.names() == set()
    (tmp_path / "x").write_bytes(b"hello")
    folder.put(tmp_path / "x", "x.json")
    assert (folder.names(), folder.text("x.json")) == ({"x.json"}, "hello")
    with pytest.raises(OutputError, match=r"Can't read gs://cells/out/y.json"):
        folder.text("y.json")
    with pytest.raises(OutputError, match=r"Can't write gs://other/out/x.json"):
        Folder("gs://other/out").put(tmp_path / "x", "x.json")
