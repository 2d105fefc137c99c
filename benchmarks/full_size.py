"""Index, audit and split as many files as the full collection has: time, processor time and peak memory.

    python benchmarks/full_size.py CELLS WORK [--kind distinct|links] [--files 171374] [--resume] [--json RECORD]

CELLS is a folder of images with a folder per class code (`marrowscope phantom CELLS --per-class 200`). WORK gets the
files, in folders of a thousand as the collection has them, and what the commands write; files that are there already
are not made again.

`distinct` makes every file a picture of its own, put together of four pieces of different images, and one in 171 a
changed copy (turned or mirrored, shifted, rebrightened, recompressed) of the file before it: what the audit finds of
these is counted. They take 40 kB each. `links` makes hard links to the images in turn: groups of identical files.

Each stage is the command of that name in a process of its own. Its files lie in the system's cache, which serves them
faster than a disk would.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

GOALS = {"index": 6 * 60, "audit": 30 * 60, "split": 5}
"""Seconds on two cores."""
GOAL_MIB = 1.5 * 1024
COPY_EVERY = 171


def names(images: list[Path], cells: Path, files: int) -> Iterator[tuple[str, Path]]:
    """CODE/0001-1000/CODE_000001.jpg and on, each with the image that gives its class."""
    numbers: dict[str, int] = {}
    for i in range(files):
        source = images[i % len(images)]
        code = source.relative_to(cells).parts[0]
        n = numbers[code] = numbers.get(code, 0) + 1
        first = (n - 1) // 1000 * 1000 + 1
        yield f"{code}/{first:04}-{first + 999}/{code}_{n:06}.jpg", source


def composed(pictures: Pixels, i: int) -> Pixels:
    """File `i`: four pieces of four pictures, turned and mirrored; (N, S, S, 3) -> (S, S, 3)."""
    rng = np.random.default_rng([1, i])
    side = pictures.shape[1]
    half = side // 2
    out = np.empty_like(pictures[0])
    for k, at in enumerate(rng.choice(len(pictures), 4, replace=False)):
        y, x = rng.integers(0, side - half, 2)
        piece = np.rot90(pictures[at, y : y + side - half, x : x + side - half], rng.integers(4))
        piece = piece[:, ::-1] if rng.integers(2) else piece
        top, left = divmod(k, 2)
        out[top * half :, left * half :][: len(piece), : len(piece)] = piece[: side - top * half, : side - left * half]
    return out


def changed(picture: Pixels, i: int) -> Pixels:
    """A copy that the audit should know again."""
    rng = np.random.default_rng([2, i])
    out = np.rot90(picture, rng.integers(4))
    out = out[:, ::-1] if rng.integers(2) else out
    reach = len(out) // 12
    padded = np.pad(out, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    y, x = rng.integers(0, 2 * reach + 1, 2)
    out = padded[y : y + len(out), x : x + len(out)]
    return np.clip(out * rng.uniform(0.8, 1.15), 0, 255).astype(np.uint8)


def make_distinct(images: list[Path], cells: Path, out: Path, files: int, side: int) -> None:
    """Write the files that are not there yet."""
    pictures = np.empty((min(len(images), 2000), side, side, 3), np.uint8)
    for picture, path in zip(pictures, images, strict=False):
        picture[:] = Image.open(path).convert("RGB").resize((side, side))

    def write(item: tuple[int, str]) -> None:
        i, name = item
        path = out / name
        if path.exists():
            return
        copy = i % COPY_EVERY == COPY_EVERY - 1
        pixels = changed(composed(pictures, i - 1), i) if copy else composed(pictures, i)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=80 if copy else 95, subsampling=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(buffer.getvalue())
        part.rename(path)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(write, ((i, name) for i, (name, _) in enumerate(names(images, cells, files)))):
            pass


def make_links(images: list[Path], cells: Path, out: Path, files: int, side: int) -> None:
    """Link the files that are not there yet; they keep their size, whatever `side` is."""
    for name, source in names(images, cells, files):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.link(source, path)


def run(stage: str, *arguments: str) -> dict[str, float]:
    """Run a command; its seconds, its processor seconds and its peak memory."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "marrowscope.cli", stage, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{stage} ended with status {process.returncode}.")
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def found_copies(audit: Path, images: list[Path], cells: Path, files: int) -> dict[str, int]:
    """How many of the planted copies the audit put together with their originals, and how many other pairs it named."""
    order = [name for name, _ in names(images, cells, files)]
    planted = {frozenset(order[i - 1 : i + 1]) for i in range(COPY_EVERY - 1, files, COPY_EVERY)}
    with (audit / "near_duplicates.csv").open(newline="", encoding="utf-8") as f:
        pairs = {frozenset((r["path"], r["other_path"])) for r in csv.DictReader(f)}
    return {"planted": len(planted), "found": len(planted & pairs), "other_pairs": len(pairs - planted)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("work", type=Path, help="on the same file system as CELLS, for links")
    parser.add_argument("--files", type=int, default=171_374)
    parser.add_argument("--side", type=int, default=250, help="of distinct pictures, pixels")
    parser.add_argument("--kind", choices=("distinct", "links"), default="distinct")
    parser.add_argument("--resume", action="store_true", help="go on with a stopped index or audit; no honest time")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    images = sorted(options.cells.rglob("*.jpg"))
    random.Random(0).shuffle(images)  # noqa: S311
    if len(images) < 4:
        raise SystemExit(f"{options.cells} holds fewer than four .jpg files.")
    work = options.work / options.kind
    data, index, audit, split = (work / n for n in ("data", "index.csv", "audit", "split.csv"))
    begin = time.perf_counter()
    # In a process of its own: a command that this one starts would begin with this one's peak of memory as its own.
    make = make_distinct if options.kind == "distinct" else make_links
    maker = multiprocessing.get_context("spawn").Process(
        target=make, args=(images, options.cells, data, options.files, options.side)
    )
    maker.start()
    maker.join()
    if maker.exitcode:
        raise SystemExit("The files could not be made.")
    print(f"{options.files} files there after {time.perf_counter() - begin:.0f} s", flush=True)
    if not options.resume:
        shutil.rmtree(audit, ignore_errors=True)
        index.with_name(f".{index.name}.journal").unlink(missing_ok=True)
    counts = Counter(name.partition("/")[0] for name, _ in names(images, options.cells, options.files))
    codes = ",".join(sorted(c for c, n in counts.items() if n >= 10))
    stages = {
        "index": (str(data), "-o", str(index)),
        "audit": (str(index), "--data", str(data), "-o", str(audit)),
        "split": (str(audit / "index.csv"), "--classes", codes, "-o", str(split)),
    }
    record: dict[str, Any] = {"files": options.files, "kind": options.kind, "cores": len(os.sched_getaffinity(0))}
    for stage, arguments in stages.items():
        got = record[stage] = run(stage, *arguments)
        goal = f"goal on 2 cores: {GOALS[stage]} s and {GOAL_MIB:.0f} MiB"
        if options.files >= 171_374 and record["cores"] <= 2:
            reached = got["seconds"] <= GOALS[stage] and got["peak_mib"] <= GOAL_MIB
            goal += ", reached" if reached else ", missed"
        took = f"{got['seconds']} s, {got['processor_seconds']} s of processor, peak {got['peak_mib']} MiB"
        print(f"{stage}: {took} ({goal})", flush=True)
    if options.kind == "distinct":
        record["copies"] = found_copies(audit, images, options.cells, options.files)
        print("copies: {planted} planted, {found} found; {other_pairs} other pairs named".format(**record["copies"]))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
