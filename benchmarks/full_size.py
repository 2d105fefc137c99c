"""Index and split as many files as the full collection has: time and peak memory.

    python benchmarks/full_size.py CELLS [--files 171374] [--work FOLDER]

CELLS is a folder of images with a folder per class code (`marrowscope phantom CELLS --per-class 200`). The files are
hard links to its images in turn, in folders of a thousand as the collection has them, so they cost no disk, but the
system's file cache serves them faster than a disk would.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

from marrowscope.data.index import build_index
from marrowscope.data.split import make_split
from marrowscope.schema import OK, Split, read_index, write_index


def link_files(cells: Path, out: Path, files: int) -> None:
    """Make `files` hard links in out/CODE/0001-1000/CODE_00001.jpg and on."""
    images = sorted(cells.rglob("*.jpg"))
    if not images:
        raise SystemExit(f"{cells} holds no .jpg file.")
    numbers: dict[str, int] = {}
    for i in range(files):
        source = images[i % len(images)]
        code = source.relative_to(cells).parts[0]
        n = numbers[code] = numbers.get(code, 0) + 1
        first = (n - 1) // 1000 * 1000 + 1
        folder = out / code / f"{first:04}-{first + 999}"
        folder.mkdir(parents=True, exist_ok=True)
        os.link(source, folder / f"{code}_{n:06}.jpg")


def peak_mib() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--files", type=int, default=171_374)
    parser.add_argument("--work", type=Path, help="where the links are made; on the same file system as CELLS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work or options.cells.parent) as name:
        data = Path(name) / "data"
        link_files(options.cells, data, options.files)
        begin = time.perf_counter()
        rows = build_index(data)
        indexed = time.perf_counter() - begin
        assert len(rows) == options.files
        assert all(r.status == OK for r in rows)
        print(
            f"index: {len(rows)} files in {indexed:.0f} s, {len(rows) / indexed:.0f} files/s, peak {peak_mib():.0f} MiB"
        )
        write_index(Path(name) / "index.csv", rows)
        # Links to one image are identical files, and would make a few huge groups; give each row its own content.
        rows = [r._replace(sha256=f"{i:064x}") for i, r in enumerate(read_index(Path(name) / "index.csv"))]
        begin = time.perf_counter()
        split: Split = make_split(rows, codes=sorted({r.label for r in rows}), class_set="all", seed=0)
        print(f"split: {len(split.rows)} rows in {time.perf_counter() - begin:.1f} s, peak {peak_mib():.0f} MiB")


if __name__ == "__main__":
    main()
