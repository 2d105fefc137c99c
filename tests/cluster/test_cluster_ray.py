"""Jobs on a Ray of two workers: the rows of a single process, whatever happens to workers, drivers and stores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from marrowscope.cluster import MANIFEST, Manifest, predict_cluster, run
from marrowscope.cluster.run import _Report
from marrowscope.errors import ClusterError, DataError, OutputError
from marrowscope.infer import load_predictor, predict_files

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

pytestmark = [
    pytest.mark.cluster,
    # Ray's own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CLI = [sys.executable, "-m", "marrowscope.cli", "predict"]


@pytest.fixture(scope="module")
def cluster(endpoint: str) -> Iterator[str]:
    """Ray of two workers on this machine, which know the store; gives its address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="ray is not installed: no cluster to test with")
    pytest.importorskip("ray.data", reason="ray[data] is not installed")
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 << 20,
        logging_level="ERROR", log_to_driver=False,
        # Workers are otherwise so nice (15) that other work on the machine keeps them from ever ending.
        _system_config={"worker_niceness": 0},
    )  # fmt: skip
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures so large that a part of them takes a while."""
    folder = tmp_path_factory.mktemp("slow") / "cells"
    folder.mkdir()
    rng = np.random.default_rng(7)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (1400, 1400, 3), dtype=np.uint8)).save(folder / f"{i}.jpg", quality=90)
    for i in range(6, 62):
        (folder / f"{i}.jpg").hardlink_to(folder / f"{i % 6}.jpg")
    (folder / "broken.jpg").write_text("text")
    (folder / "empty.png").touch()
    return folder


FAILED = {"empty file": 1, "not a known picture format": 1}
"""Of `slow`, which has 64 files."""


def single(model: Path, sources: Path | list[str], where: Path) -> Any:
    """What one process writes."""
    predict_files(load_predictor([model], threads=1), sources if isinstance(sources, list) else [sources], where)
    return pq.read_table(where)


def parts(target: Path) -> dict[str, int]:
    """Parts that are done, and when."""
    return {p.name: p.stat().st_mtime_ns for p in target.glob("part-*.parquet")}


def actors(of: int) -> list[tuple[int, str]]:
    """Process ids and titles of the actors at work below a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if title.startswith("ray::MapWorker") and _is_below(int(entry.name), of):
                    found.append((int(entry.name), title))
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
    return found


