"""Which picture goes to which part: by keyed hash, stratified, copies together.

Every group of pictures that belong together (identical files) draws a number in [0, 1) from the keyed hash of its
content. The number chooses the part by the ratios; where that part has no more room for the group's classes, the group
goes to the part with most room. No random state, no order of rows and no file name comes in.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from marrowscope.errors import SplitError
from marrowscope.schema import OK, PARTS, IndexRow, Part, Split, SplitInfo, SplitRow, count_parts, index_hash

Ratios = tuple[float, float, float]
Counts = tuple[int, int, int]

RULE = (
    "groups of identical files in order of blake2b(sha256, key = seed); each goes to the part that a second hash "
    "chooses by the ratios, or, where that has no room for its class, to the part with most room"
)


@dataclass(frozen=True)
class _Group:
    """Pictures that must stay in one part."""

    order: int
    """Place in the drawing order: 64 bits of keyed hash."""
    draw: Fraction
    """Number in [0, 1) that chooses the part."""
    rows: tuple[IndexRow, ...]

    @property
    def labels(self) -> Counter[str]:
        return Counter(r.label for r in self.rows)


def make_split(
    index: Sequence[IndexRow],
    *,
    codes: Sequence[str],
    class_set: str,
    ratios: Ratios = (0.8, 0.1, 0.1),
    seed: int = 0,
    cap: int | None = None,
) -> Split:
    """Draw a seeded, stratified split; identical files never straddle two parts.

    Class counts per part are within one image of the ratios where groups allow, save that every part whose ratio is
    above 0 gets at least one image of each class. The result depends on what the index holds, not on its order.

    Args:
        index: Rows of an index; those whose status is not ``ok`` or whose class is not in `codes` are left out, and
            counted in the split's `left_out`.
        codes: Class codes to split.
        class_set: Name of the set, for the record.
        ratios: Shares of train, val and test; they sum to 1.
        seed: Key of the hash.
        cap: Draw exactly this many images of each class.

    Raises:
        SplitError: Ratios, seed or cap are not allowed; a class has no image or too few; paths stand twice.
    """
    shares = _shares(ratios)
    _check_arguments(codes, seed, cap)
    chosen, left_out = _choose(index, codes)
    _check_classes(chosen, codes, shares)
    if cap is not None:
        before = len(chosen)
        chosen = _capped(chosen, codes, seed, cap)
        left_out["over the cap"] = before - len(chosen)
    groups = _groups(chosen, seed)
    parts = _assign(groups, codes, shares)
    rows = sorted(
        SplitRow(r.path, r.label, part) for group, part in zip(groups, parts, strict=True) for r in group.rows
    )
    _check_parts(rows, codes, shares)
    info = SplitInfo(
        seed=seed,
        rule=RULE,
        class_set=class_set,
        codes=tuple(codes),
        ratios=ratios,
        cap=cap,
        index_sha256=index_hash(index),
        left_out={k: n for k, n in sorted(left_out.items()) if n},
        counts=count_parts(rows),
    )
    return Split(tuple(rows), info)


def check_split(split: Split, data_root: Path) -> None:
    """Check that every file of a split is there.

    Raises:
        SplitError: Some are missing; the message names the first five.
    """
    missing = [r.path for r in split.rows if not os.path.exists(Path(data_root) / r.path)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise SplitError(
            f"{len(missing)} of the {len(split.rows)} files of the split are not in {data_root}: "
            f"{', '.join(map(repr, missing[:5]))}{more}. Give the data folder that the split was drawn from, or index "
            "and split anew."
        )


# -------------------------------------------------------------------------------------------------------- checks


def _shares(ratios: Ratios) -> tuple[Fraction, Fraction, Fraction]:
    """The ratios as exact fractions that sum to 1."""
    if len(ratios) != 3 or not all(math.isfinite(r) and r >= 0 for r in ratios):
        raise SplitError(f"Ratios must be three numbers of 0 or more (train, val, test); given: {list(ratios)}.")
    if abs(sum(ratios) - 1) > 1e-6:
        raise SplitError(f"Ratios must sum to 1, such as 0.8,0.1,0.1; {list(ratios)} sum to {sum(ratios):g}.")
    a, b, c = (Fraction(repr(float(r))) for r in ratios)  # 0.1 is meant as one tenth
    total = a + b + c
    return a / total, b / total, c / total


def _check_arguments(codes: Sequence[str], seed: int, cap: int | None) -> None:
    if len(set(codes)) != len(codes) or len(codes) < 2:
        raise SplitError(f"A split needs at least two different classes; given: {' '.join(codes) or 'none'}.")
    if not 0 <= seed < 2**63:
        raise SplitError(f"The seed must be a whole number from 0 to 2^63 - 1; given: {seed}.")
    if cap is not None and cap < 1:
        raise SplitError(f"The cap must be 1 or more images per class; given: {cap}.")


def _choose(index: Sequence[IndexRow], codes: Sequence[str]) -> tuple[list[IndexRow], Counter[str]]:
    """The rows to split, and the number of the others by reason."""
    wanted = set(codes)
    left_out: Counter[str] = Counter()
    chosen = []
    seen: set[str] = set()
    for r in index:
        if r.path in seen:
            raise SplitError(f"The index names {r.path!r} twice; index the data anew.")
        seen.add(r.path)
        if r.status != OK:
            left_out[r.status.partition(":")[0]] += 1
        elif r.label not in wanted:
            left_out["not in the class set"] += 1
        else:
            chosen.append(r)
    return chosen, left_out


def _check_classes(rows: Sequence[IndexRow], codes: Sequence[str], shares: Sequence[Fraction]) -> None:
    counts = Counter(r.label for r in rows)
    empty = [c for c in codes if not counts[c]]
    if empty:
        have = ", ".join(f"{c} {n}" for c, n in sorted(counts.items())) or "none"
        raise SplitError(
            f"No usable image of {' '.join(empty)}. Images of the set that the index holds: {have}. "
            "Choose a class set without them, or add images."
        )
    needed = sum(s > 0 for s in shares)
    few = [f"{c} {counts[c]}" for c in codes if counts[c] < needed]
    if few:
        raise SplitError(
            f"Too few images to give each of the {needed} parts one: {', '.join(few)}. "
            "Choose a class set without them, or add images."
        )


def _check_parts(rows: Sequence[SplitRow], codes: Sequence[str], shares: Sequence[Fraction]) -> None:
    """Groups may be too large to give every part an image of every class."""
    counts = count_parts(rows)
    bare = [f"{p} has no {c}" for p, s in zip(PARTS, shares, strict=True) if s for c in codes if c not in counts[p]]
    if bare:
        raise SplitError(
            f"Images that must stay together leave parts without a class: {', '.join(bare[:5])}. "
            "Choose a class set without it, or add images."
        )


# -------------------------------------------------------------------------------------------------------- drawing


def _hash(seed: int, purpose: str, text: str) -> int:
    """64 bits of hash, keyed by the seed, independent between purposes."""
    data = text.encode("utf-8", "surrogateescape")
    return int.from_bytes(
        hashlib.blake2b(data, digest_size=8, key=seed.to_bytes(8, "big"), person=purpose.encode()).digest(), "big"
    )


def _identity(row: IndexRow) -> str:
    return row.sha256 or row.path


def _capped(rows: Sequence[IndexRow], codes: Sequence[str], seed: int, cap: int) -> list[IndexRow]:
    """`cap` rows of each class."""
    by_class: dict[str, list[IndexRow]] = defaultdict(list)
    for r in rows:
        by_class[r.label].append(r)
    few = [f"{c} {len(by_class[c])}" for c in codes if len(by_class[c]) < cap]
    if few:
        raise SplitError(
            f"A cap of {cap} needs that many images of each class, and there are fewer of {', '.join(few)}. The largest "
            f"cap possible is {min(len(v) for v in by_class.values())}; or choose a class set without them."
        )
    out = []
    for code in codes:
        out += sorted(by_class[code], key=lambda r: (_hash(seed, "cap", _identity(r)), r.path))[:cap]
    return out


def _groups(rows: Sequence[IndexRow], seed: int) -> list[_Group]:
    """Groups in drawing order: large before small, for small ones fill what large ones leave."""
    members: dict[str, list[IndexRow]] = defaultdict(list)
    for r in rows:
        members[_identity(r)].append(r)
    groups = [
        _Group(_hash(seed, "order", key), Fraction(_hash(seed, "part", key), 2**64), tuple(sorted(group)))
        for key, group in members.items()
    ]
    return sorted(groups, key=lambda g: (-len(g.rows), g.order, g.rows))


def quotas(total: int, shares: Sequence[Fraction], at_least: Sequence[int]) -> list[int]:
    """Share `total` images out: whole numbers that sum to `total`, each as near to its share as `at_least` allows."""
    out = [max(low, math.floor(s * total)) for s, low in zip(shares, at_least, strict=True)]
    while sum(out) != total:
        # How far each part lies above its share.
        excess = [n - s * total for n, s in zip(out, shares, strict=True)]
        if sum(out) < total:
            out[min((i for i in range(len(out)) if shares[i] > 0), key=lambda i: excess[i])] += 1
        else:
            out[max((i for i in range(len(out)) if out[i] > at_least[i]), key=lambda i: excess[i])] -= 1
    return out


def _assign(groups: Sequence[_Group], codes: Sequence[str], shares: Sequence[Fraction]) -> list[Part]:
    """The part of each group."""
    totals = Counter(r.label for g in groups for r in g.rows)
    minimum = [int(s > 0) for s in shares]
    room = {c: quotas(totals[c], shares, minimum) for c in codes}
    out: list[Part] = []
    for group in groups:
        labels = group.labels
        drawn = _draw(group.draw, shares)
        fits = all(room[c][drawn] >= n for c, n in labels.items())
        if not fits:
            # The part that is left with most room, counted in the class that is worst off there.
            open_parts = [i for i, s in enumerate(shares) if s > 0]
            drawn = max(open_parts, key=lambda i: min(room[c][i] - n for c, n in labels.items()))
        for c, n in labels.items():
            room[c][drawn] -= n
        out.append(PARTS[drawn])
    return out


def _draw(number: Fraction, shares: Sequence[Fraction]) -> int:
    """Index of the part into whose stretch of [0, 1) a number falls."""
    edge = Fraction(0)
    for i, share in enumerate(shares):
        edge += share
        if number < edge:
            return i
    raise AssertionError("shares sum to 1")
