"""Cross-validation folds, and splits of other people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marrowscope.data.folds import fold_split, make_folds
from marrowscope.data.published import import_split, read_path_list
from marrowscope.errors import FileFormatError, SplitError
from marrowscope.schema import IndexRow, Part, Split

CODES = ("BLA", "EOS", "LYT")


def row(n: int, label: str, sha: str | None = None, **more: str) -> IndexRow:
    return IndexRow(f"{label}/0-99/{label}_{n:05}.jpg", label, 250, 250, 1000, sha or f"{label}{n}", "ok", **more)


def rows_of(**counts: int) -> list[IndexRow]:
    return [row(i, label) for label, n in counts.items() for i in range(n)]


def draw(index: Sequence[IndexRow], **options: Any) -> list[Split]:
    return make_folds(index, codes=CODES, class_set="test", **options)


sizes = st.fixed_dictionaries({c: st.integers(10, 80) for c in CODES})


@given(sizes=sizes, more=sizes, k=st.integers(3, 10), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_folds_hold_out_every_image_once_and_are_even_and_stable(
    sizes: dict[str, int], more: dict[str, int], k: int, seed: int
) -> None:
    old = rows_of(**sizes)
    grown = old + [row(1000 + i, c) for c, n in more.items() for i in range(n)]
    first = draw(old, k=k, seed=seed)
    second = draw(grown, k=k, seed=seed, keep=first)
    for index, (split,) in ((old, first), (grown, second)):
        assert [r.path for r in split.rows] == sorted(r.path for r in index)
        per_class: dict[str, Counter[int | None]] = defaultdict(Counter)
        for r in split.rows:
            per_class[r.label][r.fold] += 1
        for counts in per_class.values():
            assert set(counts) == set(range(k))
            assert max(counts.values()) - min(counts.values()) <= 1
        held_out = [r.path for f in range(k) for r in fold_split(split, f).part("test")]
        assert sorted(held_out) == sorted(r.path for r in index)
    assert {(r.path, r.fold) for r in first[0].rows} <= {(r.path, r.fold) for r in second[0].rows}


def test_parts_of_a_fold() -> None:
    (split,) = draw(rows_of(BLA=20, EOS=20, LYT=20), k=4)
    for f in range(4):
        turned = fold_split(split, f)
        assert {r.part for r in turned.rows if r.fold == f} == {"test"}
        assert {r.part for r in turned.rows if r.fold == (f + 1) % 4} == {"val"}
        assert turned.counts() == turned.info.counts
        assert turned.counts()["train"] == dict.fromkeys(CODES, 10)
    assert fold_split(split, 0) == split


def test_repeats_are_independent_and_each_can_be_drawn_alone() -> None:
    index = rows_of(BLA=30, EOS=30, LYT=30)
    a, b, c = draw(index, repeats=3, seed=5)
    assert len({s.rows for s in (a, b, c)}) == 3
    assert draw(index, seed=6)[0].rows == b.rows
    assert c.info.notes == ("repetition 3 of 3",)


def test_copies_and_groups_share_a_fold_and_cap_holds() -> None:
    index = [row(i, c, sha=f"{c}{i // 2}", group=str(i // 6)) for c in CODES for i in range(120)]
    (split,) = draw(index)
    fold = {r.path: r.fold for r in split.rows}
    for g in range(20):
        assert len({fold[r.path] for r in index if r.group == str(g)}) == 1
    (small,) = draw(index, cap=40)
    assert Counter(r.label for r in small.rows) == dict.fromkeys(CODES, 40)
    assert small.info.left_out == {"over the cap": 240}


def test_folds_survive_their_file(tmp_path: Path) -> None:
    (split,) = draw(rows_of(BLA=20, EOS=20, LYT=20))
    split.write(tmp_path / "split.csv")
    assert (tmp_path / "split.csv").read_text().startswith("path,label,part,fold\n")
    assert Split.read(tmp_path / "split.csv") == split
    turned = fold_split(split, 3)
    turned.write(tmp_path / "split3.csv")
    assert Split.read(tmp_path / "split3.csv") == turned
    text = (tmp_path / "split.csv").read_text()
    for bad, match in [("0-9", "whole number"), ("", "folds differ"), ("9", "folds differ")]:
        line = text.splitlines()[1]
        (tmp_path / "split.csv").write_text(text.replace(line, line.rpartition(",")[0] + "," + bad))
        with pytest.raises(FileFormatError, match=match):
            Split.read(tmp_path / "split.csv")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"k": 2}, "3 folds or more"),
        ({"repeats": 0}, "repetitions"),
        ({"k": 21}, "each of the 21 folds one: BLA 20"),
        ({"seed": 2**63 - 1, "repeats": 2}, "seed"),
        ({"group_by": ("x",)}, "group, slide, patient"),
        ({"cap": 21}, "fewer of"),
    ],
)
def test_what_is_not_allowed(options: dict[str, Any], match: str) -> None:
    with pytest.raises(SplitError, match=match):
        draw(rows_of(BLA=20, EOS=20, LYT=20), **options)


def test_keep_must_fit() -> None:
    index = rows_of(BLA=20, EOS=20, LYT=20)
    first = draw(index, k=4)
    with pytest.raises(SplitError, match="must be 1, one a repetition, of 5 folds"):
        draw(index, k=5, keep=first)
    torn = [r._replace(group="g") for r in index]
    with pytest.raises(SplitError, match="different folds"):
        draw(torn, k=4, keep=first)
    with pytest.raises(SplitError, match="no fold 4; the split has folds 0 to 3"):
        fold_split(first[0], 4)


# ----------------------------------------------------------------------------------------------- published splits


def take(index: Sequence[IndexRow], lists: dict[Part, list[str]]) -> Split:
    return import_split(index, lists, codes=CODES, class_set="test", origin="a paper")


def test_import_by_full_path_longer_path_or_name(tmp_path: Path) -> None:
    index = rows_of(BLA=3, EOS=3, LYT=3)
    lists: dict[Part, list[str]] = {
        "train": ["BLA/0-99/BLA_00000.jpg", "./data/BLA/0-99/BLA_00001.jpg", "EOS_00000.jpg", "LYT/LYT_00000.jpg"],
        "test": ["BLA_00002.jpg", "C:\\data\\EOS\\EOS_00001.jpg", "/abs/LYT_00002.jpg"],
    }
    split = take(index, lists)
    assert [(r.path[9:], r.part) for r in split.rows] == [
        ("BLA_00000.jpg", "train"),
        ("BLA_00001.jpg", "train"),
        ("BLA_00002.jpg", "test"),
        ("EOS_00000.jpg", "train"),
        ("EOS_00001.jpg", "test"),
        ("LYT_00000.jpg", "train"),
        ("LYT_00002.jpg", "test"),
    ]
    assert split.info.left_out == {"in no list": 2}
    assert split.info.rule == "taken over from lists of paths: a paper"
    assert split.info.notes == ()
    split.write(tmp_path / "split.csv")
    assert Split.read(tmp_path / "split.csv") == split


def test_import_tells_leaks() -> None:
    index = [row(i, c, sha=f"{c}{i // 2}", group="g" if i < 2 else "") for c in CODES for i in range(4)]
    lists: dict[Part, list[str]] = {
        "train": [r.path for r in index if r.path[-5] in "02"],
        "val": [r.path for r in index if r.path[-5] == "1"],
        "test": [r.path for r in index if r.path[-5] == "3"],
    }
    assert take(index, lists).info.notes == (
        "6 groups of identical files stand in more than one part of the published split",
        "1 groups of near duplicates stand in more than one part of the published split",
    )


def test_import_refuses_what_it_cannot_tell() -> None:
    index = [*rows_of(BLA=3, EOS=3, LYT=3), row(0, "BLA")._replace(path="other/BLA_00000.jpg")]
    with pytest.raises(SplitError, match=r"6 of the listed images are not in the index: 'a0.jpg', .* and 1 more"):
        take(index, {"train": [f"a{i}.jpg" for i in range(6)]})
    with pytest.raises(SplitError, match=r"may be 'BLA/0-99/BLA_00000.jpg' or 'other/BLA_00000.jpg'"):
        take(index, {"train": ["BLA_00000.jpg"]})
    with pytest.raises(SplitError, match=r"not in the index: 'EOS/BLA_00001.jpg'"):
        take(index, {"train": ["EOS/BLA_00001.jpg"]})
    with pytest.raises(SplitError, match="both train and test"):
        take(index, {"train": ["BLA_00001.jpg"], "test": ["BLA/BLA_00001.jpg"]})
    with pytest.raises(SplitError, match="No usable image of EOS LYT"):
        take(index, {"train": ["BLA_00001.jpg"]})
    with pytest.raises(SplitError, match="1 of the listed"):
        take(index, {"train": ["./"]})


def test_read_path_list(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeff# a comment\r\nBLA/a.jpg\r\n\r\n  клетка.jpg \n".encode() + b"\xff.jpg")
    assert read_path_list(file) == ["BLA/a.jpg", "клетка.jpg", "\udcff.jpg"]
    for data, match in [(b"", "holds no path"), (b"#x\n", "holds no path"), (b"\x89PNG\0\0", "no text")]:
        file.write_bytes(data)
        with pytest.raises(FileFormatError, match=match):
            read_path_list(file)
    with pytest.raises(FileFormatError, match="No such file"):
        read_path_list(tmp_path / "none.txt")