def _is_below(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    return pid == ancestor


def test_a_killed_worker_loses_and_doubles_nothing(cluster: str, model_path: Path, slow: Path, tmp_path: Path) -> None:
    target, killed, seen = tmp_path / "target", list[int](), list[int]()

    def kill(done: int, images: int) -> None:
        """Once some parts are done, end a worker that is in the middle of one."""
        assert images == 64
        seen.append(done)
        deadline = time.monotonic() + 60
        while not killed and 0 < done < 32 and time.monotonic() < deadline:
            busy = [pid for pid, title in actors(os.getpid()) if title.rstrip().endswith(".submit")]
            for pid in busy[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    summary = predict_cluster([model_path], [str(slow)], str(target), part_images=8, progress=kill)
    assert len(killed) == 1
    assert seen == list(range(0, 65, 8))
    assert (summary.total, summary.ok, summary.failed, summary.resumed) == (64, 62, FAILED, 0)
    assert pq.read_table(target).equals(single(model_path, slow, tmp_path / "one.parquet"))
    manifest = Manifest.read(target / MANIFEST)
    assert (manifest.finished, manifest.images, manifest.ok, manifest.failed) == (True, 64, 62, FAILED)
    assert parts(target).keys() == set(manifest.part_names().values())
    assert not list(target.glob(".*")), "what the killed worker was writing is still there"


def test_going_on_after_the_driver_was_killed(cluster: str, model_path: Path, slow: Path, tmp_path: Path) -> None:
    target, sources = tmp_path / "target", [str(slow / "[0-9]*"), str(slow / "broken.jpg"), str(slow / "empty.png")]
    code = (
        "import sys\nfrom marrowscope.cluster import predict_cluster\n"
        "predict_cluster([sys.argv[1]], sys.argv[4:], sys.argv[2], address=sys.argv[3], part_images=8)"
    )
    command = [sys.executable, "-c", code, str(model_path), str(target), cluster, *sources]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not parts(target) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL, "it ended before it was killed"
    before = parts(target)
    assert not json.loads((target / MANIFEST).read_text())["finished"]
    with pytest.raises(OutputError, match=r"holds the results of a job already. Go on with it with --resume"):
        predict_cluster([model_path], sources, str(target))
    summary = predict_cluster([model_path], sources, str(target), resume=True)
    assert (summary.total, summary.ok, summary.failed) == (64, 62, FAILED)
    assert 8 <= summary.resumed < 64
    after = parts(target)
    assert before.items() <= after.items()
    assert pq.read_table(target).equals(single(model_path, sources, tmp_path / "one.parquet"))
    # Once more: nothing is left to do, and nothing is done.
    again = predict_cluster([model_path], sources, str(target), resume=True)
    assert (again.total, again.ok, again.failed, again.resumed) == (64, 62, FAILED, 64)
    assert parts(target) == after


def test_a_store_as_source_and_target(
    cluster: str, model_path: Path, pictures: Path, upload: Callable[[str, bytes], str], bucket: str, tmp_path: Path
) -> None:
    from pyarrow import fs

    for file in pictures.rglob("*.*"):
        upload(f"in/{file.relative_to(pictures)}", file.read_bytes())
    done = subprocess.run(
        [*CLI, str(model_path), f"s3://{bucket}/in", "-o", f"s3://{bucket}/out", "--ray", cluster],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "10 of 11 files answered" in done.stdout
    assert f"written to s3://{bucket}/out" in done.stdout
    assert "1 failed: not a known picture format" in done.stderr
    store = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"])
    got = pq.read_table(f"{bucket}/out", filesystem=store).to_pydict()
    want = single(model_path, pictures, tmp_path / "one.parquet").to_pydict()
    want["path"] = [p.replace(str(pictures), f"s3://{bucket}/in") for p in want["path"]]
    assert got == want
    summary = predict_cluster([model_path], [f"s3://{bucket}/in/"], f"s3://{bucket}/out/", resume=True)
    assert (summary.total, summary.ok, summary.resumed) == (11, 10, 11)


def test_a_client_has_the_job_run_inside_the_cluster(
    cluster: str, model_path: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_from_afar", lambda: True)
    seen = list[tuple[int, int]]()
    summary = predict_cluster(
        [model_path], [str(pictures)], str(tmp_path / "target"), progress=lambda *n: seen.append(n)
    )
    assert (summary.total, summary.ok, seen) == (11, 10, [(0, 11), (11, 11)])
    assert pq.read_table(tmp_path / "target").equals(single(model_path, pictures, tmp_path / "one.parquet"))


# --------------------------------------------------------------------------------------------------------------- errors


def test_trouble_of_a_worker_ends_the_job() -> None:
    report = _Report(images=8, done=0, progress=None)
    report({"part": 0, "rows": 4, "ok": 4, "trouble": ""})
    with pytest.raises(ClusterError, match="The machine a: it does not see b"):
        report({"part": 1, "rows": 0, "ok": 0, "trouble": "The machine a: it does not see b"})
    assert report.done == 4


def test_wrong_sources_and_targets(cluster: str, model_path: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Nothing is at s3://no-such-bucket-here/in"):
        predict_cluster([model_path], ["s3://no-such-bucket-here/in"], str(tmp_path / "target"))
    with pytest.raises(OutputError, match=r"Can't write s3://no-such-bucket-here/out/.*bucket does not exist"):
        predict_cluster([model_path], [str(pictures)], "s3://no-such-bucket-here/out")
    with pytest.raises(OutputError, match="a cluster writes a folder of Parquet files"):
        predict_cluster([model_path], [str(pictures)], "predictions.csv")
    with pytest.raises(OutputError, match="part_images is 0"):
        predict_cluster([model_path], [str(pictures)], str(tmp_path / "target"), part_images=0)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "Nobody answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "Nobody answers at ray://127.0.0.1:1"),
        ("ray://nowhere", "is no address of a cluster"),
        ("everywhere", "is no address of a cluster"),
    ],
)
def test_addresses(model_path: Path, pictures: Path, tmp_path: Path, address: str, reason: str) -> None:
    code = (
        "import sys\nfrom marrowscope.cluster.run import _connect\nfrom marrowscope.errors import ClusterError\n"
        "try: _connect(sys.argv[1])\nexcept ClusterError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=60)
    assert reason in done.stdout, done.stderr


@pytest.mark.parametrize("package", ["ray", "pyarrow"])
def test_the_extra_is_missing(package: str, model_path: Path, pictures: Path, tmp_path: Path) -> None:
    code = f"import sys\nsys.modules[{package!r}] = None\nfrom marrowscope.cli import main\nmain()"
    arguments = ["predict", str(model_path), str(pictures), "-o", str(tmp_path / "t"), "--ray", "local"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"Predicting on a cluster needs the package '{package}" in done.stderr
    assert "pip install 'marrowscope[cluster]'" in done.stderr
