"""What is wrong with a collection: broken files, copies, near copies, contradicting labels, pictures out of line.

Near duplicates are the same picture shifted (by up to some tenth of its side for certain), turned by right angles,
mirrored, recompressed, resized or rebrightened. They form groups, which `Audit.grouped` writes into the index, so that
a split keeps each on one side.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from marrowscope.data._audit_page import audit_page
from marrowscope.data._features import RECORD, STATS, THUMB, FeatureStore, grey_thumb, measure
from marrowscope.data._neighbours import (
    DIMENSIONS,
    NEIGHBOURS,
    TRANSFORMS,
    Match,
    connected,
    match,
    nearest,
    refine,
    whiten,
)
from marrowscope.data._pairs import Found, PairJournal
from marrowscope.data._threads import in_threads
from marrowscope.data.label_errors import LabelError, find_label_errors
from marrowscope.data.sources import Source, open_source
from marrowscope.errors import DataError, ImageError
from marrowscope.files import atomic_open, make_folder, write_text
from marrowscope.images import decode
from marrowscope.schema import OK, IndexRow, Predictions

COARSE, MIDDLE, SAME = 0.6, 0.78, 0.83
"""Least correlation at 32, 64 and 128 px a side; the last decides. On marrow cells, copies under the changes above had
0.87 and more, and the likest of all different cells 0.77."""

OUT_OF_LINE = 5.0
"""Robust standard deviations from the median."""

StageProgress = Callable[[str, int, int], None]
"""Called with (name of the stage, done, total)."""


class Broken(NamedTuple):
    """A file that can't be used."""

    path: str
    label: str
    reason: str


class Exact(NamedTuple):
    """One of several files with the same bytes."""

    group: str
    path: str
    label: str


class Near(NamedTuple):
    """Two pictures of which the second is the first, changed.

    `dx` and `dy` are how far the second's content lies to the right and below after the transform, in per cent of the
    side; `score` is the correlation where they overlap.
    """

    group: str
    path: str
    label: str
    other_path: str
    other_label: str
    transform: str
    dx: float
    dy: float
    score: float


class Conflict(NamedTuple):
    """One of several pictures of the same cell that carry different classes; `kind` is ``exact`` or ``near``."""

    group: str
    path: str
    label: str
    kind: str


class Outlier(NamedTuple):
    """A picture out of line; `deviation` is in robust standard deviations from the `median` of all."""

    path: str
    label: str
    measure: str
    value: float
    median: float
    deviation: float


@dataclass(frozen=True)
class Audit:
    """All findings, each list in path order (near duplicates and conflicts by group)."""

    images: int
    broken: tuple[Broken, ...]
    exact: tuple[Exact, ...]
    near: tuple[Near, ...]
    conflicts: tuple[Conflict, ...]
    outliers: tuple[Outlier, ...]
    groups: dict[str, str]
    """Path -> name of the group of exact and near duplicates, of all that are in one."""
    label_errors: tuple[LabelError, ...] | None = None
    """Probable label errors, the surest first; None where no predictions were given."""

    def grouped(self, index: Iterable[IndexRow]) -> list[IndexRow]:
        """The index with the column ``group`` filled in."""
        return [r._replace(group=self.groups.get(r.path, "")) for r in index]

    def summary(self) -> dict[str, int]:
        """Counts by kind of finding."""
        return {
            "images": self.images,
            "broken files": len(self.broken),
            "groups of identical files": len({r.group for r in self.exact}),
            "files that are copies of another": len(self.exact) - len({r.group for r in self.exact}),
            "pairs of near duplicates": len(self.near),
            "groups of near duplicates": len({r.group for r in self.near}),
            "groups under more than one class": len({r.group for r in self.conflicts}),
            **({} if self.label_errors is None else {"probable label errors": len(self.label_errors)}),
            **{f"out of line in {m}": n for m, n in sorted(Counter(r.measure for r in self.outliers).items())},
        }

    def write(self, folder: Path, data: Path | None = None) -> None:
        """Write summary.csv, one table a kind of finding, and, where `data` is given, index.html with the pictures.

        Raises:
            DataError: `data` can't be read.
            OutputError: The folder can't be written.
        """
        make_folder(folder)
        _table(folder / "summary.csv", ("finding", "count"), self.summary().items())
        _table(folder / "broken.csv", Broken._fields, self.broken)
        _table(folder / "exact_duplicates.csv", Exact._fields, self.exact)
        _table(folder / "near_duplicates.csv", Near._fields, self.near)
        _table(folder / "label_conflicts.csv", Conflict._fields, self.conflicts)
        _table(folder / "outliers.csv", Outlier._fields, self.outliers)
        if self.label_errors is not None:
            _table(folder / "label_errors.csv", LabelError._fields, self.label_errors)
        if data is not None:
            write_text(folder / "index.html", audit_page(self, open_source(Path(data)), str(data)))


