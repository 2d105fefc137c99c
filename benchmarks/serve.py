"""Requests a second and latencies of the service against its model without the service; and its memory over time.

    python benchmarks/serve.py CELLS [--model MODEL] [--clients 1 8 64] [--seconds S] [--rounds N] [--json RECORD]
    python benchmarks/serve.py CELLS [--model MODEL] --soak MINUTES [--json RECORD]

CELLS is a folder of JPEG files (real cells, or `marrowscope phantom CELLS --per-class 30`). MODEL is an ONNX file or a
bundled name (marrow8).

Sides, each in a process of its own, one after another in each round:

- `model`: from JPEG bytes to answers with `marrowscope.infer.Classifier`, decoding and preprocessing included, in
  batches of 1, 4 and 32; the fastest counts.
- `service`: `marrowscope serve` as a user starts it, and 1, 8 and 64 clients on the loopback. Each keeps one connection
  and sends its next picture (one JPEG a request, POST /v1/predict) when the last one is answered. A fifth of the time
  goes before the clock starts.

Which cores: the model, and later the service, have the same ones, all but the last; the clients, in another process,
have the last one. So the clients take nothing from the service, and the service has no core that the model lacked. On a
machine with one core all share it, and only the ratio of processor times (below) says something of the service alone.

Two ratios: of pictures a second, and of pictures a second of processor time (the time of the service's process against
that of the model's), which other work on the machine disturbs less. A ratio is the median over the rounds of the ratios
within a round. What clients cost is kept low: requests are bytes made beforehand, and answers are not parsed.

`--soak`: eight such clients, and one that reviews: it makes a case, uploads cells, labels, asks for thumbnails, an
explanation, the differential and every export, signs out, and deletes the case; again and again. The service's memory
(the pages of its own process) is read every five seconds. The slope is that of a least-squares line through the last
two thirds.

Goals: see `GOAL` and `GROWTH_GOAL`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import psutil

GOAL = 0.85
"""Least share of the model's throughput that the service must reach at 8 clients and more."""

GROWTH_GOAL = 10.0
"""MiB, at most, that memory may grow over the last two thirds of a soak."""

BATCHES = (1, 4, 32)
SAMPLE_SECONDS = 5.0
PICTURES = 200
REVIEWED = 40


# --------------------------------------------------------------------------------------------------------------- sides


def run_model(options: dict[str, Any]) -> dict[str, Any]:
    """Pictures a second without the service, by size of batch."""
    from marrowscope.infer import Classifier

    os.sched_setaffinity(0, options["cores"])
    model = Classifier.load(options["model"], threads=len(options["cores"]))
    pictures = [Path(p).read_bytes() for p in options["files"]]
    out = {}
    for batch in BATCHES:
        model.answer_each([model.prepare_file(p) for p in pictures[:batch]])
        done, start, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < options["seconds"] / len(BATCHES):
            some = [pictures[(done + i) % len(pictures)] for i in range(batch)]
            model.answer_each([model.prepare_file(p) for p in some])
            done += batch
        wall = time.perf_counter() - start
        out[str(batch)] = {"wall": done / wall, "cpu": done / (time.process_time() - cpu)}
    return out


def run_clients(options: dict[str, Any]) -> dict[str, Any]:
    """Answers a second and latencies of many clients."""
    os.sched_setaffinity(0, options["cores"])
    found: dict[str, Any] = asyncio.run(_clients(options))
    return found


async def _clients(options: dict[str, Any]) -> dict[str, Any]:
    host, port = options["host"], options["port"]
    requests = [_request(host, port, Path(p).read_bytes()) for p in options["files"]]
    process = psutil.Process(options["pid"])
    start = time.perf_counter()
    begin, end = start + 0.2 * options["seconds"], start + 1.2 * options["seconds"]
    latencies: list[float] = []

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        turn = number
        while (sent := time.perf_counter()) < end:
            writer.write(requests[turn % len(requests)])
            status = await _answer(reader)
            now = time.perf_counter()
            if status != 200:
                raise SystemExit(f"a request was answered with status {status}")
            if begin <= now < end:
                latencies.append(now - sent)
            turn += options["clients"]
        writer.close()

    async def watch() -> float:
        await asyncio.sleep(begin - time.perf_counter())
        before = sum(process.cpu_times()[:2])
        await asyncio.sleep(end - time.perf_counter())
        return sum(process.cpu_times()[:2]) - before

    cpu, *_ = await asyncio.gather(watch(), *(client(i) for i in range(options["clients"])))
    p50, p99 = np.percentile(latencies, [50, 99])
    n = len(latencies)
    return {"wall": n / options["seconds"], "cpu": n / max(cpu, 1e-9), "p50": float(p50), "p99": float(p99), "n": n}


