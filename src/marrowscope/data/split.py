"""Which picture goes to which part: by keyed hash, stratified, what belongs together on one side.

How the drawing works, and why it comes in two rules, stands at the head of `_assign`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from marrowscope.data._assign import (
    GROUP_COLUMNS,
    RULES,
    Group,
    Rule,
    assign,
    capped,
    check_arguments,
    check_classes,
    choose,
    content,
    join,
    keyed_hash,
    mixed_labels,
)
from marrowscope.data.sources import open_source
from marrowscope.errors import SplitError
from marrowscope.schema import PARTS, IndexRow, Split, SplitInfo, SplitRow, count_parts, index_hash, read_index

Ratios = tuple[float, float, float]

_DRAWN = "each group of images that belong together draws a number from blake2b(what it is, key = seed)"
RULE_TEXTS: dict[Rule, str] = {
    "quota": f"{_DRAWN}, which names a part by the ratios; where that is full for the class, the part with most room",
    "hash": f"{_DRAWN}, which alone names its part by the ratios",
}


def make_split(
    index: Sequence[IndexRow],
    *,
    codes: Sequence[str],
    class_set: str,
    ratios: Ratios = (0.8, 0.1, 0.1),
    seed: int = 0,
    cap: int | None = None,
    rule: Rule = "quota",
    keep: Split | None = None,
    shots: int | None = None,
    group_by: Sequence[str] = GROUP_COLUMNS,
) -> Split:
    """Draw a seeded, stratified split in which identical files, and others that belong together, share a part.

    By the rule ``quota`` class counts per part lie within one image of the ratios where groups allow, save that every
    part whose ratio is above 0 gets at least one image of each class. By the rule ``hash`` they do so on average, and
    an image's part depends on that image alone. To draw for data that grew, give the earlier split as `keep`: then no
    image moves, and counts stay within one. The result depends on what the index holds, not on its order.

    Args:
        index: Rows of an index; those whose status is not ``ok`` or whose class is not in `codes` are left out, and
            counted in the split's `left_out`.
        codes: Class codes to split.
        class_set: Name of the set, for the record.
        ratios: Shares of train, val and test; they sum to 1.
        seed: Key of the hash, from 0 to 2^63 - 1.
        cap: Draw exactly this many images of each class.
        rule: ``quota`` or ``hash``.
        keep: An earlier split; every image keeps the part that it has there.
        shots: Leave only this many images of each class in train; val and test stay as they are. The images of a
            smaller number are among those of a larger one.
        group_by: Columns of the index (out of ``group``, ``slide``, ``patient``) that name what belongs together;
            empty cells say nothing.

    Raises:
        SplitError: An argument is not allowed; a class has no image or too few; a path stands twice; or images that
            belong together stand in different parts of `keep`.
    """
    shares = _shares(ratios)
    check_arguments(codes, seed, cap, group_by)
    if rule not in RULES:
        raise SplitError(f"Unknown rule {rule!r}; allowed: {', '.join(RULES)}.")
    usable, left_out = choose(index, set(codes))
    check_classes(usable, codes, sum(s > 0 for s in shares), "parts")
    kept = {} if keep is None else {r.path: PARTS.index(r.part) for r in keep.rows}
    chosen = usable if cap is None else capped(usable, codes, seed, cap, kept)
    left_out["over the cap"] = len(usable) - len(chosen)
    groups = join(chosen, seed, group_by)
    fixed = [_kept_bin(g, kept) for g in groups] if kept else None
    bins = assign(groups, codes, shares, rule=rule, fixed=fixed)
    _check_parts(groups, bins, codes, shares, rule)
    if shots is not None:
        groups, bins, gone = _few(groups, bins, codes, seed, shots)
        left_out["over the shots"] = gone
    rows = sorted(SplitRow(r.path, r.label, PARTS[b]) for g, b in zip(groups, bins, strict=True) for r in g.rows)
    info = SplitInfo(
        seed=seed,
        rule=RULE_TEXTS[rule] + ("; images of an earlier split keep their part" if keep is not None else ""),
        class_set=class_set,
        codes=tuple(codes),
        ratios=ratios,
        cap=cap,
        shots=shots,
        index_sha256=index_hash(index),
        left_out={k: n for k, n in sorted(left_out.items()) if n},
        notes=tuple(_notes(chosen, groups, kept)),
        counts=count_parts(rows),
    )
    return Split(tuple(rows), info)


def relabel(split: Split, *, merge: Mapping[str, str], drop: Collection[str], class_set: str) -> Split:
    """Merge and drop classes of a split; no image changes its part.

    Args:
        split: As drawn for all classes.
        merge: Class code -> the code of the set that it shall count as.
        drop: Class codes whose images are left out.
        class_set: Name of the new set, for the record.
    """
    rows = tuple(r._replace(label=merge.get(r.label, r.label)) for r in split.rows if r.label not in drop)
    gone = len(split.rows) - len(rows)
    left_out = split.info.left_out | ({"class dropped": gone} if gone else {})
    info = split.info.model_copy(
        update={
            "class_set": class_set,
            "codes": tuple(c for c in split.info.codes if c not in merge and c not in drop),
            "left_out": left_out,
            "notes": (*split.info.notes, *(f"{a} counts as {b}" for a, b in sorted(merge.items()))),
            "counts": count_parts(rows),
        }
    )
    return Split(rows, info)


def check_split(split: Split, data_root: Path) -> None:
    """Check that every file of a split is there.

    Raises:
        DataError: There is no such folder or archive.
        SplitError: Files are missing; the message names the first five.
    """
    source = open_source(Path(data_root))
    missing = [r.path for r in split.rows if not source.has(r.path)]
    if missing:
        raise SplitError(
            f"{len(missing)} of the {len(split.rows)} files of the split are not in {data_root}: {_some(missing)}. "
            "Give the data that the split was drawn from, or index and split anew."
        )


def check_fits(split: Split, index: Sequence[IndexRow]) -> None:
    """Check that a split was drawn from this index.

    Raises:
        SplitError: Images are missing in the index, have another class there, or can't be decoded; or the index holds
            other images than the one that the split was drawn from.
    """
    have = {r.path: r for r in index}
    missing = [r.path for r in split.rows if r.path not in have]
    if missing:
        raise SplitError(f"{len(missing)} files of the split are not in the index: {_some(missing)}. Split anew.")
    other = [r.path for r in split.rows if have[r.path].label != r.label]
    if other:
        raise SplitError(f"{len(other)} files have another class in the index: {_some(other)}. Split anew.")
    if index_hash(index) != split.info.index_sha256:
        raise SplitError(
            "The index is not the one that the split was drawn from: images were added, taken away or changed. "
            "Split anew, keeping this split, so that no image moves."
        )


def check_its_index(split: Split, split_file: Path, index_file: Path | None = None) -> None:
    """Check that a split was drawn from its index: the one that is given, or an ``index.csv`` beside the split.

    Where neither is there, nothing is checked.

    Raises:
        FileFormatError: The index can't be read.
        SplitError: The split does not fit it.
    """
    beside = Path(split_file).with_name("index.csv")
    chosen = beside if index_file is None and beside.is_file() else index_file
    if chosen is None:
        return
    try:
        check_fits(split, read_index(chosen))
    except SplitError as e:
        other = "" if index_file else f" If {beside} is of other data, give the right one with --index."
        raise SplitError(f"{split_file} does not fit {chosen}: {e}{other}") from None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


def _shares(ratios: Ratios) -> tuple[Fraction, Fraction, Fraction]:
    """The ratios as exact fractions that sum to 1."""
    if len(ratios) != 3 or not all(math.isfinite(r) and r >= 0 for r in ratios):
        raise SplitError(f"Ratios must be three numbers of 0 or more (train, val, test); given: {list(ratios)}.")
    if abs(sum(ratios) - 1) > 1e-6:
        raise SplitError(f"Ratios must sum to 1, such as 0.8,0.1,0.1; {list(ratios)} sum to {sum(ratios):g}.")
    a, b, c = (Fraction(repr(float(r))) for r in ratios)  # 0.1 is meant as one tenth
    total = a + b + c
    return a / total, b / total, c / total


def _kept_bin(group: Group, kept: dict[str, int]) -> int | None:
    """The part that a group has in the split to keep."""
    bins = {kept[r.path]: r.path for r in group.rows if r.path in kept}
    if len(bins) > 1:
        raise SplitError(
            f"Images that belong together stand in different parts of the split to keep: {_some(sorted(bins.values()))}"
            f" ({len(group.rows)} images in all). Draw the split anew, or take the grouping away."
        )
    return next(iter(bins), None)


def _check_parts(
    groups: Sequence[Group], bins: Sequence[int], codes: Sequence[str], shares: Sequence[Fraction], rule: Rule
) -> None:
    """Check that every part has every class."""
    there = {(b, c) for g, b in zip(groups, bins, strict=True) for c in g.counts}
    bare = [f"{p} has no {c}" for i, p in enumerate(PARTS) if shares[i] for c in codes if (i, c) not in there]
    if bare:
        reason = "The rule 'hash' leaves" if rule == "hash" else "Images that are kept, or must stay together, leave"
        raise SplitError(
            f"{reason} parts without a class: {', '.join(bare[:5])}. "
            "Choose a class set without it, another rule, ratio or seed, or add images."
        )


def _few(
    groups: Sequence[Group], bins: Sequence[int], codes: Sequence[str], seed: int, shots: int
) -> tuple[list[Group], list[int], int]:
    """Thin train out to `shots` images a class; also the number of images taken away."""
    if shots < 1:
        raise SplitError(f"The number of shots must be 1 or more images per class; given: {shots}.")
    ranked: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for group in (g for g, b in zip(groups, bins, strict=True) if PARTS[b] == "train"):
        seen: Counter[str] = Counter()
        for r in group.rows:
            # One image of each group before a second of any: copies teach nothing new.
            ranked[r.label].append((seen[r.label], keyed_hash(seed, "shots", content(r)), r.path))
            seen[r.label] += 1
    few = [f"{c} {len(ranked[c])}" for c in codes if len(ranked[c]) < shots]
    if few:
        raise SplitError(f"{shots} shots need that many training images of each class; there are {', '.join(few)}.")
    stay = {path for c in codes for _, _, path in sorted(ranked[c])[:shots]}
    out, gone = [], 0
    for g, b in zip(groups, bins, strict=True):
        rows = tuple(r for r in g.rows if PARTS[b] != "train" or r.path in stay)
        gone += len(g.rows) - len(rows)
        out.append(Group(g.order, g.number, rows, g.counts))
    return out, list(bins), gone


def _notes(chosen: Sequence[IndexRow], groups: Sequence[Group], kept: dict[str, int]) -> list[str]:
    notes = []
    joined = [g for g in groups if len(g.rows) > 1]
    if joined:
        notes.append(f"{sum(len(g.rows) for g in joined)} images stay together in {len(joined)} groups")
    mixed = mixed_labels(chosen)
    if mixed:
        notes.append(f"{mixed} groups of identical files carry more than one class")
    if kept:
        here = sum(r.path in kept for r in chosen)
        notes.append(f"{here} images keep the part of the earlier split; {len(kept) - here} of that are not here now")
    return notes
