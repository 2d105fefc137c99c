"""Images a second of `predict --ray` on this machine, and how many machines 100 million cells would take.

    python benchmarks/cluster.py CELLS MODEL [--cores 1,2] [--images N] [--rounds N] [--json RECORD] [--docs PAGE]

CELLS is a folder of images, MODEL an ONNX file of `marrowscope export`. The images are linked under N names (hard
links, on CELLS' own disk), so that N may be larger than what is at hand; they are then read from the system's cache.
For each number of cores a Ray of that many workers is started here, and the job is run; beside it one process does the
same with as many threads (`predict_files`), the two taking turns.

The rate of a cluster is that of its steady state: images between the first part that is done and the last, over the
time between them. What comes before (starting Ray, the workers and the model) is told apart; it is spent once a job.
A figure is the median over the rounds.

The number of machines is arithmetic on these figures: workers share nothing but the listing, so C cores in all do
`C x the rate of one worker`, the rate being that of the most workers measured here, over their number. That holds as
long as the store keeps up: 100 million images in an hour are 28,000 requests a second for reading, and as many for
sizes.
`--docs` writes the table between the marks in docs/cluster.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from marrowscope import images
from marrowscope.cluster import predict_cluster
from marrowscope.files import write_text
from marrowscope.infer import Classifier, find_images, load_predictor, predict_files

CELLS = 100_000_000
HOURS = (1, 8, 24)
MACHINES = (16, 32, 64)
"""Cores of a machine in the table."""

BEGIN, END = "<!-- machines: benchmarks/cluster.py writes what follows -->", "<!-- end of machines -->"
_PARTS_A_WORKER = 12


@dataclass
class Watch:
    """Notes when parts are done, and how large the workers have become."""

    start: float = field(default_factory=time.perf_counter)
    done: list[tuple[float, int]] = field(default_factory=list)
    memory: int = 0

    def __call__(self, done: int, _: int) -> None:
        if done:
            self.done.append((time.perf_counter(), done))
            self.memory = max([self.memory, *_worker_memory()])

    @property
    def rate(self) -> float:
        """Images a second between the first part and the last."""
        (first, had), (last, all_) = self.done[0], self.done[-1]
        return (all_ - had) / (last - first)

    @property
    def before(self) -> float:
        """Seconds until the first part was done."""
        return self.done[0][0] - self.start


def _worker_memory() -> list[int]:
    """Peak resident memory of the workers on this machine, in bytes."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                text = (folder / "status").read_text()
                found.append(int(text.partition("VmHWM:")[2].split()[0]) * 1024)
        except (FileNotFoundError, ProcessLookupError, IndexError):  # it ended meanwhile
            continue
    return found


def link(cells: Path, where: Path, number: int) -> None:
    """Give `number` names to the images of a folder."""
    names = [Path(item.name) for item in find_images([cells])]
    where.mkdir()
    for i, name in zip(range(number), itertools.cycle(names)):
        (where / f"{i:08}{name.suffix}").hardlink_to(name)