def run_audit(
    data: Path,
    index: Sequence[IndexRow],
    *,
    jobs: int | None = None,
    progress: StageProgress | None = None,
    cache: Path | None = None,
    threshold: float = OUT_OF_LINE,
    predictions: Predictions | None = None,
) -> Audit:
    """Look for what is wrong with the pictures of an index.

    Args:
        data: What the index was made of.
        index: Its rows.
        jobs: Threads; all processors by default.
        progress: Called from the calling thread.
        cache: File that keeps what was measured of each picture (5 kB each), so that stopped work goes on and pictures
            of an earlier audit are not measured again; a temporary file by default. Beside it, with ``.pairs`` at the
            end of its name, a file of the candidates and of what comparing them found.
        threshold: Robust standard deviations from which a picture is out of line.
        predictions: Of a cross-validated model, as for `label_errors.find_label_errors`; for probable label errors.

    Raises:
        DataError: `data` can't be read, or is not what the index was made of; or the predictions don't fit.
        OutputError: The working file can't be written.
    """
    source = open_source(Path(data))
    errors = None if predictions is None else tuple(find_label_errors(index, predictions))
    usable = sorted(r for r in index if r.status == OK)
    by_content: dict[str, list[IndexRow]] = defaultdict(list)
    for r in usable:
        by_content[r.sha256].append(r)
    contents = sorted(by_content)
    tell = progress or (lambda stage, done, total: None)
    originals = [by_content[c][0] for c in contents]
    with FeatureStore(cache) as store:
        _measure(source, store, originals, jobs, tell)
        stats, vectors, small = store.load(contents)
        with PairJournal(None if cache is None else cache.with_name(f"{cache.name}.pairs"), _key(contents)) as journal:
            pairs = _near_pairs(source, store, journal, originals, vectors, small, jobs, tell)
        del vectors, small
    names = connected([(contents[i], contents[j]) for i, j, _ in pairs])
    near = [
        _near_row(by_content[contents[i]][0], by_content[contents[j]][0], m, names[contents[i]]) for i, j, m in pairs
    ]
    groups = {r.path: _name(names.get(r.sha256, r.sha256)) for r in usable if r.sha256 in names}
    exact = []
    for content, rows in by_content.items():
        if len(rows) > 1:
            exact += [Exact(_name(names.get(content, content)), r.path, r.label) for r in rows]
            groups |= {r.path: _name(names.get(content, content)) for r in rows}
    broken = [Broken(r.path, r.label, r.status) for r in sorted(index) if r.status != OK]
    first = {c: i for i, c in enumerate(contents)}
    measured = stats[[first[r.sha256] for r in usable]]
    return Audit(
        images=len(index),
        broken=tuple(broken),
        exact=tuple(sorted(exact, key=lambda r: (r.group, r.path))),
        near=tuple(sorted(near)),
        conflicts=tuple(_conflicts(usable, groups)),
        outliers=tuple(_outliers(usable, measured, threshold)),
        groups=groups,
        label_errors=errors,
    )


# ------------------------------------------------------------------------------------------------- near duplicates


def _measure(
    source: Source, store: FeatureStore, rows: Sequence[IndexRow], jobs: int | None, tell: StageProgress
) -> None:
    """Measure what the store doesn't hold."""
    missing = [r for r in rows if r.sha256 not in store.where]
    done = len(rows) - len(missing)
    tell("measure", done, len(rows))

    def work(chunk: Sequence[IndexRow]) -> int:
        for r in chunk:
            try:
                store.add(measure(source.read(r.path), r.sha256))
            except ImageError as e:
                raise DataError(
                    f"{r.path} could be read when the index was made, and now can't ({e}). Index the data anew."
                ) from None
        store.flush()
        return len(chunk)

    for n in in_threads(work, missing, jobs):
        done += n
        tell("measure", done, len(rows))


