"""Are adjusted counts closer to the truth than raw ones? On mixtures drawn from the real test cells.

    python scripts/mixtures.py TEST.csv VALIDATION.csv [--draws 200] [--cells 500] [--card card.json]

TEST.csv and VALIDATION.csv are tables of predictions with truth, of one model on the test and on the validation part of
its split (`marrowscope evaluate RUN` and `marrowscope evaluate RUN --part val` write them). Each mixture has a mix of
the classes drawn evenly from all mixes (Dirichlet), and that many cells drawn with replacement from the test cells of
each class. Confusions, the mix that probabilities are calibrated for, and the threshold of acceptance (the least
confidence from which 95 % of the answers are right) are of the validation cells alone.

Of each way to count: the mean absolute error of the percentages of all classes, and how often its 95 % interval of a
class holds the truth. The intervals of the table are bootstrap intervals over mixtures; the cells of one class are the
same in all mixtures, so they say how sure the figure is for these test cells, not for others.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from marrowscope.differential import goodman_interval, mixtures
from marrowscope.evaluate.intervals import percentile_interval
from marrowscope.schema import OK, Predictions
from marrowscope.triage import ACCURACY

WAYS = ("raw count", "raw count of accepted cells", "adjusted count", "prior-corrected count")


@dataclass(frozen=True)
class Known:
    """What validation cells tell of a model."""

    confusion_CC: npt.NDArray[np.int64]
    threshold: float


def truth_numbers(table: Predictions) -> npt.NDArray[np.int64]:
    """Class numbers of the truth, (N,)."""
    if table.truth is None or set(table.status) != {OK}:
        raise SystemExit("Both tables need a truth and an answer in every row.")
    return np.array([table.codes.index(t) for t in table.truth])


def learn(validation: Predictions) -> Known:
    """Confusions, and the least confidence from which answers are right in `ACCURACY` of cases."""
    truth, answer = truth_numbers(validation), validation.probs_NC.argmax(1)
    confusion = np.zeros((len(validation.codes),) * 2, dtype=np.int64)
    np.add.at(confusion, (truth, answer), 1)
    order = np.argsort(-validation.probs_NC.max(1))
    right = np.cumsum((truth == answer)[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(right >= ACCURACY)
    confidence = validation.probs_NC.max(1)[order]
    return Known(confusion, float(confidence[enough[-1]]) if len(enough) else 2.0)


def draw(truth: npt.NDArray[np.int64], classes: int, cells: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Rows of the test table that make up one mixture."""
    numbers = rng.multinomial(cells, rng.dirichlet(np.ones(classes)))
    return np.concatenate([rng.choice(np.flatnonzero(truth == c), size=n) for c, n in enumerate(numbers)])


def judge(
    probs_NC: npt.NDArray[np.float64], truth: npt.NDArray[np.int64], known: Known, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean absolute error in points and share of intervals that hold the truth, (4,) each."""
    classes = probs_NC.shape[1]
    true_C = np.bincount(truth, minlength=classes) / len(truth)
    errors, covered = [], []
    for part in (probs_NC, probs_NC[probs_NC.max(1) >= known.threshold]):
        counts = np.bincount(part.argmax(1), minlength=classes)
        n = max(1, len(part))
        ends = np.array([goodman_interval(int(k), n, classes) for k in counts])
        errors.append(np.abs(counts / n - true_C).mean())
        covered.append(((ends[:, 0] <= true_C) & (true_C <= ends[:, 1])).mean())
    for mixture in mixtures(probs_NC, known.confusion_CC, rng, draws=200):
        low, high = np.percentile(mixture.draws_BC, [2.5, 97.5], axis=0)
        errors.append(np.abs(mixture.shares_C - true_C).mean())
        covered.append(((low <= true_C) & (true_C <= high)).mean())
    return 100 * np.array(errors), np.array(covered)


def calibrated(table: Predictions, card: Path | None) -> Predictions:
    """Probabilities with the card's scaling, where a card is given; those of a run's table have none."""
    if card is None:
        return table
    from marrowscope.schema import Card
    from marrowscope.triage import calibrated as scaled

    return replace(table, probs_NC=scaled(Card.read(card), np.log(np.maximum(table.probs_NC, 1e-12))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--card", type=Path, help="card.json whose scaling the tables' probabilities do not have yet")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    test, validation = (calibrated(Predictions.read(p), options.card) for p in (options.test, options.validation))
    if test.codes != validation.codes:
        raise SystemExit("The two tables are not of one model: their classes differ.")
    known, truth = learn(validation), truth_numbers(test)
    results = []
    for _ in range(options.draws):
        rows = draw(truth, len(test.codes), options.cells, rng)
        results.append(judge(test.probs_NC[rows], truth[rows], known, rng))
    errors, covered = (np.stack(column) for column in zip(*results, strict=True))
    print(
        f"{options.draws} mixtures of {options.cells} cells out of {len(truth)} test cells; {len(test.codes)} classes;"
    )
    print(
        f"confusions of {known.confusion_CC.sum()} validation cells; "
        f"accepted from a confidence of {known.threshold:.3f}.\n"
    )
    print("| count | mean absolute error, points | less than raw | intervals that hold the truth |\n|---|---|---|---|")
    again = rng.integers(0, options.draws, (2000, options.draws))
    for i, way in enumerate(WAYS):
        low, high = percentile_interval(errors[again, i].mean(1))
        less = errors[:, 0] - errors[:, i]
        a, b = percentile_interval(less[again].mean(1))
        gain = "" if i == 0 else f"{less.mean():.2f} ({a:.2f} to {b:.2f})"
        print(
            f"| {way} | {errors[:, i].mean():.2f} ({low:.2f}–{high:.2f}) | {gain} "
            f"| {100 * covered[:, i].mean():.0f} % |"
        )


if __name__ == "__main__":
    main()
