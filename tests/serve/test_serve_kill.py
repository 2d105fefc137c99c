"""What was acknowledged is there after `kill -9` at any moment, fifty times over; and a clean stop loses no request."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
from live import Live
from rooms import parts, picture

from marrowscope.serve.settings import Limits, Settings
from marrowscope.serve.store.blobs import Blobs, digest

KILLS = 50


@dataclass
class Acknowledged:
    """What the service said it had done."""

    uploads: set[str] = field(default_factory=set)
    labels: dict[int, tuple[int, str]] = field(default_factory=dict)
    changes: int = 0

    @property
    def count(self) -> int:
        return len(self.uploads) // 3 + self.changes


def _upload(address: str, case: str, seeds: list[int], seen: Acknowledged, stop: threading.Event) -> None:
    with httpx.Client(base_url=address, timeout=20) as client:
        while not stop.is_set():
            batch = [picture(seeds[0] + i, side=24) for i in range(3)]
            try:
                answer = client.post(f"/v1/cases/{case}/cells", files=parts(batch))
            except httpx.TransportError:
                return
            assert answer.status_code == 200, answer.text
            seeds[0] += 3
            seen.uploads |= {r["sha256"] for r in answer.json()["results"]}


def _label(address: str, case: str, seen: Acknowledged, stop: threading.Event, rng: random.Random) -> None:
    with httpx.Client(base_url=address, timeout=20) as client:
        while not stop.is_set():
            try:
                cells = client.get(f"/v1/cases/{case}/cells", params={"limit": 1000, "sort": "number"}).json()["cells"]
                for cell in rng.sample(cells, min(len(cells), 5)):
                    body = {"version": cell["version"], "label": rng.choice(["BLA", "EOS", "LYT", "NGS"])}
                    answer = client.patch(f"/v1/cases/{case}/cells/{cell['number']}", json=body)
                    assert answer.status_code == 200, answer.text
                    seen.labels[cell["number"]] = (answer.json()["cells"][0]["version"], body["label"])
                    seen.changes += 1
            except httpx.TransportError:
                return


def _wait_for_work(seen: Acknowledged, more: int) -> None:
    """Wait until some more was acknowledged, so that a slow machine is under load too."""
    goal = seen.count + more
    for _ in range(4000):
        if seen.count >= goal:
            return
        time.sleep(0.005)
    raise AssertionError("the service acknowledged nothing for 20 s")


def _check(address: str, case: str, seen: Acknowledged, folder: Path) -> None:
    with httpx.Client(base_url=address, timeout=20) as client:
        cells, offset = [], 0
        while page := client.get(f"/v1/cases/{case}/cells", params={"limit": 1000, "offset": offset}).json()["cells"]:
            cells += page
            offset += len(page)
    by_digest = {c["sha256"]: c for c in cells}
    assert seen.uploads <= by_digest.keys()
    numbers = sorted(c["number"] for c in cells)
    assert numbers == list(range(1, len(cells) + 1))
    by_number = {c["number"]: c for c in cells}
    for number, (version, label) in seen.labels.items():
        cell = by_number[number]
        assert cell["version"] >= version
        # A change that was under way may have been made without anybody being told.
        assert cell["version"] > version or cell["label"] == label
    blobs = Blobs(folder)
    for sha256 in by_digest:
        data = blobs.get(case, sha256)
        assert data is not None
        assert digest(data) == sha256


def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(tiny_model: Path, tmp_path: Path) -> None:
    settings = Settings(
        data=tmp_path, models=(str(tiny_model),), port=0, threads=1, limits=Limits(rate=1e6, burst=10**6)
    )
    rng = random.Random(7)
    seen, seeds = Acknowledged(), [0]
    live = Live(settings).start()
    case = httpx.post(f"{live.address}/v1/cases", json={"name": "killed"}).json()["id"]
    for _ in range(KILLS):
        stop = threading.Event()
        workers = [
            threading.Thread(target=_upload, args=(live.address, case, seeds, seen, stop)),
            threading.Thread(target=_label, args=(live.address, case, seen, stop, rng)),
        ]
        for w in workers:
            w.start()
        _wait_for_work(seen, rng.randrange(6))
        time.sleep(rng.uniform(0.0, 0.03))
        live.kill()
        stop.set()
        for w in workers:
            w.join(30)
            assert not w.is_alive()
        live.start()
        _check(live.address, case, seen, tmp_path)
    assert len(seen.uploads) > KILLS
    assert seen.changes > KILLS
    with httpx.Client(base_url=live.address, timeout=30) as client:
        for _ in range(500):
            if client.get(f"/v1/cases/{case}").json()["pending"] == 0:
                break
            time.sleep(0.02)
        else:
            raise AssertionError("cells that waited when it was killed were never answered for")
        after, labels = 0, 0
        while (page := client.get("/v1/audit", params={"after": after, "limit": 1000}).json())["events"]:
            labels += sum(e["action"] == "label" for e in page["events"])
            after = page["events"][-1]["id"]
        assert labels >= seen.changes, "each acknowledged label has its event"
    live.kill()


def test_a_stop_in_the_middle_ends_what_is_under_way(tiny_model: Path, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, models=(str(tiny_model),), port=0, threads=1)
    begun = threading.Event()
    request = httpx.Request("POST", "http://x/", files=parts([picture(i) for i in range(20)]))
    body = request.read()

    def slowly() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        begun.set()
        time.sleep(0.5)
        yield body[len(body) // 2 :]

    with Live(settings) as live, httpx.Client(base_url=live.address, timeout=30) as client:
        case = client.post("/v1/cases", json={"name": "stopped"}).json()["id"]
        answers: list[httpx.Response] = []
        kind = {"Content-Type": request.headers["Content-Type"]}
        sender = threading.Thread(
            target=lambda: answers.append(client.post(f"/v1/cases/{case}/cells", content=slowly(), headers=kind))
        )
        sender.start()
        assert begun.wait(30)
        status = live.stop()
        sender.join(30)
        assert status in {0, -signal.SIGTERM}, "the server ends itself by the signal that it was told to stop with"
        assert [a.status_code for a in answers] == [200]
        live.start()
        assert httpx.get(f"{live.address}/v1/cases/{case}").json()["cells"] == 20
