"""Somebody else's split, taken over from lists of paths."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from marrowscope.data._assign import check_classes, choose, content
from marrowscope.data.sources import label_of
from marrowscope.errors import FileFormatError, SplitError
from marrowscope.files import UNDECODABLE, UTF8
from marrowscope.schema import PARTS, IndexRow, Part, Split, SplitInfo, SplitRow, count_parts, index_hash

_MAX_BYTES = 200_000_000


def read_path_list(path: Path) -> list[str]:
    """Read a text file with one path a line; empty lines and those that begin with ``#`` are passed over.

    Raises:
        FileFormatError: It can't be read, holds no path, or is no text.
    """
    try:
        if Path(path).stat().st_size > _MAX_BYTES:
            raise FileFormatError(f"{path} is too large for a list of paths.")
        text = Path(path).read_text(encoding=UTF8, errors=UNDECODABLE)
    except OSError as e:
        raise FileFormatError(f"Can't read the list of paths {path}: {e.strerror or e}.") from e
    if "\0" in text:
        raise FileFormatError(f"{path} is not a list of paths: it is no text. Give one path a line.")
    lines = [line.strip() for line in text.removeprefix("\ufeff").split("\n")]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise FileFormatError(f"{path} holds no path. Give one path a line.")
    return names


def import_split(
    index: Sequence[IndexRow],
    lists: Mapping[Part, Sequence[str]],
    *,
    codes: Sequence[str],
    class_set: str,
    origin: str,
) -> Split:
    """Make a split of lists of paths, as they are published with papers.

    A listed path stands for the image of the index that has this path or, where folders differ, for the only one with
    which it shares its last names: ``data/BLA/BLA_00001.jpg`` or ``BLA_00001.jpg`` is ``BLA/0001-1000/BLA_00001.jpg``
    if no other image is called so. A folder of another class never fits. The split is taken as it is: identical files
    in different parts are told in its `notes`, and not mended.

    Args:
        index: The images.
        lists: Paths of each part; a part may be left out.
        codes: Class codes of the set; listed images of other classes are left out.
        class_set: Name of the set, for the record.
        origin: Where the lists come from, for the record.

    Raises:
        SplitError: A path is in no list's index, fits several images, or is listed in two parts; or a class has no
            image.
    """
    chosen, left_out = choose(index, set(codes))
    usable = {r.path: r for r in chosen}
    finder = _Finder({r.path: r.label for r in index})
    part_of: dict[str, Part] = {}
    missing: list[str] = []
    for part in PARTS:
        for given in lists.get(part, ()):
            found = finder.find(given)
            if found is None:
                missing.append(given)
            elif part_of.setdefault(found, part) != part:
                raise SplitError(f"{given!r} is listed in both {part_of[found]} and {part}; an image has one part.")
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise SplitError(
            f"{len(missing)} of the listed images are not in the index: {', '.join(map(repr, missing[:5]))}{more}. "
            "Index the data that the lists were made for."
        )
    rows = [SplitRow(r.path, r.label, part_of[r.path]) for r in sorted(chosen) if r.path in part_of]
    check_classes([usable[r.path] for r in rows], codes, 1, "classes")
    left_out["in no list"] = len(chosen) - len(rows)
    counts = Counter(r.part for r in rows)
    train, val, test = (counts[p] / len(rows) for p in PARTS)
    info = SplitInfo(
        seed=0,
        rule=f"taken over from lists of paths: {origin}",
        class_set=class_set,
        codes=tuple(codes),
        ratios=(train, val, test),
        index_sha256=index_hash(index),
        left_out={k: n for k, n in sorted(left_out.items()) if n},
        notes=tuple(_leaks([usable[r.path] for r in rows], part_of)),
        counts=count_parts(rows),
    )
    return Split(tuple(rows), info)


class _Finder:
    """Finds the path of an index that a listed one means."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels = labels
        self.by_name: dict[str, list[list[str]]] = defaultdict(list)
        for p in labels:
            parts = p.split("/")
            self.by_name[parts[-1]].append(parts)

    def find(self, given: str) -> str | None:
        """The path, or None where no image has this name.

        Raises:
            SplitError: Several images fit equally well.
        """
        if given in self.labels:
            return given
        wanted = [p for p in given.replace("\\", "/").split("/") if p not in {"", "."}]
        if not wanted:
            return None
        candidates = self.by_name.get(wanted[-1], [])
        label = label_of("/".join(wanted))
        if label is not None:
            candidates = [c for c in candidates if self.labels["/".join(c)] == label]
        best = max((_shared(c, wanted) for c in candidates), default=0)
        fits = ["/".join(c) for c in candidates if _shared(c, wanted) == best]
        if len(fits) > 1:
            raise SplitError(f"{given!r} may be {fits[0]!r} or {fits[1]!r}; the list must name more of the path.")
        return fits[0] if fits else None


def _shared(a: Sequence[str], b: Sequence[str]) -> int:
    """How many names two paths share, counted from their ends."""
    n = 0
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if x != y:
            break
        n += 1
    return n


def _leaks(rows: Sequence[IndexRow], part_of: Mapping[str, Part]) -> list[str]:
    parts: dict[str, set[Part]] = defaultdict(set)
    groups: dict[str, set[Part]] = defaultdict(set)
    for r in rows:
        parts[content(r)].add(part_of[r.path])
        if r.group:
            groups[r.group].add(part_of[r.path])
    torn = [sum(len(p) > 1 for p in kind.values()) for kind in (parts, groups)]
    notes = []
    if torn[0]:
        notes.append(f"{torn[0]} groups of identical files stand in more than one part of the published split")
    if torn[1]:
        notes.append(f"{torn[1]} groups of near duplicates stand in more than one part of the published split")
    return notes