def _request(host: str, port: int, picture: bytes) -> bytes:
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="c.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    body += picture + b"\r\n--b--\r\n"
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _answer(reader: asyncio.StreamReader) -> int:
    """Read one answer whole; its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None, head
    await reader.readexactly(int(length.group(1)))
    return int(head.split(b" ", 2)[1])


# ------------------------------------------------------------------------------------------------------------- service


@contextmanager
def service(model: str, cores: list[int], data: Path) -> Iterator[tuple[psutil.Process, str]]:
    """`marrowscope serve` on these cores: its process and its address."""
    command = [sys.executable, "-m", "marrowscope.cli", "serve", "--model", model, "--data", str(data), "--port", "0"]
    command += ["--threads", str(len(cores)), "--rate", "1000000"]
    process = subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://[^ ]+", process.stdout.readline())
        if found is None:
            raise SystemExit("the service did not start")
        yield psutil.Process(process.pid), found.group().rstrip("/")
    finally:
        process.terminate()
        process.wait(60)


def apart(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run one side in a process of its own."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, __file__, "--side", kind], input=json.dumps(options), capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{kind} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def shares(cores: list[int]) -> tuple[list[int], list[int]]:
    """Cores of the model and the service, and of the clients."""
    return (cores[:-1], cores[-1:]) if len(cores) > 1 else (cores, cores)


def one_round(given: argparse.Namespace, files: list[str], cores: list[int], work: Path) -> dict[str, Any]:
    """The model alone, then the service with each number of clients."""
    ours, theirs = shares(cores)
    out: dict[str, Any] = {
        "model": apart("model", {"model": given.model, "files": files, "cores": ours, "seconds": given.seconds})
    }
    with tempfile.TemporaryDirectory(dir=work) as data, service(given.model, ours, Path(data)) as (process, address):
        host, port = address.removeprefix("http://").split(":")
        for clients in given.clients:
            options = {"host": host, "port": int(port), "clients": clients, "files": files, "cores": theirs}
            out[str(clients)] = apart("clients", {**options, "seconds": given.seconds, "pid": process.pid})
    return out


def load(given: argparse.Namespace, files: list[str], cores: list[int], work: Path) -> dict[str, Any]:
    """All rounds, and the table."""
    rounds = []
    for number in range(given.rounds):
        rounds.append(one_round(given, files, cores, work))
        rates = ", ".join(f"{c} clients {rounds[-1][str(c)]['wall']:.1f}/s" for c in given.clients)
        best = max(v["wall"] for v in rounds[-1]["model"].values())
        print(f"round {number + 1}: model {best:.1f}/s, {rates}", file=sys.stderr)

    def median(of: Any) -> float:
        return statistics.median(of(r) for r in rounds)

    print("| side | pictures/s | of the model | p50, ms | p99, ms | by processor time |\n|---|---|---|---|---|---|")
    for batch in BATCHES:
        print(f"| model, batches of {batch} | {median(lambda r, b=batch: r['model'][str(b)]['wall']):.1f} | | | | |")
    ratios = {}
    for clients in given.clients:
        name = str(clients)
        by = {
            clock: median(lambda r, c=clock, n=name: r[n][c] / max(v[c] for v in r["model"].values()))
            for clock in ("wall", "cpu")
        }
        ratios[name] = by
        verdict = "" if clients < 8 else f" (at least {GOAL:g}: {'met' if by['wall'] >= GOAL else 'MISSED'})"
        p50, p99 = (1000 * median(lambda r, k=k, n=name: r[n][k]) for k in ("p50", "p99"))
        rate = median(lambda r, n=name: r[n]["wall"])
        times = f"{p50:.0f} | {p99:.0f} | {by['cpu']:.2f}"
        print(f"| service, {clients} clients | {rate:.1f} | {by['wall']:.2f}{verdict} | {times} |")
    return {"rounds": rounds, "ratios": ratios}


# ---------------------------------------------------------------------------------------------------------------- soak


def review(address: str, files: list[str], stop: threading.Event, counts: dict[str, int]) -> None:
    """What a reviewer does, again and again until it is time to stop."""
    with httpx.Client(base_url=address, timeout=120) as client:

        def ask(method: str, path: str, **options: Any) -> Any:
            answer = client.request(method, path, **options)
            answer.raise_for_status()
            counts["requests"] += 1
            return answer

        while not stop.is_set():
            case = f"/v1/cases/{ask('POST', '/v1/cases', json={'name': 'soak'}).json()['id']}"
            for start in range(0, len(files), 20):
                some = [("files", (Path(p).name, Path(p).read_bytes())) for p in files[start : start + 20]]
                ask("POST", f"{case}/cells", files=some)
            while ask("GET", case).json()["pending"] and not stop.is_set():
                stop.wait(0.5)
            cells = ask("GET", f"{case}/cells", params={"limit": 1000}).json()["cells"]
            for cell in cells:
                ask("GET", f"{case}/cells/{cell['number']}/thumbnail")
            ready = [c for c in cells if c["status"] == "ready"]
            for cell in ready[: len(ready) // 2]:
                ask("PATCH", f"{case}/cells/{cell['number']}", json={"version": 1, "accept": True})
                ask("GET", f"{case}/differential", params={"adjusted": False})
            ask("POST", f"{case}/undo")
            ask("GET", f"{case}/cells/1/explanation")
            for kind in ("csv", "json", "fhir", "html", "pdf"):
                ask("GET", f"{case}/export/{kind}")
            if not stop.is_set():
                version = ask("GET", f"{case}/differential").json()["case_version"]
                ask("POST", f"{case}/sign", json={"version": version})
            ask("DELETE", case)
            counts["cases"] += 1


def soak(given: argparse.Namespace, files: list[str], cores: list[int], work: Path) -> dict[str, Any]:
    """Memory of the service under load over time."""
    ours, theirs = shares(cores)
    stop = threading.Event()
    counts = {"requests": 0, "cases": 0}
    samples: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(dir=work) as data, service(given.model, ours, Path(data)) as (process, address):
        os.sched_setaffinity(0, theirs)
        reviewer = threading.Thread(target=review, args=(address, files[:REVIEWED], stop, counts))
        reviewer.start()
        host, port = address.removeprefix("http://").split(":")
        seconds = given.soak * 60
        options = {"host": host, "port": int(port), "clients": 8, "files": files, "cores": theirs, "pid": process.pid}
        start = time.perf_counter()
        # A fifth of the clients' time comes before their clock starts.
        with subprocess.Popen(  # noqa: S603
            [sys.executable, __file__, "--side", "clients"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as clients:
            assert clients.stdin is not None
            assert clients.stdout is not None
            clients.stdin.write(json.dumps({**options, "seconds": seconds / 1.2}))
            clients.stdin.close()
            while clients.poll() is None:
                if not reviewer.is_alive():
                    clients.kill()
                    raise SystemExit("the reviewer failed")
                samples.append((time.perf_counter() - start, process.memory_info().rss / 2**20))
                stop.wait(min(SAMPLE_SECONDS, seconds / 20))
            found = json.loads(clients.stdout.read().splitlines()[-1])
        stop.set()
        reviewer.join()
    if clients.returncode != 0 or not counts["cases"]:
        raise SystemExit("the clients failed, or the soak was too short for a single case")
    return _slope(samples, found, counts)


def _slope(samples: list[tuple[float, float]], found: dict[str, Any], counts: dict[str, int]) -> dict[str, Any]:
    t, mib = np.array(samples).T
    late = t >= t[-1] / 3
    slope = float(np.polyfit(t[late], mib[late], 1)[0])
    growth = slope * float(t[-1] - t[late][0])
    verdict = "met" if growth <= GROWTH_GOAL else "MISSED"
    print("| soak | |\n|---|---|")
    print(f"| time | {t[-1] / 60:.1f} min, {len(t)} samples |")
    print(f"| predictions | {found['n']} at {found['wall']:.1f}/s |")
    print(f"| requests of the reviewer | {counts['requests']} |")
    print(f"| cases made, signed and deleted | {counts['cases']} |")
    print(f"| memory at the start, after a third, at the end | {mib[0]:.0f}, {mib[late][0]:.0f}, {mib[-1]:.0f} MiB |")
    print(f"| slope of the last two thirds | {3600 * slope:+.1f} MiB/h |")
    print(f"| growth in them | {growth:+.1f} MiB (at most {GROWTH_GOAL:g}: {verdict}) |")
    return {"samples": samples, "slope_mib_per_hour": 3600 * slope, "growth_mib": growth, **counts}


# -------------------------------------------------------------------------------------------------------------- parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path, nargs="?")
    parser.add_argument("--model", default="marrow8", help="ONNX file or bundled name")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=30, help="a side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--cores", type=int, help="use so many cores; all that the process may use otherwise")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=["model", "clients"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps({"model": run_model, "clients": run_clients}[given.side](json.load(sys.stdin))))
        return
    if given.cells is None or not (cells := sorted(p.absolute() for p in given.cells.rglob("*.jpg"))):
        raise SystemExit("Give a folder of JPEG files.")
    cores = sorted(os.sched_getaffinity(0))[: given.cores]
    files = [str(p) for p in cells[:: max(1, len(cells) // PICTURES)][:PICTURES]]
    ours, theirs = shares(cores)
    print(f"{platform.processor() or platform.machine()}; model and service on {len(ours)} cores, clients on "
          f"{'the same' if ours == theirs else len(theirs)}; {given.model}\n")  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        record = (soak if given.soak else load)(given, files, cores, Path(work))
    if given.json:
        given.json.write_text(json.dumps({**record, "model": given.model, "cores": len(cores)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
