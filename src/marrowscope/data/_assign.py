"""How groups of pictures are drawn into bins (parts or folds): the arithmetic under `split` and `folds`.

Every group draws a number in [0, 1) from a keyed hash of what it is. The number names a bin by the bins' shares. Under
the rule ``quota`` a bin takes no more of a class than its share, to the nearest whole picture; a group that finds its
bin full goes to the one with most room. Under the rule ``hash`` the number alone decides.

No function of the data alone can do both: keep every class within one picture of its share, and never move a picture
when others are added. (If nothing may move, a picture's bin can depend on that picture only, and then the counts are
binomial.) So ``hash`` is stable and stratified in expectation, ``quota`` is stratified within one picture, and
``quota`` with the earlier split at hand (`keep`) is both.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from marrowscope.errors import SplitError
from marrowscope.schema import OK, IndexRow

Rule = Literal["quota", "hash"]
RULES: tuple[Rule, ...] = ("quota", "hash")

GroupColumn = Literal["group", "slide", "patient"]
GROUP_COLUMNS: tuple[GroupColumn, ...] = ("group", "slide", "patient")


class Group(NamedTuple):
    """Pictures that must stay in one bin.

    Attributes:
        order: Place in the drawing order (64 bits of keyed hash).
        number: What chooses the bin, in units of 2^-64 (64 further bits of keyed hash).
        rows: Its pictures, sorted.
        counts: Pictures per class.
    """

    order: int
    number: int
    rows: tuple[IndexRow, ...]
    counts: dict[str, int]


def keyed_hash(seed: int, purpose: str, text: str) -> int:
    """128 bits of hash, keyed by the seed, independent between purposes (at most 16 letters)."""
    data = text.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(data, digest_size=16, key=seed.to_bytes(8, "big"), person=purpose.encode())
    return int.from_bytes(digest.digest(), "big")


def content(row: IndexRow) -> str:
    """What a picture is told by: the hash of its bytes, so that its name does not matter."""
    return row.sha256 or row.path


# ------------------------------------------------------------------------------------------------ which rows count


def choose(index: Sequence[IndexRow], codes: Collection[str]) -> tuple[list[IndexRow], Counter[str]]:
    """Rows that can be drawn, and the number of the others by reason.

    Raises:
        SplitError: The index names a path twice.
    """
    left_out: Counter[str] = Counter()
    chosen = []
    seen: set[str] = set()
    for r in index:
        if r.path in seen:
            raise SplitError(f"The index names {r.path!r} twice; index the data anew.")
        seen.add(r.path)
        if r.status != OK:
            left_out[r.status.partition(":")[0]] += 1
        elif r.label not in codes:
            left_out["not in the class set"] += 1
        else:
            chosen.append(r)
    return chosen, left_out


def check_arguments(codes: Sequence[str], seed: int, cap: int | None, group_by: Sequence[str]) -> None:
    """Check what every kind of split takes.

    Raises:
        SplitError: Something is not allowed.
    """
    if len(set(codes)) != len(codes) or len(codes) < 2:
        raise SplitError(f"A split needs at least two different classes; given: {' '.join(codes) or 'none'}.")
    if not 0 <= seed < 2**63:
        raise SplitError(f"The seed must be a whole number from 0 to 2^63 - 1; given: {seed}.")
    if cap is not None and cap < 1:
        raise SplitError(f"The cap must be 1 or more images per class; given: {cap}.")
    unknown = [c for c in group_by if c not in GROUP_COLUMNS]
    if unknown:
        raise SplitError(f"Can't group by {', '.join(unknown)}; allowed: {', '.join(GROUP_COLUMNS)}.")


def check_classes(rows: Sequence[IndexRow], codes: Sequence[str], needed: int, what: str) -> None:
    """Check that every class has at least `needed` pictures, one for each of `what`.

    Raises:
        SplitError: Names the classes that have none or too few.
    """
    counts = Counter(r.label for r in rows)
    empty = [c for c in codes if not counts[c]]
    if empty:
        have = ", ".join(f"{c} {n}" for c, n in sorted(counts.items())) or "none"
        raise SplitError(
            f"No usable image of {' '.join(empty)}. Images of the set that the index holds: {have}. "
            "Choose a class set without them, or add images."
        )
    few = [f"{c} {counts[c]}" for c in codes if counts[c] < needed]
    if few:
        raise SplitError(
            f"Too few images to give each of the {needed} {what} one: {', '.join(few)}. "
            "Choose a class set without them, or add images."
        )


def capped(
    rows: Sequence[IndexRow], codes: Sequence[str], seed: int, cap: int, keep: Collection[str] = ()
) -> list[IndexRow]:
    """Draw `cap` rows of each class, those whose path is in `keep` first.

    Raises:
        SplitError: A class has fewer, or more are to be kept.
    """
    by_class: dict[str, list[IndexRow]] = defaultdict(list)
    for r in rows:
        by_class[r.label].append(r)
    few = [f"{c} {len(by_class[c])}" for c in codes if len(by_class[c]) < cap]
    if few:
        raise SplitError(
            f"A cap of {cap} needs that many images of each class, and there are fewer of {', '.join(few)}. "
            f"The largest cap possible is {min(len(by_class[c]) for c in codes)}; or choose a class set without them."
        )
    kept = Counter(r.label for r in rows if r.path in keep)
    if kept and max(kept.values()) > cap:
        raise SplitError(f"The split to keep has {max(kept.values())} images of a class; the cap can't be below that.")
    out = []
    for code in codes:
        ranked = sorted(by_class[code], key=lambda r: (r.path not in keep, keyed_hash(seed, "cap", content(r)), r.path))
        out += ranked[:cap]
    return out


# --------------------------------------------------------------------------------------------------------- groups


def join(rows: Sequence[IndexRow], seed: int, group_by: Sequence[str]) -> list[Group]:
    """Groups of rows with the same bytes or the same value in a column of `group_by`, in drawing order.

    Large groups come before small ones, for small ones can fill what large ones leave.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = key = parent[above]
        return key

    keys = [_keys(r, group_by) for r in rows]
    for key, *others in keys:
        for other in others:
            a, b = sorted((root(key), root(other)))
            parent[b] = a  # the smallest key names the group: the patient before the slide, the slide before the file
    members: dict[str, list[IndexRow]] = {}
    for row, named in zip(rows, keys, strict=True):
        key = root(named[0]) if named[0] in parent else named[0]
        members.setdefault(key, []).append(row)
    groups = []
    for key, group in members.items():
        number, order = divmod(keyed_hash(seed, "group", key), 2**64)
        if len(group) == 1:  # by far the most
            groups.append(Group(order, number, (group[0],), {group[0].label: 1}))
        else:
            groups.append(Group(order, number, tuple(sorted(group)), dict(Counter(r.label for r in group))))
    return sorted(groups, key=lambda g: (-len(g.rows), g.order, g.rows))


