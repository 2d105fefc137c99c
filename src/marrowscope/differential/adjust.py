"""Counts that correct for what a model is known to confuse (quantification, or prior estimation).

A model that takes a tenth of the segmented neutrophils for bands reports too many bands wherever there are many
segmented neutrophils. Two corrections, by what each rests on: the *adjusted count* uses the answers and the confusion
matrix; the *corrected* one uses the probabilities and the mix of classes that they are calibrated for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marrowscope.errors import DataError
from marrowscope.evaluate.intervals import percentile_interval
from marrowscope.schema import Figure

Floats = npt.NDArray[np.float64]

DRAWS = 500

ADJUSTED = f"most likely mixture under the confusion matrix; percentile bootstrap of cells and matrix ({DRAWS} draws)"
CORRECTED = f"probabilities corrected for the mix of classes; percentile bootstrap of cells ({DRAWS} draws)"


def adjusted_shares(
    counts_C: npt.ArrayLike,
    confusion_CC: npt.ArrayLike,
    *,
    start_C: Floats | None = None,
    iterations: int = 2000,
    tolerance: float = 1e-12,
) -> Floats:
    """The mixture of true classes under which the counts of predictions are most likely: shares (..., C), sum 1.

    Predictions are multinomial with the shares ``p @ recall``, where recall is the confusion matrix with rows that sum
    to 1. Where the inverse of that lies inside 0..1 this is the adjusted count (Forman 2008, Data Min Knowl Disc 17,
    164-206); elsewhere it stays a mixture, where the inverse gives shares below 0. Found by expectation maximisation.

    Args:
        counts_C: Predictions by class, (..., C), at least one.
        confusion_CC: Counts (..., C, C), row = truth, column = prediction; no row without a cell.
        start_C: Where to start, no share 0; None for equal shares.
        iterations: Steps at the most.
        tolerance: It ends when no share moves by more.
    """
    counts = np.asarray(counts_C, dtype=np.float64)
    matrix = np.asarray(confusion_CC, dtype=np.float64)
    recall = matrix / matrix.sum(axis=-1, keepdims=True)
    observed = counts / counts.sum(axis=-1, keepdims=True)
    classes = observed.shape[-1]
    p: Floats = np.broadcast_to(np.full(classes, 1 / classes) if start_C is None else start_C, observed.shape).copy()
    for _ in range(iterations):
        expected = (p[..., None, :] @ recall)[..., 0, :]
        weight = np.divide(observed, expected, out=np.zeros_like(observed), where=expected > 0)
        previous, p = p, p * (recall @ weight[..., None])[..., 0]
        p /= p.sum(axis=-1, keepdims=True)
        if np.abs(p - previous).max() <= tolerance:
            break
    return p


def prior_corrected(
    probs_NC: Floats,
    prior_C: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    start_C: Floats | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-10,
) -> Floats:
    """Shares of the classes from probabilities, by correcting for another mix than in training: (..., C), sum 1.

    Expectation maximisation after Saerens, Latinne & Decaestecker (2002), Neural Comput 14, 21-41, eq. 2.9.

    Args:
        probs_NC: Probabilities of the N cells, N above 0, calibrated for the training mix.
        prior_C: Shares of the classes in training, all above 0.
        weights: How often each cell counts, (..., N); None for once each.
        start_C: Where to start, no share 0; None for the prior.
        iterations: Steps at the most.
        tolerance: It ends when no share moves by more.
    """
    times = np.ones(len(probs_NC)) if weights is None else np.asarray(weights, dtype=np.float64)
    total = times.sum(axis=-1, keepdims=True)
    prior = np.asarray(prior_C, dtype=np.float64)
    prior = prior / prior.sum()
    relative_NC = probs_NC / prior
    p: Floats = np.broadcast_to(prior if start_C is None else start_C, (*times.shape[:-1], len(prior))).copy()
    ratio = np.empty(times.shape)
    for _ in range(iterations):
        # The mean posterior; its denominators are p @ relative.T, one a cell. In place: it would be a new array of
        # megabytes in each step.
        np.matmul(p, relative_NC.T, out=ratio)
        np.divide(times, ratio, out=ratio)
        previous, p = p, p * (ratio @ relative_NC) / total
        if np.abs(p - previous).max() <= tolerance:
            break
    return p


@dataclass(frozen=True)
class Mixture:
    """A mix of the classes with its uncertainty.

    Attributes:
        shares_C: The estimate; nan where there is no cell to estimate it from.
        draws_BC: The same of bootstrap draws.
        n: Cells that it rests on.
        method: How it was made.
    """

    shares_C: Floats
    draws_BC: Floats
    n: int
    method: str

    def percent(self, part: Sequence[int], of: Sequence[int]) -> Figure:
        """Share of the classes `part` among the classes `of` (places), 0..100."""
        value, draws = (_divided(s, part, of) for s in (self.shares_C, self.draws_BC))
        return self._figure(100 * float(value), 100 * draws)

    def ratio(self, above: Sequence[int], below: Sequence[int]) -> Figure:
        """Classes `above` to classes `below` (places); the interval is that of the share, as odds."""
        both = [*above, *below]
        value, draws = (_divided(s, above, both) for s in (self.shares_C, self.draws_BC))
        share = self._figure(float(value), draws)
        if not above or not below or share.value is None:
            return Figure(value=None, low=None, high=None, n=self.n, method=self.method)
        value_, low, high = (None if s is None or s >= 1 else s / (1 - s) for s in (share.value, share.low, share.high))
        return Figure(value=value_, low=low, high=high, n=self.n, method=self.method)

    def _figure(self, value: float, draws_B: Floats) -> Figure:
        draws_B = draws_B[~np.isnan(draws_B)]
        if np.isnan(value) or len(draws_B) == 0:
            return Figure(value=None, low=None, high=None, n=self.n, method=self.method)
        low, high = percentile_interval(draws_B)
        return Figure(value=value, low=min(low, value), high=max(high, value), n=self.n, method=self.method)


def _divided(shares: Floats, part: Sequence[int], of: Sequence[int]) -> Floats:
    """Sum of one over the sum of the other, (...); nan where the latter is 0."""
    total = shares[..., list(of)].sum(axis=-1)
    hits = shares[..., list(part)].sum(axis=-1)
    out: Floats = np.divide(hits, total, out=np.full_like(total, np.nan), where=total > 0)
    return out


def mixtures(
    probs_NC: Floats, confusion_CC: npt.NDArray[np.integer], rng: np.random.Generator, draws: int = DRAWS
) -> tuple[Mixture, Mixture]:
    """The adjusted and the corrected mixture of the N cells with these probabilities, with bootstrap draws.

    The bootstrap draws the cells anew, and for the adjusted count the validation cells of each class too.
    """
    n, c = probs_NC.shape
    if n == 0:
        nothing = np.full(c, np.nan), np.full((1, c), np.nan), 0
        return Mixture(*nothing, ADJUSTED), Mixture(*nothing, CORRECTED)
    answers = np.bincount(probs_NC.argmax(1), minlength=c)
    size = confusion_CC.sum(axis=1)
    matrices = np.stack([rng.multinomial(k, row / k, size=draws) for k, row in zip(size, confusion_CC, strict=True)], 1)
    adjusted, corrected = adjusted_shares(answers, confusion_CC), prior_corrected(probs_NC, size)
    # A draw's mixture lies near the estimate, so that few steps from there find it; a share of 0 could never grow.
    near = [0.99 * p + 0.01 / c for p in (adjusted, corrected)]
    drawn = rng.multinomial(n, answers / n, size=draws)
    adjusted_BC = adjusted_shares(drawn, matrices, start_C=near[0], iterations=200, tolerance=1e-6)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    chunks = np.array_split(weights, max(1, draws * n // 1_000_000))  # some 8 MB at a time
    corrected_BC = np.concatenate(
        [prior_corrected(probs_NC, size, w, start_C=near[1], iterations=200, tolerance=1e-6) for w in chunks]
    )
    return Mixture(adjusted, adjusted_BC, n, ADJUSTED), Mixture(corrected, corrected_BC, n, CORRECTED)


def check_confusion(codes: Sequence[str], confusion_CC: npt.NDArray[np.integer]) -> None:
    """Find out whether a confusion matrix fits.

    Raises:
        DataError: Another shape, a count below 0, or a class without a cell.
    """
    if confusion_CC.shape != (len(codes), len(codes)) or (confusion_CC < 0).any():
        raise DataError(
            f"The confusion matrix has shape {confusion_CC.shape}; it must have counts for the model's {len(codes)} "
            f"classes, {' '.join(codes)}. Take it from the same model."
        )
    empty = [c for c, row in zip(codes, confusion_CC, strict=True) if row.sum() == 0]
    if empty:
        raise DataError(
            f"The confusion matrix has no cell of {' '.join(empty)}, so it can't tell how often these are confused. "
            "Take a model that was validated on cells of every class, or count without adjusting."
        )
