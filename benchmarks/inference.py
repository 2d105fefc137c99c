"""Cells a second of `predict` against eager PyTorch and against a bare onnxruntime session, in one run.

    python benchmarks/inference.py CELLS [--images N] [--rounds N] [--fast MODEL.onnx] [--memory SMALL LARGE]
                                         [--cores N] [--clock wall|cpu] [--json RECORD]

CELLS is a folder of JPEG files (real cells, or `marrowscope phantom CELLS --per-class 30`). Weights are random where no
file is given: they don't change the time, and no answer is judged here. The int8 files are made by the functions of
`marrowscope export`.

Sides, each in a process of its own, one after another in each round:

- `torch`: timm's ResNet-50 at 224 px in eager fp32 PyTorch, from JPEG files to a CSV file, batches of 32; decoding as
  marrowscope's, because torchvision's would be slower. Once decoding in its own process and once in as many workers as
  there are cores; the faster one counts.
- `predict`: `marrowscope.infer.predict_files`, as the command calls it, from the same JPEG files to a CSV file.
- `predict given file` (with `--fast`): the same for that file, such as the `marrow8-fast` of the package.
- `bare`: an onnxruntime session with its default options and a thread a core, fed arrays that were decoded before the
  clock starts. Once in batches of 32 and once in those of `predict`; the faster one counts.

Opening a model and a first batch come before the clock starts, on every side. A ratio is the median over the rounds of
the ratios within a round. `--clock cpu` counts the processor's time that a side uses, for machines where other work
takes much of it: on one core, because threads that wait busily would count too, and without workers for `torch`, whose
time is not its own.

Peak memory: `predict` with the fast model on SMALL and on LARGE numbers of (hard-linked) files, in fresh processes
(the peak of the process's own pages, `VmHWM` of Linux).

Goals: see `GOALS`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from marrowscope.cells import CLASS_SETS
from marrowscope.images import load_prepared
from marrowscope.infer.predictor import BATCH_SIZE
from marrowscope.schema import Card, Preprocessing, TrainingData

CODES = CLASS_SETS["marrow-21"].codes
BATCH = 32
NETWORKS = {
    "resnet50": ("resnet50", 224, "bicubic"),
    "vit": ("vit_small_patch14_dinov2", 196, "bicubic"),
    "fast": ("tf_efficientnet_lite0", 192, "bicubic"),
}
"""Name here -> timm's name, side of the input in pixels, resampling."""

GOALS = {
    "predict resnet50 int8 / torch resnet50": 4.5,
    "predict resnet50 int8 / bare resnet50 int8": 0.90,
    "predict fast int8 / torch resnet50": 25.0,
    "predict given file / torch resnet50": 25.0,
    "bare resnet50 int8 / bare resnet50 fp32": 1.3,
    "bare vit int8 / bare vit fp32": 1.3,
    "bare fast int8 / bare fast fp32": 1.3,
}
"""Sides and how many times as fast the first must be."""

MEMORY_GOAL = 50
"""MiB that LARGE may need beyond SMALL."""


def make_models(folder: Path, cells: list[Path], wanted: set[str]) -> None:
    """Write NAME-fp32.onnx and NAME-int8.onnx of each network, random weights, calibrated on some of the cells."""
    import torch

    from marrowscope.config import ModelConfig
    from marrowscope.export.calibrate import min_max, observe
    from marrowscope.export.graph import to_onnx, with_half_weights, write_onnx
    from marrowscope.export.quantise import Layers, quantised, with_shapes
    from marrowscope.models import build_model

    for name in sorted(wanted):
        network, size, interpolation = NETWORKS[name]
        spec = Preprocessing.model_validate({"size": size, "interpolation": interpolation})
        torch.manual_seed(0)
        model = build_model(ModelConfig(name=network, weights="none"), len(CODES), spec).eval()
        card = _card(network, spec, sum(p.numel() for p in model.parameters()))
        pictures = np.stack([load_prepared(p, spec) for p in cells[:16]])
        proto = to_onnx(model, card)
        write_onnx(proto, card, folder / f"{name}-fp32.onnx")
        proto = with_shapes(proto)
        layers = Layers(proto)
        histograms = observe(proto, layers.tensors(), lambda p=pictures: iter([p]))
        network_int8 = quantised(proto, layers, {k: min_max(h) for k, h in histograms.items()})
        card = card.model_copy(update={"precision": "int8"})
        write_onnx(with_half_weights(network_int8), card, folder / f"{name}-int8.onnx")


def _card(network: str, spec: Preprocessing, parameters: int) -> Card:
    data = TrainingData(name="none", licence="", citation="", synthetic=True, index_sha256="0" * 64, counts={})
    return Card(
        name=network,
        program="benchmark",
        architecture=network,
        parameters=parameters,
        pretrained="none",
        class_set="marrow-21",
        codes=CODES,
        preprocessing=spec,
        training_data=data,
        seed=0,
        epochs=1,
        best_epoch=1,
        validation={},
        weights_sha256="0" * 64,
    )