def _keys(row: IndexRow, group_by: Sequence[str]) -> list[str]:
    last = f"4 {content(row)}"
    if not (row.patient or row.slide or row.group):
        return [last]
    named = [("1 patient", "patient"), ("2 slide", "slide"), ("3 group", "group")]
    columns = [f"{prefix} {getattr(row, c)}" for prefix, c in named if c in group_by and getattr(row, c)]
    return [*columns, last]


def mixed_labels(rows: Sequence[IndexRow]) -> int:
    """Number of groups of identical files that carry more than one class."""
    first: dict[str, str] = {}
    return len({key for r in rows if first.setdefault(key := content(r), r.label) != r.label})


# -------------------------------------------------------------------------------------------------------- drawing


def quotas(total: int, shares: Sequence[Fraction], at_least: Sequence[int]) -> list[int]:
    """Share `total` pictures out: whole numbers that sum to `total`, each as near to its share as `at_least` allows."""
    out = [max(low, math.floor(s * total)) for s, low in zip(shares, at_least, strict=True)]
    while sum(out) != total:
        excess = [n - s * total for n, s in zip(out, shares, strict=True)]  # how far each bin lies above its share
        if sum(out) < total:
            out[min((i for i in range(len(out)) if shares[i] > 0), key=lambda i: excess[i])] += 1
        else:
            out[max((i for i in range(len(out)) if out[i] > at_least[i]), key=lambda i: excess[i])] -= 1
    return out


def assign(
    groups: Sequence[Group],
    codes: Sequence[str],
    shares: Sequence[Fraction],
    *,
    rule: Rule = "quota",
    fixed: Sequence[int | None] | None = None,
) -> list[int]:
    """The bin of each group.

    Args:
        groups: In drawing order.
        codes: All class codes that stand in the groups.
        shares: Of the bins; they sum to 1. Each bin with a share above 0 gets at least one picture a class if it can.
        rule: See the head of this module.
        fixed: The bin that a group has already, or None.
    """
    out: list[int | None] = [None] * len(groups) if fixed is None else list(fixed)
    # Upper ends of the bins' stretches of [0, 1); a bin without a share has none.
    edges = [int(sum(shares[: i + 1]) * 2**64) for i in range(len(shares))]
    if rule == "hash":
        return [bisect_right(edges, g.number) if b is None else b for g, b in zip(groups, out, strict=True)]
    room = _room(groups, codes, shares, out)
    open_bins = [i for i, s in enumerate(shares) if s > 0]
    for at, group in enumerate(groups):
        if out[at] is not None:
            continue
        wanted = bisect_right(edges, group.number)
        for c, n in group.counts.items():
            if room[c][wanted] < n:
                wanted = max(open_bins, key=lambda i: _fit(group, room, i))
                break
        for c, n in group.counts.items():
            room[c][wanted] -= n
        out[at] = wanted
    return [b for b in out if b is not None]


def _room(
    groups: Sequence[Group], codes: Sequence[str], shares: Sequence[Fraction], fixed: Sequence[int | None]
) -> dict[str, list[int]]:
    """By class: how many more pictures each bin takes."""
    totals: Counter[str] = Counter()
    taken = {c: [0] * len(shares) for c in codes}
    for group, b in zip(groups, fixed, strict=True):
        for c, n in group.counts.items():
            totals[c] += n
            if b is not None:
                taken[c][b] += n
    room = {}
    for c in codes:
        at_least = [max(n, int(s > 0)) for n, s in zip(taken[c], shares, strict=True)]
        if sum(at_least) > totals[c]:
            at_least = taken[c]
        room[c] = [q - n for q, n in zip(quotas(totals[c], shares, at_least), taken[c], strict=True)]
    return room


def _fit(group: Group, room: dict[str, list[int]], i: int) -> tuple[int, int]:
    """The greater, the better a group fits into bin `i`: least pictures too many, then most room."""
    over = sum(max(0, n - room[c][i]) for c, n in group.counts.items())
    return -over, sum(room[c][i] for c in group.counts)
