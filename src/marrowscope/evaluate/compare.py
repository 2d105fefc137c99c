"""Is one model better than another? Paired on the same cells, or from published figures alone.

Paired: McNemar's exact test, the bootstrap's interval of the difference, and the same per class with Holm's correction.
Where cells belong together (slides, patients), McNemar's test would count them as independent; the sign-flip test over
groups takes its place, which is McNemar's where each cell is its own group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from marrowscope import __version__
from marrowscope.errors import FileFormatError
from marrowscope.evaluate.comparison import (
    ClassDifference,
    ComparedModel,
    Comparison,
    ModelDifference,
    PublishedAccuracy,
    PublishedDifference,
)
from marrowscope.evaluate.figures import NO_WIDTH, figure, proportion
from marrowscope.evaluate.intervals import (
    bootstrap_weights,
    number_groups,
    percentile_interval,
    proportion_interval,
    wilson_interval,
)
from marrowscope.evaluate.metrics import Bools, Floats, Integers
from marrowscope.schema import OK, Figure, Predictions

FLIPS = 9999


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test, (0, 1] (McNemar 1947, Psychometrika 12, 153-157).

    Of the cells that one model only gets right, the share of the first is 1/2 if the two are equally accurate.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2.0 * math.fsum(map(math.exp, logs)))


def sign_flip_p_value(difference_N: Floats, group_N: Integers, seed: int, flips: int = FLIPS) -> float:
    """Two-sided p-value that the mean of paired differences is 0, the signs of whole groups flipped at random.

    (Fisher 1935, The Design of Experiments, section 21; by group, so that cells of one patient don't count as many.)
    """
    sums = np.bincount(group_N, weights=difference_N)
    sums = sums[sums != 0]
    observed = abs(float(sums.sum()))
    signs = np.random.default_rng(seed).integers(0, 2, size=(flips, len(sums))) * 2 - 1
    return float((1 + np.sum(np.abs(signs @ sums) >= observed - 1e-9)) / (1 + flips))


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979, Scand J Stat 6, 65-70), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    out, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = least
    return out


def newcombe_interval(first: float, n_first: int, second: float, n_second: int) -> tuple[float, float]:
    """95 % interval of second - first, two proportions of different images (Newcombe 1998, Stat Med 17, 873-890).

    His method 10, from Wilson's intervals of the two: all it takes is what a paper prints.

    Args:
        first: Proportion, 0..1.
        n_first: Number of images it is of, above 0.
        second: Another.
        n_second: Likewise.
    """
    if not (0 <= first <= 1 and 0 <= second <= 1 and n_first > 0 and n_second > 0):
        raise ValueError(
            f"Shares must lie in 0..1, of at least one image: {first} of {n_first}, {second} of {n_second}."
        )
    low_1, high_1 = wilson_interval(first * n_first, n_first)
    low_2, high_2 = wilson_interval(second * n_second, n_second)
    difference = second - first
    return (
        max(-1.0, difference - math.hypot(second - low_2, high_1 - first)),
        min(1.0, difference + math.hypot(high_2 - second, first - low_1)),
    )


def published_difference(accuracy: float, n: int, published: float, n_published: int) -> Figure:
    """A model's accuracy less a published one, with Newcombe's interval; other cells, so a weak comparison."""
    interval = newcombe_interval(published, n_published, accuracy, n)
    return figure(accuracy - published, interval, n, "Newcombe (independent samples)")


def parse_published(text: str) -> PublishedAccuracy:
    """``NAME=ACCURACY/IMAGES``, such as ``ViT-B/16=0.867/981``, as a figure with Wilson's interval.

    Raises:
        FileFormatError: Another form, an accuracy outside of 0..1, or no images.
    """
    name, _, rest = text.rpartition("=")
    accuracy, _, images = rest.partition("/")
    try:
        value, n = float(accuracy), int(images)
        if not (name.strip() and 0 <= value <= 1 and n > 0):
            raise ValueError
    except ValueError:
        raise FileFormatError(
            f"A published figure is NAME=ACCURACY/IMAGES, such as ViT-B=0.867/981 with an accuracy of 0 to 1, and not "
            f"{text!r}."
        ) from None
    interval = wilson_interval(value * n, n)
    return PublishedAccuracy(name=name.strip(), accuracy=figure(value, interval, n, "Wilson of published figures"))


def compare_published(published: Sequence[PublishedAccuracy], comparison: Comparison | None = None) -> Comparison:
    """Compare published figures with the models of a comparison, and with each other (Newcombe's interval).

    Raises:
        FileFormatError: Two figures of one name, or nothing to compare with.
    """
    known = () if comparison is None else comparison.models
    names = [m.name for m in known] + [p.name for p in published]
    if len(set(names)) != len(names) or len(names) < 2:
        raise FileFormatError(f"A comparison takes two or more different models; given: {', '.join(names) or 'none'}.")
    pairs = [(m.name, m.accuracy, p) for m in known for p in published]
    pairs += [(b.name, b.accuracy, a) for a, b in combinations(published, 2)]
    differences = []
    for name, accuracy, other in pairs:
        assert accuracy.value is not None
        assert other.accuracy.value is not None
        difference = published_difference(accuracy.value, accuracy.n, other.accuracy.value, other.accuracy.n)
        differences.append(PublishedDifference(model=name, published=other.name, difference=difference))
    base = comparison or Comparison(program=f"marrowscope {__version__}", n=0, left_out={}, models=(), pairs=())
    return base.model_copy(update={"published": tuple(published), "published_differences": tuple(differences)})


def paired_difference(first_N: Bools, second_N: Bools, group_N: Integers, draws: int, seed: int) -> Figure:
    """Accuracy of the second less that of the first on the same cells, with the bootstrap's interval.

    Where they are right on the very same cells every draw gives 0; the interval is then what the share of cells on
    which they differ may be (Wilson).
    """
    n = len(first_N)
    if not n:
        return figure(np.nan, None, 0, "none (no images)")
    difference_N = second_N.astype(np.float64) - first_N.astype(np.float64)
    drawn = np.concatenate([w @ difference_N / w.sum(1) for w in bootstrap_weights(group_N, draws, seed)])
    low, high = percentile_interval(drawn)
    if high - low < NO_WIDTH:
        high = proportion_interval(difference_N != 0, group_N)[1]
        value = float(difference_N.mean())
        if abs(value) < NO_WIDTH:
            return figure(0.0, (-high, high), n, "Wilson of the share on which they differ")
        ends = sorted((value, math.copysign(proportion_interval(difference_N != 0, group_N)[0], value)))
        return figure(value, (ends[0], ends[1]), n, "Wilson of the share on which they differ")
    grouped = int(group_N.max()) + 1 < n
    return figure(
        float(difference_N.mean()), (low, high), n, f"paired bootstrap ({draws} draws{', by group' if grouped else ''})"
    )


# ------------------------------------------------------------------------------------------------- from predictions


@dataclass(frozen=True)
class _Paired:
    """Cells that every model answered: true codes, groups, and by model which answers are right."""

    truth: tuple[str, ...]
    group_N: Integers
    right: dict[str, Bools]
    unknown: dict[str, int]
    left_out: dict[str, int]


def compare_predictions(
    models: Mapping[str, Predictions],
    *,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
    draws: int = 2000,
    least: int = 2,
) -> Comparison:
    """Compare models on the cells that all of them answered, matched by path.

    Args:
        models: By name, at least two; at least one with truth, which serves all.
        groups: Group (slide, patient, hash of duplicates) by path; None: each cell is its own.
        seed: Of the bootstrap and the sign flips.
        draws: Of the bootstrap.
        least: Fewest models; 1 where published figures are to be added (`compare_published`).

    Raises:
        FileFormatError: No truth, truths that contradict each other, a path twice, or no cell in common.
        ValueError: Fewer than two models, or a path without a group.
    """
    if len(models) < least:
        raise ValueError(f"A comparison takes at least two models; given: {', '.join(models) or 'none'}.")
    paired = _pair(models, groups)
    differences = [_difference(paired, a, b, seed, draws) for a, b in combinations(models, 2)]
    adjusted = holm_adjusted([d.p_value for d in differences])
    return Comparison(
        program=f"marrowscope {__version__}",
        n=len(paired.truth),
        left_out=paired.left_out,
        models=tuple(
            ComparedModel(
                name=name, accuracy=proportion(paired.right[name], paired.group_N), unknown=paired.unknown[name]
            )
            for name in models
        ),
        pairs=tuple(d.model_copy(update={"p_adjusted": p}) for d, p in zip(differences, adjusted, strict=True)),
    )


def compare_csvs(
    paths: Sequence[Path],
    *,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
    draws: int = 2000,
    least: int = 2,
) -> Comparison:
    """Compare predictions.csv files, of this program or of another; the names are the paths as given.

    Raises:
        FileFormatError: As `compare_predictions`, or a file is not a table of predictions.
        ValueError: One file given, or the same file twice.
    """
    names = [str(p) for p in paths]
    if len(set(names)) != len(names):
        raise ValueError(f"Give each file once: {', '.join(names)}.")
    return compare_predictions(
        {name: Predictions.read(Path(name)) for name in names}, groups=groups, seed=seed, draws=draws, least=least
    )


def _difference(paired: _Paired, first: str, second: str, seed: int, draws: int) -> ModelDifference:
    """Compare two of the models; `p_adjusted` is still the plain p-value."""
    a, b = paired.right[first], paired.right[second]
    truth = np.array(paired.truth)
    grouped = int(paired.group_N.max()) + 1 < len(truth)
    classes = []
    for code in sorted(set(paired.truth)):
        own = truth == code
        group_N = np.unique(paired.group_N[own], return_inverse=True)[1].astype(np.int64)
        p_value = _p_value(a[own], b[own], group_N, seed)
        classes.append(
            ClassDifference(
                code=code,
                n=int(own.sum()),
                only_first=int((a & ~b & own).sum()),
                only_second=int((b & ~a & own).sum()),
                difference=paired_difference(a[own], b[own], group_N, draws, seed),
                p_value=p_value,
                p_adjusted=p_value,
            )
        )
    adjusted = holm_adjusted([c.p_value for c in classes])
    p_value = _p_value(a, b, paired.group_N, seed)
    return ModelDifference(
        first=first,
        second=second,
        only_first=int((a & ~b).sum()),
        only_second=int((b & ~a).sum()),
        difference=paired_difference(a, b, paired.group_N, draws, seed),
        p_value=p_value,
        p_adjusted=p_value,
        test=f"sign flips of groups ({FLIPS} draws)" if grouped else "McNemar, exact",
        per_class=tuple(c.model_copy(update={"p_adjusted": p}) for c, p in zip(classes, adjusted, strict=True)),
    )


def _p_value(first_N: Bools, second_N: Bools, group_N: Integers, seed: int) -> float:
    if int(group_N.max()) + 1 == len(first_N):
        return mcnemar_p_value(int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum()))
    return sign_flip_p_value(second_N.astype(np.float64) - first_N, group_N, seed)


def _pair(models: Mapping[str, Predictions], groups: Mapping[str, str] | None) -> _Paired:
    rows = {name: _rows_by_path(name, p) for name, p in models.items()}
    common = sorted(set.intersection(*(set(r) for r in rows.values())))
    if not common:
        examples = "; ".join(f"{name}: {next(iter(r), 'no answer')}" for name, r in rows.items())
        raise FileFormatError(
            f"No cell has an answer in all tables; cells are matched by the column 'path'. First answers: {examples}."
        )
    truth = _common_truth(models, rows, common)
    right, unknown = {}, {}
    for name, p in models.items():
        said = p.probs_NC[[rows[name][path] for path in common]].argmax(1)
        right[name] = np.array([p.codes[s] == t for s, t in zip(said, truth, strict=True)], dtype=bool)
        unknown[name] = sum(t not in p.codes for t in truth)
    if groups is not None and (missing := [path for path in common if path not in groups]):
        raise ValueError(f"{len(missing)} cells have no group, the first is {missing[0]}.")
    return _Paired(
        truth=truth,
        group_N=np.arange(len(common)) if groups is None else number_groups([groups[path] for path in common]),
        right=right,
        unknown=unknown,
        left_out={name: len(p.paths) - len(common) for name, p in models.items()},
    )


def _rows_by_path(name: str, predictions: Predictions) -> dict[str, int]:
    """Row of each path that has an answer."""
    if len(set(predictions.paths)) != len(predictions.paths):
        twice = next(p for i, p in enumerate(predictions.paths) if p in predictions.paths[:i])
        raise FileFormatError(f"{name} has {twice} twice, so its cells can't be matched by path.")
    return {p: i for i, (p, s) in enumerate(zip(predictions.paths, predictions.status, strict=True)) if s == OK}


def _common_truth(
    models: Mapping[str, Predictions], rows: Mapping[str, Mapping[str, int]], common: Sequence[str]
) -> tuple[str, ...]:
    """The truth of the common cells, which the tables that have one must agree on."""
    truths = {
        name: tuple(p.truth[rows[name][path]] for path in common) for name, p in models.items() if p.truth is not None
    }
    if not truths:
        raise FileFormatError(f"None of {', '.join(models)} has a column 'truth'; at least one must.")
    (first, truth), *others = truths.items()
    for name, other in others:
        if differing := [path for path, a, b in zip(common, truth, other, strict=True) if a != b]:
            raise FileFormatError(
                f"{first} and {name} have another truth for {len(differing)} cells, the first is {differing[0]}. "
                "Judge them by one truth."
            )
    if "" in truth:
        raise FileFormatError(
            f"{first} has no truth for {truth.count('')} of the compared cells; leave those rows out."
        )
    return truth