def _near_pairs(
    source: Source,
    store: FeatureStore,
    journal: PairJournal,
    rows: Sequence[IndexRow],
    vectors: npt.NDArray[np.float32],
    small: npt.NDArray[np.uint8],
    jobs: int | None,
    tell: StageProgress,
) -> list[Found]:
    """Pairs of rows (i < j) that show the same picture, and how they fit."""
    if len(rows) < 2:
        return []
    pairs = journal.pairs(
        lambda: nearest(whiten(vectors), jobs=jobs, progress=lambda done, total: tell("find candidates", done, total))
    )
    starts = np.searchsorted(pairs[:, 0], np.arange(len(rows) + 1))
    queries = [i for i in range(len(rows)) if starts[i + 1] > starts[i]]
    chunks = [queries[i : i + 32] for i in range(0, len(queries), 32)]
    found = [f for c in chunks for f in journal.done.get(c[0], ())]
    todo = [c for c in chunks if c[0] not in journal.done]
    done = len(queries) - sum(map(len, todo))
    tell("compare candidates", done, len(queries))

    def work(one: Sequence[list[int]]) -> list[Found]:
        out = []
        for i in one[0]:
            others = pairs[starts[i] : starts[i + 1], 1]
            for j, rough in zip(others, match(small[i], small[others]), strict=True):
                if rough.score >= COARSE:
                    fit = _compare(source, store, rows[i], rows[int(j)])
                    if fit is not None:
                        out.append((i, int(j), fit))
        return out

    for chunk, new in zip(todo, in_threads(work, todo, jobs, chunk=1), strict=True):
        journal.add(chunk[0], new)
        found += new
        done += len(chunk)
        tell("compare candidates", done, len(queries))
    return found


def _compare(source: Source, store: FeatureStore, a: IndexRow, b: IndexRow) -> Match | None:
    """How two pictures fit, None if they are not the same."""
    rough = match(store.get(a.sha256)["thumb"], store.get(b.sha256)["thumb"][None])[0]
    if rough.score < MIDDLE:
        return None
    large = [grey_thumb(decode(source.read(r.path)), 2 * THUMB) for r in (a, b)]
    fine = refine(large[0], large[1], rough, 2)
    return fine if fine.score >= SAME else None


def _key(contents: Sequence[str]) -> str:
    """What the candidates and their comparison depend on."""
    how = repr((RECORD.itemsize, NEIGHBOURS, DIMENSIONS, COARSE, MIDDLE, SAME))
    return hashlib.sha256(" ".join([how, *contents]).encode("ascii")).hexdigest()


def _near_row(a: IndexRow, b: IndexRow, m: Match, group: str) -> Near:
    dx, dy = (round(100 * v / (2 * THUMB), 1) for v in (m.dx, m.dy))
    return Near(_name(group), a.path, a.label, b.path, b.label, TRANSFORMS[m.transform], dx, dy, round(m.score, 3))


def _name(content: str) -> str:
    """Name of a group, after the smallest hash of its pictures."""
    return f"g{content[:16]}"


def _conflicts(rows: Sequence[IndexRow], groups: dict[str, str]) -> list[Conflict]:
    members: dict[str, list[IndexRow]] = defaultdict(list)
    for r in rows:
        if r.path in groups:
            members[groups[r.path]].append(r)
    out = []
    for group, inside in sorted(members.items()):
        if len({r.label for r in inside}) > 1:
            kind = "exact" if len({r.sha256 for r in inside}) == 1 else "near"
            out += [Conflict(group, r.path, r.label, kind) for r in inside]
    return out


# -------------------------------------------------------------------------------------------------------- outliers


def _outliers(rows: Sequence[IndexRow], stats: npt.NDArray[np.float32], threshold: float) -> list[Outlier]:
    if not rows:
        return []
    out = _odd_sizes(rows)
    for k, name in enumerate(STATS):
        values = stats[:, k].astype(np.float64)
        median, deviation = robust_deviation(values)
        for i in np.flatnonzero(np.abs(deviation) >= threshold):
            r = rows[int(i)]
            out.append(Outlier(r.path, r.label, name, _short(values[i]), _short(median), _short(deviation[i])))
    return sorted(out)


def _odd_sizes(rows: Sequence[IndexRow]) -> list[Outlier]:
    """Pictures of a size that less than one in a hundred has, where there is a usual one."""
    sizes = Counter((r.width, r.height) for r in rows)
    usual, n = sizes.most_common(1)[0]
    if n < 0.9 * len(rows):
        return []
    middle = float(usual[0] * usual[1])
    return [
        Outlier(r.path, r.label, "size", float(r.width * r.height), middle, float("inf"))
        for r in rows
        if (r.width, r.height) != usual and sizes[r.width, r.height] < max(2, 0.01 * len(rows))
    ]


def robust_deviation(values_N: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
    """Median, and how many robust standard deviations each value lies from it.

    The deviation is taken on each side for itself, from the quartile there, since most of these measures are skewed.
    It is never below a thousandth of the median, so that rounding is no outlier where all are alike.
    """
    low, median, high = np.quantile(values_N, [0.25, 0.5, 0.75])
    least = 1e-3 * abs(median) + 1e-9
    below, above = (max(float(d) / 0.6745, least) for d in (median - low, high - median))
    distance = values_N - median
    return float(median), np.where(distance < 0, distance / below, distance / above)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _table(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with atomic_open(path) as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(columns)
        out.writerows(rows)
