"""The rules of a split, on invented indexes of any kind."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marrowscope.data.split import check_fits, check_split, make_split
from marrowscope.errors import DataError, SplitError
from marrowscope.schema import PARTS, IndexRow, Split

CODES = ("BLA", "EOS", "LYT")


def row(n: int, label: str, sha: str | None = None, status: str = "ok", **more: str) -> IndexRow:
    return IndexRow(f"{label}/{n:05}.jpg", label, 250, 250, 1000, sha or f"{label}{n:061}", status, **more)


def rows_of(**counts: int) -> list[IndexRow]:
    return [row(i, label) for label, n in counts.items() for i in range(n)]


def draw(index: Sequence[IndexRow], codes: Sequence[str] = CODES, **options: Any) -> Split:
    return make_split(index, codes=codes, class_set="test", **options)


def part_of(split: Split) -> dict[str, str]:
    return {r.path: r.part for r in split.rows}


def counts_within_one(split: Split) -> bool:
    totals = Counter(r.label for r in split.rows)
    # Every part gets one image of a class, which with a handful of images is more than its share.
    return all(
        abs(split.counts()[p].get(c, 0) - share * totals[c]) < 1 + 1e-9
        for c in totals
        if totals[c] >= 10
        for p, share in zip(PARTS, split.info.ratios, strict=True)
    )


sizes = st.fixed_dictionaries({c: st.integers(5, 150) for c in CODES})
ratio_lists = st.sampled_from([(0.8, 0.1, 0.1), (0.7, 0.15, 0.15), (0.6, 0.2, 0.2), (0.5, 0.25, 0.25), (0.9, 0.1, 0.0)])
seeds = st.integers(0, 2**63 - 1)


@st.composite
def indexes(draw_: st.DrawFn) -> list[IndexRow]:
    """Indexes with copies (some under two classes), broken files and classes of no concern."""
    rows = rows_of(**draw_(sizes))
    for i, of in enumerate(draw_(st.lists(st.integers(0, 60), max_size=25))):
        original = rows[of % len(rows)]
        label = draw_(st.sampled_from([original.label, "BLA"]))
        rows.append(row(1000 + i, label, sha=original.sha256))
    rows += [row(i, "PMO") for i in range(3)]
    rows += [row(2000 + i, "BLA", status="damaged or truncated: image file") for i in range(2)]
    return rows


@given(sizes=sizes, ratios=ratio_lists, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_disjoint_complete_and_stratified_within_one(sizes: dict[str, int], ratios: Any, seed: int) -> None:
    index = rows_of(**sizes)
    split = draw(index, ratios=ratios, seed=seed)
    assert [r.path for r in split.rows] == sorted(r.path for r in index)
    assert counts_within_one(split)
    assert split.info.counts == split.counts()
    assert split.info.left_out == {}
    for part, share in zip(PARTS, ratios, strict=True):
        assert bool(split.part(part)) == (share > 0)


@given(index=indexes(), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_copies_share_a_part_and_the_rest_is_counted(index: list[IndexRow], seed: int) -> None:
    split = draw(index, seed=seed)
    part = part_of(split)
    parts = defaultdict(set)
    for r in index:
        if r.path in part:
            parts[r.sha256].add(part[r.path])
    assert {len(p) for p in parts.values()} == {1}
    assert split.info.left_out == {"damaged or truncated": 2, "not in the class set": 3}
    assert len(split.rows) == len(index) - 5


@given(index=indexes(), seed=seeds, shuffle=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_order_of_rows_is_irrelevant(index: list[IndexRow], seed: int, shuffle: random.Random) -> None:
    other = list(index)
    shuffle.shuffle(other)
    assert draw(index, seed=seed) == draw(other, seed=seed)


@given(sizes=sizes, more=sizes, ratios=ratio_lists, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_kept_images_never_move_and_counts_stay_within_one(
    sizes: dict[str, int], more: dict[str, int], ratios: Any, seed: int
) -> None:
    old = rows_of(**sizes)
    first = draw(old, ratios=ratios, seed=seed)
    grown = old + [row(5000 + i, c) for c, n in more.items() for i in range(n)]
    second = draw(grown, ratios=ratios, seed=seed, keep=first)
    assert part_of(second).items() >= part_of(first).items()
    assert len(second.rows) == len(grown)
    assert counts_within_one(second)


@st.composite
def grouped(draw_: st.DrawFn, first: int, most: int) -> list[IndexRow]:
    """Up to `most` images of each class, some of them in one of eight groups of any classes."""
    names = st.sampled_from(["", "", *"abcdefgh"])
    column = draw_(st.sampled_from(["group", "slide", "patient"]))
    return [
        row(first + i, c, **{column: draw_(names)}) for c in CODES for i in range(draw_(st.integers(most // 4, most)))
    ]


@given(
    old=grouped(0, 40), new=grouped(5000, 40), ratios=ratio_lists, seed=seeds, rule=st.sampled_from(["quota", "hash"])
)
@settings(max_examples=40, deadline=None)
def test_groups_stay_whole_and_in_their_part_when_images_are_added(
    old: list[IndexRow], new: list[IndexRow], ratios: Any, seed: int, rule: Any
) -> None:
    """Also where images are added to a group; and a class is never further from its share than by its largest group."""
    old += [row(1000 + i, c) for c in CODES for i in range(150)]  # so that by either rule every part has every class
    new = [r._replace(group=r.group or r.slide or r.patient, slide="", patient="") for r in new]
    old = [r._replace(group=r.group or r.slide or r.patient, slide="", patient="") for r in old]
    first = draw(old, ratios=ratios, seed=seed, rule=rule)
    second = draw(old + new, ratios=ratios, seed=seed, rule=rule, keep=first if rule == "quota" else None)
    assert part_of(second).items() >= part_of(first).items()
    for index, split in ((old, first), (old + new, second)):
        part = part_of(split)
        assert sorted(part) == sorted(r.path for r in index)
        parts = defaultdict(set)
        sizes: Counter[tuple[str, str]] = Counter()
        for r in index:
            if r.group:
                parts[r.group].add(part[r.path])
                sizes[r.group, r.label] += 1
        assert all(len(p) == 1 for p in parts.values())
        if rule == "quota" and split is first:
            for c in CODES:
                largest = max((n for (_, label), n in sizes.items() if label == c), default=0)
                total = sum(r.label == c for r in index)
                for p, share in zip(PARTS, split.info.ratios, strict=True):
                    assert abs(split.counts()[p].get(c, 0) - share * total) < 1 + largest


@given(sizes=st.fixed_dictionaries({c: st.integers(200, 300) for c in CODES}), more=sizes, seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_rule_hash_is_stable_by_itself(sizes: dict[str, int], more: dict[str, int], seed: int) -> None:
    old = rows_of(**sizes)
    grown = old + [row(5000 + i, c) for c, n in more.items() for i in range(n)]
    first, second = (draw(i, seed=seed, rule="hash") for i in (old, grown))
    assert part_of(second).items() >= part_of(first).items()


def test_rule_hash_keeps_the_ratios_on_average() -> None:
    counts = draw(rows_of(BLA=20000, EOS=20000), codes=("BLA", "EOS"), rule="hash").counts()
    for part, share in zip(PARTS, (0.8, 0.1, 0.1), strict=True):
        for n in counts[part].values():
            assert abs(n - share * 20000) < 5 * (20000 * share * (1 - share)) ** 0.5


def test_golden_split() -> None:
    """The drawing is a promise: a later version draws the same split from the same index."""
    split = draw(rows_of(BLA=10, EOS=10, LYT=10), seed=7)
    assert [(r.path, r.part) for r in split.rows if r.part != "train"] == GOLDEN


def test_seed_changes_the_split_and_is_recorded() -> None:
    index = rows_of(BLA=50, EOS=50, LYT=50)
    splits = [draw(index, seed=s) for s in range(5)]
    assert len({s.rows for s in splits}) == 5
    assert [s.info.seed for s in splits] == list(range(5))
    assert draw(index, seed=3) == splits[3]


def test_names_do_not_matter() -> None:
    index = rows_of(BLA=50, EOS=50, LYT=50)
    renamed = [r._replace(path="x/" + r.path) for r in index]
    assert {"x/" + p: part for p, part in part_of(draw(index)).items()} == part_of(draw(renamed))


def test_identical_files_under_two_classes_stay_together_and_are_told() -> None:
    index = rows_of(BLA=30, EOS=30, LYT=30)
    index += [row(900 + i, "EOS", sha=f"BLA{i:061}") for i in range(4)]
    split = draw(index)
    part = part_of(split)
    assert all(part[f"BLA/{i:05}.jpg"] == part[f"EOS/{900 + i:05}.jpg"] for i in range(4))
    assert split.info.notes == (
        "8 images stay together in 4 groups",
        "4 groups of identical files carry more than one class",
    )


@pytest.mark.parametrize("column", ["group", "slide", "patient"])
def test_columns_of_the_index_group(column: str) -> None:
    index = [row(i, c, **{column: f"s{i % 20}"}) for c in CODES for i in range(200)]
    part = part_of(draw(index))
    for s in range(20):
        assert len({part[r.path] for r in index if getattr(r, column) == f"s{s}"}) == 1
    assert counts_within_one(draw(index))  # 10 images of each class a group: 16, 2 and 2 groups
    loose = part_of(draw(index, group_by=()))
    assert len({loose[r.path] for r in index if getattr(r, column) == "s2"}) > 1


def test_chains_of_belonging_are_followed() -> None:
    index = rows_of(BLA=50, EOS=50)
    index += [row(100, "BLA", patient="p", slide="1"), row(101, "BLA", slide="1", sha="x"), row(102, "EOS", sha="x")]
    index += [row(103, "EOS", sha="x", group="g"), row(104, "BLA", group="g")]
    part = part_of(draw(index, codes=("BLA", "EOS")))
    assert len({part[r.path] for r in index[100:]}) == 1


def test_large_groups_are_spread_over_the_parts() -> None:
    index = [row(i, c, slide=f"s{i // 30}") for c in CODES for i in range(300)]
    counts = draw(index).counts()
    assert counts == {
        "train": dict.fromkeys(CODES, 240),
        "val": dict.fromkeys(CODES, 30),
        "test": dict.fromkeys(CODES, 30),
    }


def test_cap_draws_the_same_number_per_class() -> None:
    index = rows_of(BLA=100, EOS=60, LYT=80)
    split = draw(index, cap=60)
    assert Counter(r.label for r in split.rows) == dict.fromkeys(CODES, 60)
    assert split.counts() == {
        "train": dict.fromkeys(CODES, 48),
        "val": dict.fromkeys(CODES, 6),
        "test": dict.fromkeys(CODES, 6),
    }
    assert split.info.left_out == {"over the cap": 60}
    assert split.info.cap == 60
    smaller = {r.path for r in draw(index, cap=20).rows}
    assert smaller <= {r.path for r in split.rows}


def test_cap_with_a_class_that_has_fewer_is_an_error() -> None:
    with pytest.raises(SplitError, match=r"fewer of EOS 60, LYT 80\. The largest cap possible is 60"):
        draw(rows_of(BLA=100, EOS=60, LYT=80), cap=90)


def test_cap_keeps_what_is_kept() -> None:
    old = rows_of(BLA=40, EOS=40, LYT=40)
    first = draw(old, cap=30)
    grown = old + [row(500 + i, c) for c in CODES for i in range(40)]
    second = draw(grown, cap=50, keep=first)
    assert part_of(second).items() >= part_of(first).items()
    with pytest.raises(SplitError, match="30 images of a class; the cap can't be below"):
        draw(grown, cap=20, keep=first)


def test_shots_thin_out_train_only() -> None:
    index = rows_of(BLA=100, EOS=60, LYT=80)
    whole, five, ten = draw(index), draw(index, shots=5), draw(index, shots=10)
    assert five.counts()["train"] == dict.fromkeys(CODES, 5)
    assert five.part("val") == whole.part("val")
    assert five.part("test") == whole.part("test")
    assert {r.path for r in five.rows} < {r.path for r in ten.rows} < {r.path for r in whole.rows}
    assert five.info.shots == 5
    assert five.info.left_out == {"over the shots": 192 - 15}
    with pytest.raises(SplitError, match="there are EOS 48"):
        draw(index, shots=50)
    with pytest.raises(SplitError, match="1 or more"):
        draw(index, shots=0)


def test_shots_take_no_copies_while_there_are_others() -> None:
    index = [row(i, c, sha=f"{c}{i // 2}") for c in CODES for i in range(100)]
    split = draw(index, shots=30)
    sha = {r.path: r.sha256 for r in index}
    assert len({sha[r.path] for r in split.part("train")}) == 90


def test_kept_split_that_lost_images_or_tears_groups() -> None:
    index = rows_of(BLA=50, EOS=50, LYT=50)
    first = draw(index)
    second = draw(index[10:], keep=first)
    assert part_of(first).items() >= part_of(second).items()
    assert "140 images keep the part of the earlier split; 10 of that are not here now" in second.info.notes
    a, b = first.part("train")[0].path, first.part("test")[0].path
    torn = [r._replace(group="g") if r.path in {a, b} else r for r in index]
    with pytest.raises(SplitError, match="belong together stand in different parts"):
        draw(torn, keep=first)


def test_small_classes_reach_every_part() -> None:
    split = draw(rows_of(BLA=3, EOS=8, LYT=5))
    assert split.counts() == {
        "train": {"BLA": 1, "EOS": 6, "LYT": 3},
        "val": {"BLA": 1, "EOS": 1, "LYT": 1},
        "test": {"BLA": 1, "EOS": 1, "LYT": 1},
    }


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ratios": (0.8, 0.1, 0.2)}, "sum to 1"),
        ({"ratios": (1.1, -0.1, 0.0)}, "0 or more"),
        ({"ratios": (float("nan"), 0.5, 0.5)}, "0 or more"),
        ({"ratios": (0.5, 0.5)}, "three numbers"),
        ({"cap": 0}, "1 or more"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"codes": ("BLA",)}, "two different classes"),
        ({"codes": ("BLA", "BLA")}, "two different classes"),
        ({"codes": ("BLA", "PMO", "ART")}, "No usable image of PMO ART.*BLA 20"),
        ({"rule": "shuffle"}, "quota, hash"),
        ({"group_by": ("hospital",)}, "group, slide, patient"),
        ({"index": []}, "No usable image of BLA EOS LYT.*none"),
        ({"index": rows_of(BLA=20, EOS=2, LYT=1)}, "3 parts one: EOS 2, LYT 1"),
        ({"index": [*rows_of(BLA=20, EOS=20, LYT=20), row(0, "BLA")]}, "'BLA/00000.jpg' twice"),
        ({"index": [row(i, c, slide="one") for c in CODES for i in range(20)]}, "without a class: val has no BLA"),
    ],
)
def test_what_is_not_allowed(options: dict[str, Any], match: str) -> None:
    with pytest.raises(SplitError, match=match):
        draw(**{"index": rows_of(BLA=20, EOS=20, LYT=20), **options})


def test_ratio_of_zero_leaves_a_part_empty() -> None:
    split = draw(rows_of(BLA=3, EOS=30, LYT=30), ratios=(0.0, 0.0, 1.0))
    assert {r.part for r in split.rows} == {"test"}


def test_split_survives_its_file(tmp_path: Path) -> None:
    split = draw([*rows_of(BLA=30, EOS=30, LYT=30), row(1, "PMO")], cap=20, shots=4)
    split.write(tmp_path / "split.csv")
    assert (tmp_path / "split.csv").read_text().splitlines()[0] == "path,label,part"
    assert Split.read(tmp_path / "split.csv") == split


def test_check_split_names_missing_files(tmp_path: Path) -> None:
    split = draw(rows_of(BLA=10, EOS=10, LYT=10))
    for r in split.rows:
        (tmp_path / r.path).parent.mkdir(exist_ok=True)
        (tmp_path / r.path).touch()
    check_split(split, tmp_path)
    (tmp_path / "EOS/00003.jpg").unlink()
    with pytest.raises(SplitError, match=r"1 of the 30 files .*'EOS/00003.jpg'\. Give"):
        check_split(split, tmp_path)
    for i in range(10):
        (tmp_path / f"BLA/{i:05}.jpg").unlink()
    with pytest.raises(SplitError, match=r"11 of the 30 .*'BLA/00004.jpg' and 6 more"):
        check_split(split, tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        check_split(split, tmp_path / "nowhere")


def test_check_fits() -> None:
    index = rows_of(BLA=20, EOS=20, LYT=20)
    split = draw(index)
    check_fits(split, index)
    check_fits(split, index[::-1])
    with pytest.raises(SplitError, match="not in the index"):
        check_fits(split, index[1:])
    with pytest.raises(SplitError, match="another class"):
        check_fits(split, [index[0]._replace(label="EOS"), *index[1:]])
    with pytest.raises(SplitError, match="not the one that the split was drawn from"):
        check_fits(split, [*index, row(77, "BLA")])


GOLDEN = [
    ("BLA/00003.jpg", "val"),
    ("BLA/00006.jpg", "test"),
    ("EOS/00005.jpg", "val"),
    ("EOS/00006.jpg", "test"),
    ("LYT/00001.jpg", "val"),
    ("LYT/00002.jpg", "test"),
]