# --------------------------------------------------------------------------------------------------------------- sides


class Clock:
    """Seconds of the wall and of the processor."""

    def __enter__(self) -> Self:
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu


def run_predict(model: Path, files: list[Path], output: Path) -> dict[str, float]:
    """`predict` from files to CSV."""
    from marrowscope.infer import load_predictor, predict_files

    predictor = load_predictor([model], threads=1)
    predictor.predict(files[:BATCH])
    with Clock() as clock:
        summary = predict_files(predictor, files, output)
    assert summary.ok == len(files)
    return {"images": len(files), "wall": clock.wall, "cpu": clock.cpu}


def run_bare(model: Path, files: list[Path], batch: int) -> dict[str, float]:
    """A session with default options, fed ready arrays."""
    import onnxruntime as ort

    from marrowscope.infer import read_card

    spec = read_card(model).preprocessing
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))  # the default counts cores that we may not use
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    pictures = np.stack([load_prepared(p, spec) for p in files])
    session.run(["logits"], {"images": pictures[:batch]})
    with Clock() as clock:
        for start in range(0, len(pictures), batch):
            session.run(["logits"], {"images": pictures[start : start + batch]})
    return {"images": len(files), "wall": clock.wall, "cpu": clock.cpu}


def run_torch(files: list[Path], output: Path, workers: int) -> dict[str, float]:
    """timm's network in eager fp32, from files to CSV."""
    import timm
    import torch
    from torch.utils.data import DataLoader, Dataset

    network, size, interpolation = NETWORKS["resnet50"]
    spec = Preprocessing.model_validate({"size": size, "interpolation": interpolation})
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)

    class Cells(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> Any:
            pixels = torch.from_numpy(np.array(load_prepared(files[i], spec))).permute(2, 0, 1).float() / 255
            return (pixels - mean) / std, str(files[i])

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = timm.create_model(network, num_classes=len(CODES)).eval()
    loader = DataLoader(Cells(), batch_size=BATCH, num_workers=workers)
    with torch.inference_mode():
        model(torch.zeros(BATCH, 3, size, size))
        with Clock() as clock, output.open("w") as f:
            for pictures, names in loader:
                for name, p in zip(names, model(pictures).softmax(1).tolist(), strict=True):
                    best = max(range(len(p)), key=p.__getitem__)
                    f.write(",".join([name, "ok", CODES[best], f"{p[best]:.6g}", *(f"{v:.6g}" for v in p)]) + "\n")
    return {"images": len(files), "wall": clock.wall, "cpu": clock.cpu}


def run_memory(model: Path, folder: Path, output: Path) -> dict[str, float]:
    """Peak memory of predicting a folder."""
    from marrowscope.infer import load_predictor, predict_files

    summary = predict_files(load_predictor([model], threads=1), [folder], output)
    # getrusage would give that of the process that started this one, where it was larger.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"images": summary.ok, "wall": summary.seconds, "peak_mib": int(status["VmHWM"].split()[0]) / 1024}


def side(name: str, options: dict[str, Any]) -> dict[str, float]:
    """Run one side in this process."""
    kind, network, precision, *way = name.split()
    files = [Path(p) for p in options["files"]]
    model = Path(options["models"].get(f"{network}-{precision}", ""))
    with tempfile.TemporaryDirectory() as out:
        if kind == "memory":
            return run_memory(model, Path(options["folder"]), Path(out) / "p.csv")
        if kind == "predict":
            return run_predict(model, files, Path(out) / "p.csv")
        if kind == "bare":
            return run_bare(model, files, int(way[0]))
        if kind == "models":
            make_models(Path(options["folder"]), files, set(options["only"]))
            return {}
        return run_torch(files, Path(out) / "p.csv", int(precision))


# -------------------------------------------------------------------------------------------------------------- parent


def apart(name: str, options: dict[str, Any], cores: list[int]) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", name]
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(cores))}
    done = subprocess.run(  # noqa: S603
        command, input=json.dumps(options), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rates(found: dict[str, dict[str, float]], clock: str) -> dict[str, float]:
    """Images a second of each side of one round; where a side has several ways, of the fastest one."""
    out: dict[str, float] = {}
    for name, r in found.items():
        words = name.split()
        short = " ".join(words[: 2 if words[0] == "torch" else 3])
        out[short] = max(out.get(short, 0.0), r["images"] / r[clock])
        if len(words) > len(short.split()):
            out[f"{short}, {'workers' if words[0] == 'torch' else 'batches of'} {words[-1]}"] = r["images"] / r[clock]
    return out


def link(cells: list[Path], folder: Path, files: int) -> None:
    """Hard links to the cells, a thousand a folder."""
    for i in range(files):
        place = folder / f"{i // 1000:04}"
        if i % 1000 == 0:
            place.mkdir(parents=True)
        os.link(cells[i % len(cells)], place / f"{i:07}.jpg")


def memory(options: dict[str, Any], cells: list[Path], sizes: list[int], work: Path, cores: list[int]) -> Iterator[str]:
    """Peak memory by number of images, line by line."""
    peaks = []
    which = "given file" if "given-file" in options["models"] else "fast int8"
    for n in sizes:
        folder = work / f"links{n}"
        link(cells, folder, n)
        found = apart(f"memory {which}", {**options, "folder": str(folder)}, cores)
        peaks.append(found["peak_mib"])
        yield f"| peak memory, {n:,} images | {found['peak_mib']:.0f} MiB | {n / found['wall']:.0f} images/s |"
    options["peaks"] = dict(zip(map(str, sizes), peaks, strict=True))
    verdict = "met" if peaks[-1] - peaks[0] <= MEMORY_GOAL else "MISSED"
    yield f"| more than for the fewest | {peaks[-1] - peaks[0]:.0f} MiB | at most {MEMORY_GOAL}: {verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=512, help="a side; torch has a quarter of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fast", type=Path, metavar="MODEL.onnx", help="measure the fast model that is used, too")
    parser.add_argument("--memory", type=int, nargs=2, default=[1000, 100_000], metavar=("SMALL", "LARGE"))
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--only", nargs="*", default=sorted(NETWORKS), help="networks to measure")
    parser.add_argument("--cores", type=int, help="use so many cores; all that the process may use otherwise")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(side(given.side, json.load(sys.stdin))))
        return
    if given.cells is None or not (cells := sorted(p.absolute() for p in given.cells.rglob("*.jpg"))):
        raise SystemExit("Give a folder of JPEG files.")
    cores = sorted(os.sched_getaffinity(0))[: 1 if given.clock == "cpu" else given.cores]
    os.sched_setaffinity(0, cores)
    stride = max(1, len(cells) // given.images)
    files = [str(cells[(i * stride) % len(cells)]) for i in range(given.images)]
    with tempfile.TemporaryDirectory(dir=given.cells.absolute().parent) as name:
        measure(given, files, cells, Path(name), cores)


def measure(given: argparse.Namespace, files: list[str], cells: list[Path], work: Path, cores: list[int]) -> None:
    """Make the models, run all rounds, print the tables."""
    # In a process of its own: making them takes gigabytes.
    apart("models all none", {"models": {}, "files": files, "folder": str(work), "only": given.only}, cores)
    models = {p.stem: str(p) for p in work.glob("*.onnx")}
    if given.fast:
        models["given-file"] = str(given.fast.absolute())
    options: dict[str, Any] = {"models": models, "files": files}
    ways = ["torch resnet50 0"] + ([f"torch resnet50 {len(cores)}"] if given.clock == "wall" else [])
    sides = [f"predict {n} int8" for n in given.only]
    sides += ["predict given file"] if given.fast else []
    sides += [f"bare {n} {p} {b}" for n in given.only for p in ("int8", "fp32") for b in (BATCH_SIZE, BATCH)]
    rounds = []
    for number in range(given.rounds):
        found = {w: apart(w, {**options, "files": files[: max(BATCH, len(files) // 4)]}, cores) for w in ways}
        found |= {s: apart(s, options, cores) for s in sides}
        rounds.append(rates(found, given.clock))
        print(f"round {number + 1}: " + ", ".join(f"{n} {v:.1f}" for n, v in rounds[-1].items()), file=sys.stderr)
    print(f"{len(cores)} cores, {platform.processor() or platform.machine()}; {given.clock} clock\n")
    print("| side | images/s |\n|---|---|")
    for s in rounds[0]:
        print(f"| {s} | {statistics.median(r[s] for r in rounds):.1f} |")
    print("\n| ratio | measured | at least |\n|---|---|---|")
    ratios = {}
    for pair, goal in GOALS.items():
        first, second = pair.split(" / ")
        if first in rounds[0] and second in rounds[0]:
            ratios[pair] = statistics.median(r[first] / r[second] for r in rounds)
            print(f"| {pair} | {ratios[pair]:.2f} | {goal:g}: {'met' if ratios[pair] >= goal else 'MISSED'} |")
    if not given.no_memory and ("fast" in given.only or given.fast):
        print("\n| memory | | |\n|---|---|---|")
        for line in memory(options, cells, given.memory, work, cores):
            print(line)
    if given.json:
        record = {"rounds": rounds, "ratios": ratios, "peaks_mib": options.get("peaks"), "cores": len(cores)}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
