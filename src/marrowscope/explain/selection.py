"""Which pictures of a part are explained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from marrowscope.files import UNDECODABLE, UTF8
from marrowscope.schema import SplitRow


def some_of_each(rows: Sequence[SplitRow], n: int, seed: int) -> list[SplitRow]:
    """`n` of the rows, the same number of each class as nearly as can be; further rows change few of them."""

    def key(row: SplitRow) -> bytes:
        return hashlib.sha256(f"{seed}\0{row.path}".encode(UTF8, UNDECODABLE)).digest()

    by_class: dict[str, list[SplitRow]] = {}
    for row in sorted(rows, key=key):
        by_class.setdefault(row.label, []).append(row)
    turns = sorted((place, code) for code, members in by_class.items() for place in range(len(members)))
    return [by_class[code][place] for place, code in turns[:n]]
