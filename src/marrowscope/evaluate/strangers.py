"""How well a score of novelty tells strange pictures from test cells: AUROC, and what passes at 95 %."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from marrowscope.evaluate.figures import NO_WIDTH, figure, proportion
from marrowscope.evaluate.intervals import bootstrap_weights, number_groups, percentile_interval, wilson_interval
from marrowscope.evaluate.metrics import Bools, Floats, Integers, ratio
from marrowscope.evaluate.ranking import rank_scores
from marrowscope.schema import CardNovelty, Figure, Novelty, NoveltyScore, StrangerKind

KEPT = 0.95
"""Share of the known cells that pass where the false-positive rate is taken."""


@dataclass(frozen=True)
class Strangers:
    """M pictures of one kind that the model has not learnt.

    Attributes:
        name: Of the kind.
        description: What they are and where they come from.
        groups: For each the name of what it belongs to: pieces of one photograph are no independent evidence.
        scores: By method, each (M,).
        accepted_M: Whether the answer would be accepted; None where the card has no such threshold.
        source_M: For pictures that were made of test cells: of which; None for others.
    """

    name: str
    description: str
    groups: Sequence[str]
    scores: Mapping[str, Floats]
    accepted_M: Bools | None = None
    source_M: Integers | None = None


def novelty_figures(
    known: Mapping[str, Floats],
    group_N: Integers,
    strangers: Sequence[Strangers],
    card: CardNovelty,
    *,
    chosen_by: Mapping[str, Mapping[str, float]],
    left_out: Mapping[str, str] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Novelty:
    """Judge all scores on all kinds of strangers.

    Args:
        known: Scores of the N test cells, by method.
        group_N: Numbers of what belongs together among the test cells.
        strangers: By kind, each with at least one picture.
        card: Method and threshold that are in use.
        chosen_by: How the method was chosen, kept in the result.
        left_out: Kinds that could not be had, and why, kept in the result.
        draws: Of the bootstrap.
        seed: Of the bootstrap.
    """
    weights = np.concatenate(list(bootstrap_weights(group_N, draws, seed)))
    kinds = []
    for i, s in enumerate(strangers):
        group_M = number_groups(s.groups)
        if s.source_M is None:
            strange = np.concatenate(list(bootstrap_weights(group_M, draws, seed + 1 + i)))
        else:
            strange = weights[:, s.source_M]
        several = int(group_M.max()) + 1
        method = f"bootstrap ({draws} draws, {several} groups of strange pictures)"
        kinds.append(
            StrangerKind(
                name=s.name,
                description=s.description,
                n=len(s.groups),
                scores={m: score_figures(known[m], s.scores[m], weights, strange, method) for m in known},
                flagged=proportion(s.scores[card.method] > card.threshold, group_M),
                accepted=None if s.accepted_M is None else proportion(s.accepted_M, group_M),
            )
        )
    return Novelty(
        method=card.method,
        threshold=card.threshold,
        chosen_by={k: dict(v) for k, v in chosen_by.items()},
        flagged=proportion(known[card.method] > card.threshold, group_N),
        kinds=tuple(kinds),
        left_out=dict(left_out or {}),
    )


def score_figures(
    known_N: Floats, strange_M: Floats, weights_BN: Floats, weights_BM: Floats, method: str
) -> NoveltyScore:
    """AUROC and false-positive rate of one score, with intervals from the weights of B draws."""
    is_strange = np.repeat([False, True], [len(known_N), len(strange_M)])
    both = np.concatenate([known_N, strange_M])
    ones = np.ones((1, len(both)))
    drawn = np.concatenate([weights_BN, weights_BM], axis=1)
    n = len(strange_M)
    area, areas = (rank_scores(is_strange, both, w).auroc for w in (ones, drawn))
    passing, passings = (false_positive_rates(known_N, strange_M, w) for w in (ones, drawn))
    # Apart from each other, all draws give 1 or 0; then the number of strange pictures says how far it can be trusted.
    bound = wilson_interval(0, n)[1]
    return NoveltyScore(
        auroc=_figure(float(area[0]), areas, n, method, bound),
        fpr_at_95=_figure(float(passing[0]), passings, n, method, bound),
    )


def _figure(value: float, draws: Floats, n: int, method: str, bound: float) -> Figure:
    low, high = percentile_interval(draws)
    if high - low < NO_WIDTH:
        ends = (max(0.0, value - bound), min(1.0, value + bound))
        return figure(value, ends, n, "Wilson of none among the strange pictures (the bootstrap has no width)")
    return figure(value, (low, high), n, method)


def false_positive_rates(known_N: Floats, strange_M: Floats, weights: Floats, kept: float = KEPT) -> Floats:
    """Share of strange pictures that score no higher than 95 % of the known ones do, (B,).

    (Hendrycks & Gimpel 2017, ICLR, and all that follow them: "FPR95".) The threshold is the least score at or below
    which at least that share of the known lies.

    Args:
        known_N: Scores.
        strange_M: Scores.
        weights: (B, N + M), the known first: how often each counts.
        kept: The share.
    """
    order = np.argsort(known_N, kind="stable")
    own, strange = weights[:, : len(known_N)][:, order], weights[:, len(known_N) :]
    passed = np.cumsum(own, axis=1)
    place = (passed < kept * passed[:, -1:] - 1e-9).sum(1)
    threshold_B = known_N[order][np.minimum(place, len(known_N) - 1)]
    return ratio((strange * (strange_M[None] <= threshold_B[:, None])).sum(1), strange.sum(1))