def run_cluster(model: Path, cells: Path, cores: int, number: int, target: Path) -> Watch:
    """One job on a Ray of `cores` workers."""
    ray.init(
        address="local", num_cpus=cores, include_dashboard=False, object_store_memory=256 << 20,
        logging_level="ERROR", log_to_driver=False,
    )  # fmt: skip
    try:
        watch = Watch()
        size = max(1, number // (cores * _PARTS_A_WORKER))
        summary = predict_cluster([model], [str(cells)], str(target), part_images=size, progress=watch)
    finally:
        ray.shutdown()
        shutil.rmtree(target, ignore_errors=True)
    assert summary.total == number
    return watch


def run_single(model: Path, cells: Path, cores: int, number: int, output: Path) -> float:
    """Images a second of one process with as many threads."""
    summary = predict_files(load_predictor([model], threads=cores), [cells], output, workers=cores)
    assert summary.total == number
    return number / summary.seconds


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The record."""
    with tempfile.TemporaryDirectory(dir=options.data.parent, prefix=".cluster-") as folder:
        where = Path(folder)
        link(options.data, where / "cells", options.images)
        figures: dict[int, dict[str, list[float]]] = {}
        for _, cores in itertools.product(range(options.rounds), options.cores):
            watch = run_cluster(options.model, where / "cells", cores, options.images, where / "target")
            single = run_single(options.model, where / "cells", cores, options.images, where / "one.parquet")
            row = figures.setdefault(cores, {"cluster": [], "single": [], "start_seconds": [], "worker_bytes": []})
            for name, value in zip(row, (watch.rate, single, watch.before, watch.memory), strict=True):
                row[name].append(round(value, 2))
    most = max(options.cores)
    per_core = statistics.median(figures[most]["cluster"]) / most
    card = Classifier.load(options.model, threads=1).card
    return {
        "processor": processor(),
        "versions": {"python": platform.python_version(), "ray": ray.__version__},
        "model": {"name": card.name, "architecture": card.architecture, "size_px": card.preprocessing.size},
        "images": options.images,
        "figures": figures,
        "images_per_second_per_core": round(per_core, 2),
        "machines": {f"{c} cores": {f"{h} h": machines(per_core, c, h) for h in HOURS} for c in MACHINES},
    }


def machines(per_core: float, cores: int, hours: int) -> int:
    """Machines that are needed for `CELLS` images within so many hours."""
    return math.ceil(CELLS / (per_core * cores * hours * 3600))


def table(record: dict[str, Any], command: str) -> str:
    """The record as the page has it."""
    model = record["model"]
    how = (
        f"Measured with `{command}` on {record['processor']}: {model['architecture']}, {model['size_px']} px, "
        f"{record['images']:,} images from the system's cache, one worker a core, medians."
    )
    lines = [
        how,
        "",
        "| workers | images/s | of one process with as many threads | until the first part is done | memory a worker |",
        "|---|---|---|---|---|",
    ]
    for cores, row in record["figures"].items():
        mid = {name: statistics.median(values) for name, values in row.items()}
        lines.append(
            f"| {cores} | {mid['cluster']:.0f} | {mid['cluster'] / mid['single']:.2f} x | {mid['start_seconds']:.0f} s "
            f"| {mid['worker_bytes'] / 2**20:.0f} MiB |"
        )
    lines += [
        "",
        f"At {record['images_per_second_per_core']:.1f} images/s a core, {CELLS // 10**6} million cells take:",
        "",
        f"| machines of | {' | '.join(f'within {h} h' for h in HOURS)} |",
        f"|---|{'---|' * len(HOURS)}",
    ]
    lines += [f"| {name} | {' | '.join(f'{n:,}' for n in row.values())} |" for name, row in record["machines"].items()]
    return "\n".join(lines)


def write_page(page: Path, text: str) -> None:
    """Put the text between the marks."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} has not the marks {BEGIN} and {END}.")
    write_text(page, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def processor() -> str:
    """Name of the processor, as Linux calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measure, print, and write the record and the page if asked."""
    available = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description="Images a second of predict --ray, and machines for 100 million.")
    parser.add_argument("data", type=Path, help=f"folder of images ({' '.join(sorted(images.SUFFIXES))})")
    parser.add_argument("model", type=Path, help="ONNX file of marrowscope export")
    parser.add_argument("--cores", default=",".join(map(str, sorted({1, available}))), help="numbers of workers: 1,2")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--docs", type=Path, help="write the tables between the marks of this page")
    options = parser.parse_args()
    options.cores = [int(c) for c in options.cores.split(",")]
    if options.images < 2 * _PARTS_A_WORKER * max(options.cores):
        parser.error(f"--images must be at least {2 * _PARTS_A_WORKER * max(options.cores)}")
    record = measure(options)
    command = f"python benchmarks/cluster.py CELLS {options.model.name} --images {options.images}"
    text = table(record, f"{command} --cores {','.join(map(str, options.cores))} --rounds {options.rounds}")
    print(text)
    if options.json:
        write_text(options.json, json.dumps(record, indent=2) + "\n")
    if options.docs:
        write_page(options.docs, text)


if __name__ == "__main__":
    main()
