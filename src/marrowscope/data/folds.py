"""Cross-validation: every picture is held out once, in one of k folds that are drawn as parts are.

A split into folds is one file with a ``fold`` column. Its parts are those of one experiment: for fold f, test is fold
f, val is fold f + 1 (the last one's is fold 0), and train the rest. `fold_split` turns the same file to another fold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from marrowscope.data._assign import (
    GROUP_COLUMNS,
    Group,
    assign,
    capped,
    check_arguments,
    check_classes,
    choose,
    join,
)
from marrowscope.errors import SplitError
from marrowscope.schema import IndexRow, Part, Split, SplitInfo, SplitRow, count_parts, index_hash

RULE = (
    "each group of images that belong together draws a number from blake2b(what it is, key = seed), which names a "
    "fold; where that is full for the class, the fold with most room"
)


def make_folds(
    index: Sequence[IndexRow],
    *,
    codes: Sequence[str],
    class_set: str,
    k: int = 5,
    seed: int = 0,
    repeats: int = 1,
    cap: int | None = None,
    keep: Sequence[Split] = (),
    group_by: Sequence[str] = GROUP_COLUMNS,
) -> list[Split]:
    """Draw k folds, `repeats` times; class counts per fold lie within one image of each other where groups allow.

    Args:
        index: As for `split.make_split`, and so `codes`, `class_set`, `cap` and `group_by`.
        codes: Class codes to split.
        class_set: Name of the set, for the record.
        k: Number of folds, from 3 (train, val and test are different folds).
        seed: Key of the hash; repetition r is drawn with seed + r.
        repeats: Number of independent drawings.
        cap: Draw exactly this many images of each class.
        keep: Earlier drawings for fewer images, one a repetition; every image keeps its folds.
        group_by: Columns of the index that name what belongs together.

    Returns:
        One split a repetition, its parts those of fold 0.

    Raises:
        SplitError: An argument is not allowed, or a class has fewer than k images.
    """
    if k < 3:
        raise SplitError(f"Cross-validation needs 3 folds or more (train, val and test are different); given: {k}.")
    if repeats < 1:
        raise SplitError(f"The number of repetitions must be 1 or more; given: {repeats}.")
    if keep and (len(keep) != repeats or any(s.info.folds != k for s in keep)):
        raise SplitError(f"The splits to keep must be {repeats}, one a repetition, of {k} folds each.")
    check_arguments(codes, seed, cap, group_by)
    check_arguments(codes, seed + repeats - 1, cap, group_by)
    rows, left_out = choose(index, set(codes))
    check_classes(rows, codes, k, "folds")
    identity = index_hash(index)
    out = []
    for r in range(repeats):
        kept = {row.path: row.fold for row in keep[r].rows if row.fold is not None} if keep else {}
        drawn = rows if cap is None else capped(rows, codes, seed + r, cap, kept)
        groups = join(drawn, seed + r, group_by)
        shares = [Fraction(1, k)] * k
        folds = assign(groups, codes, shares, fixed=[_kept_fold(g, kept) for g in groups])
        fold_of = {row.path: f for g, f in zip(groups, folds, strict=True) for row in g.rows}
        table = _parts([SplitRow(row.path, row.label, "train", fold_of[row.path]) for row in sorted(drawn)], 0, k)
        missing = {**left_out, "over the cap": len(rows) - len(drawn)}
        info = SplitInfo(
            seed=seed + r,
            rule=RULE + ("; images of an earlier split keep their fold" if keep else ""),
            class_set=class_set,
            codes=tuple(codes),
            ratios=((k - 2) / k, 1 / k, 1 / k),
            cap=cap,
            index_sha256=identity,
            folds=k,
            left_out={reason: n for reason, n in sorted(missing.items()) if n},
            notes=(f"repetition {r + 1} of {repeats}",) if repeats > 1 else (),
            counts=count_parts(table),
        )
        out.append(Split(table, info))
    return out


def fold_split(split: Split, fold: int) -> Split:
    """The split of one fold: test is this fold, val the next, train the rest.

    Raises:
        SplitError: The split has no folds, or not this one.
    """
    k = split.info.folds
    if k is None:
        raise SplitError("This split has no folds; draw one with folds.")
    if not 0 <= fold < k:
        raise SplitError(f"There is no fold {fold}; the split has folds 0 to {k - 1}.")
    rows = _parts(split.rows, fold, k)
    return dataclasses.replace(split, rows=rows, info=split.info.model_copy(update={"counts": count_parts(rows)}))


def _parts(rows: Sequence[SplitRow], fold: int, k: int) -> tuple[SplitRow, ...]:
    parts: dict[int | None, Part] = {fold: "test", (fold + 1) % k: "val"}
    return tuple(r._replace(part=parts.get(r.fold, "train")) for r in rows)


def _kept_fold(group: Group, kept: dict[str, int]) -> int | None:
    folds = {kept[r.path] for r in group.rows if r.path in kept}
    if len(folds) > 1:
        raise SplitError(
            f"Images that belong together stand in different folds of the split to keep: {group.rows[0].path!r} and "
            f"others ({len(group.rows)} images). Draw the folds anew, or take the grouping away."
        )
    return next(iter(folds), None)
