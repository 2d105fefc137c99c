"""The audit finds what was planted, and little else."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

import marrowscope.data.audit as audit_module
from marrowscope.data import _neighbours
from marrowscope.data._features import FeatureStore, describe, grey_thumb
from marrowscope.data.audit import Audit, robust_deviation, run_audit
from marrowscope.data.index import build_index
from marrowscope.data.phantom import draw
from marrowscope.data.split import make_split
from marrowscope.errors import DataError, OutputError
from marrowscope.schema import OK, IndexRow, Predictions

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def shifted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """By 2 to 10 % of the side; what comes in is mirrored content, the edge's colour, or white."""
    pixels = np.asarray(image)
    dx, dy = (int(v) for v in rng.choice([-1, 1], 2) * rng.integers(5, 26, 2))
    how = [{"mode": "reflect"}, {"mode": "edge"}, {"mode": "constant", "constant_values": 255}][rng.integers(3)]
    padded = np.pad(pixels, ((25, 25), (25, 25), (0, 0)), **how)
    h, w = pixels.shape[:2]
    return Image.fromarray(np.ascontiguousarray(padded[25 + dy : 25 + dy + h, 25 + dx : 25 + dx + w]))


def turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    t = Image.Transpose
    return image.transpose([t.ROTATE_90, t.ROTATE_180, t.ROTATE_270][rng.integers(3)])


def mirrored(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    t = Image.Transpose
    return image.transpose([t.FLIP_LEFT_RIGHT, t.FLIP_TOP_BOTTOM, t.TRANSPOSE, t.TRANSVERSE][rng.integers(4)])


def recompressed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(40, 90)))
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def rebrightened(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.75, 1.2))
    return ImageEnhance.Contrast(image).enhance(rng.uniform(0.75, 1.25))


def resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = int(rng.integers(180, 360))
    return image.resize((side, side), Image.Resampling.BICUBIC)


def everything(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for change in (shifted, [turned, mirrored][rng.integers(2)], rebrightened, recompressed):
        image = change(image, rng)
    return image


CHANGES: tuple[Change, ...] = (shifted, turned, mirrored, recompressed, rebrightened, resized, everything)


def plant(originals: Sequence[tuple[str, Image.Image]], root: Path, per_change: int) -> tuple[set[str], dict[str, str]]:
    """Write a collection with copies; return the paths of exact copies, and of near ones with their originals."""
    rng = np.random.default_rng(0)
    for name, image in originals:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name, quality=95, subsampling=0)
    exact: set[str] = set()
    near: dict[str, str] = {}
    for change in CHANGES:
        for k in rng.choice(len(originals), per_change, replace=False):
            name, image = originals[k]
            path = f"{name.partition('/')[0]}/{change.__name__}_{k:05}.jpg"
            change(image, rng).save(root / path, quality=92)
            near[path] = name
    for k in rng.choice(len(originals), 2 * per_change, replace=False):
        name = originals[k][0]
        path = f"{name.partition('/')[0]}/exact_{k:05}.jpg"
        (root / path).write_bytes((root / name).read_bytes())
        exact.add(path)
    return exact, near


def check_planted(audit: Audit, exact: set[str], near: dict[str, str], originals: set[str]) -> None:
    found_exact = {r.path for r in audit.exact} - originals
    assert len(found_exact & exact) >= 0.99 * len(exact)
    assert len(found_exact - exact) < 0.01 * len(exact)
    group = audit.groups
    right = sum(p in group and group[p] == group.get(o) for p, o in near.items())
    assert right >= 0.95 * len(near)
    true = sum(near.get(r.path, r.path) == near.get(r.other_path, r.other_path) for r in audit.near)
    assert len(audit.near) - true < 0.01 * len(audit.near)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str], dict[str, str], set[str]]:
    root = tmp_path_factory.mktemp("planted")
    codes = ("BLA", "LYT", "EOS", "NGS", "MON")
    originals = [(f"{c}/{c}_{i:05}.jpg", Image.fromarray(draw(c, 1, i).image)) for c in codes for i in range(12)]
    return root, *plant(originals, root, 12), {name for name, _ in originals}


def test_planted_copies_are_found(phantoms: tuple[Path, set[str], dict[str, str], set[str]]) -> None:
    root, exact, near, originals = phantoms
    index = build_index(root)
    audit = run_audit(root, index)
    check_planted(audit, exact, near, originals)
    assert audit.broken == audit.conflicts == ()
    grouped = audit.grouped(index)
    split = make_split(grouped, codes=("BLA", "LYT", "EOS", "NGS", "MON"), class_set="test")
    part = {r.path: r.part for r in split.rows}
    assert all(part[a] == part[b] for a, b in near.items() if audit.groups.get(a) == audit.groups.get(b, "?"))


@pytest.mark.real
@pytest.mark.slow
def test_planted_copies_of_real_cells_are_found(tmp_path: Path) -> None:
    where = os.environ.get("MARROWSCOPE_DATA")
    if not where:
        pytest.skip("MARROWSCOPE_DATA is not set")
    paths = sorted(Path(where).rglob("*.jpg"))[::12]
    originals = [(f"BLA/{p.name}", Image.open(p).convert("RGB")) for p in paths]
    exact, near = plant(originals, tmp_path, 40)
    audit = run_audit(tmp_path, build_index(tmp_path))
    check_planted(audit, exact, near, {name for name, _ in originals})


# ------------------------------------------------------------------------------------------------- other findings


def noise(seed: int, side: int = 48) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(90, 170, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Forty pictures of different noise in two classes."""
    for i in range(40):
        path = tmp_path / "data" / ("BLA" if i % 2 else "LYT") / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(path)
    return tmp_path / "data"


def test_nothing_is_found_where_nothing_is(small: Path) -> None:
    audit = run_audit(small, build_index(small))
    assert audit.summary() | {"images": 0} == dict.fromkeys(audit.summary(), 0)
    assert audit.groups == {}


def test_label_errors_are_in_the_tables_and_on_the_page(small: Path, tmp_path: Path) -> None:
    index = build_index(small)
    sure = np.array([[0.9, 0.1] if r.label == "BLA" else [0.1, 0.9] for r in index])
    sure[3] = sure[3][::-1]
    predictions = Predictions(tuple(r.path for r in index), (OK,) * len(index), ("BLA", "LYT"), sure)
    audit = run_audit(small, index, predictions=predictions)
    audit.write(tmp_path / "audit", small)
    assert audit.summary()["probable label errors"] == 1
    assert (tmp_path / "audit/label_errors.csv").read_text().splitlines()[1] == "BLA/007.png,BLA,LYT,0.1,0.9,0.8"
    assert "BLA 0.10, LYT 0.90" in (tmp_path / "audit/index.html").read_text()


def test_page_escapes_names(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>&'\".png"
    (tmp_path / "data/BLA").mkdir(parents=True)
    for i in range(2):
        noise(1).save(tmp_path / "data/BLA" / f"{i}{name.replace('/', '')}")
    run_audit(tmp_path / "data", build_index(tmp_path / "data")).write(tmp_path / "audit", tmp_path / "data")
    assert "<script" not in (tmp_path / "audit/index.html").read_text()


def test_broken_conflicting_and_odd_pictures(small: Path, tmp_path: Path) -> None:
    (small / "BLA/cut.png").write_bytes((small / "BLA/001.png").read_bytes()[:500])
    (small / "LYT/same.png").write_bytes((small / "BLA/003.png").read_bytes())
    noise(5).transpose(Image.Transpose.ROTATE_90).save(small / "LYT/turned.png")
    noise(100, 60).save(small / "BLA/large.png")
    Image.fromarray(np.asarray(noise(101)) // 4).save(small / "BLA/dark.png")
    index = build_index(small)
    audit = run_audit(small, index, threshold=8)
    assert [(r.path, r.label) for r in audit.broken] == [("BLA/cut.png", "BLA")]
    assert [r.path for r in audit.exact] == ["BLA/003.png", "LYT/same.png"]
    assert [(r.path, r.other_path, r.score > 0.99) for r in audit.near] in (
        [("BLA/005.png", "LYT/turned.png", True)],
        [("LYT/turned.png", "BLA/005.png", True)],
    )
    assert {(r.path, r.kind) for r in audit.conflicts} == {
        ("BLA/003.png", "exact"),
        ("LYT/same.png", "exact"),
        ("BLA/005.png", "near"),
        ("LYT/turned.png", "near"),
    }
    odd = {(r.path, r.measure) for r in audit.outliers}
    assert {("BLA/large.png", "size"), ("BLA/dark.png", "brightness")} <= odd
    assert {p for p, _ in odd} <= {"BLA/large.png", "BLA/dark.png"}
    audit.write(tmp_path / "audit")
    names = {p.name for p in (tmp_path / "audit").iterdir()}
    tables = ("broken", "exact_duplicates", "label_conflicts", "near_duplicates", "outliers", "summary")
    assert names == {f"{n}.csv" for n in tables}
    with (tmp_path / "audit/near_duplicates.csv").open(newline="") as f:
        (near,) = csv.DictReader(f)
    assert near["transform"] in {"turned 90", "turned 270"}
    (small / "LYT/same.png").unlink()
    audit.write(tmp_path / "audit", small)
    page = (tmp_path / "audit/index.html").read_text()
    assert page.count("<img ") == 2 + 3 + 1 + len(audit.outliers)  # one of two in conflict is gone
    assert page.count('class="none"') == 1
    assert "BLA/cut.png: damaged" in page
    grouped = {r.path: r.group for r in audit.grouped(index)}
    assert grouped["BLA/003.png"] == grouped["LYT/same.png"] != grouped["BLA/005.png"] == grouped["LYT/turned.png"]
    assert grouped["BLA/001.png"] == ""


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_collections(tmp_path: Path, n: int) -> None:
    index = []
    for i in range(n):
        path = tmp_path / "BLA" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20 + i, 30), "white").save(path)
    if n:
        index = build_index(tmp_path)
    audit = run_audit(tmp_path, index)
    assert audit.images == n
    assert audit.near == ()


def test_audit_goes_on_where_it_stopped_and_counts_progress(small: Path, tmp_path: Path) -> None:
    index, cache = build_index(small), tmp_path / "cache"

    def stop(stage: str, done: int, total: int) -> None:
        assert stage == "measure"
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_audit(small, index, cache=cache, progress=stop, jobs=1)
    with cache.open("ab") as f:
        f.write(b"half a record")
    seen: list[tuple[str, int, int]] = []
    first = run_audit(small, index, cache=cache, progress=lambda *a: seen.append(a), jobs=1)
    assert seen[0] == ("measure", 40, 40)
    assert seen[-1][0] == "compare candidates"
    assert seen[-1][1] == seen[-1][2]
    for p in small.rglob("*.png"):
        p.unlink()
    assert run_audit(small, index, cache=cache) == first
    cache.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"now can't .missing"):
        run_audit(small, index, cache=cache)
    with pytest.raises(OutputError, match="working file"):
        run_audit(small, index, cache=tmp_path)


def test_comparing_goes_on_where_it_stopped(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(5).transpose(Image.Transpose.ROTATE_90).save(small / "LYT/turned.png")
    index, cache, journal = build_index(small), tmp_path / "cache", tmp_path / "cache.pairs"
    fresh = run_audit(small, index)
    assert len(fresh.near) == 1

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "compare candidates" and done:
            assert done < total
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_audit(small, index, cache=cache, progress=stop, jobs=1)
    with journal.open("ab") as f:
        f.write(b"[32, [[3, 4, [0.9")  # killed while writing
    compared: list[int] = []
    found: list[int] = []
    match, nearest = audit_module.match, audit_module.nearest
    monkeypatch.setattr(audit_module, "match", lambda a, b: (compared.append(a.shape[0]), match(a, b))[1])
    monkeypatch.setattr(audit_module, "nearest", lambda *a, **k: (found.append(1), nearest(*a, **k))[1])
    assert run_audit(small, index, cache=cache) == fresh
    assert 0 < compared.count(32) < 41 - 16, "all was compared again"
    assert found == []
    compared.clear()
    assert run_audit(small, index, cache=cache) == fresh
    assert compared == []
    whole = journal.read_bytes()
    for damage in (b"", b"{}\n", whole[:300], whole[:200] + b"\0\0" + whole[202:], whole.replace(b'"key"', b'"kee"')):
        journal.write_bytes(damage)
        found.clear()
        assert run_audit(small, index, cache=cache) == fresh
        assert found == [1]
    (small / "LYT/turned.png").unlink()
    found.clear()
    assert run_audit(small, build_index(small), cache=cache).near == ()
    assert found == [1]
    journal.unlink()
    journal.mkdir()
    with pytest.raises(OutputError, match="working file"):
        run_audit(small, index[:-1], cache=cache)


def test_store_keeps_records(tmp_path: Path) -> None:
    row = IndexRow("a", "BLA", 1, 1, 1, "ab" * 32, OK)
    buffer = io.BytesIO()
    noise(1).save(buffer, "PNG")
    from marrowscope.data._features import measure

    with FeatureStore(tmp_path / "cache") as store:
        store.add(measure(buffer.getvalue(), row.sha256))
        store.flush()
    with FeatureStore(tmp_path / "cache") as store:
        assert (store.get(row.sha256)["thumb"] == grey_thumb(np.asarray(noise(1)), 64)).all()
        stats, vectors, thumbs = store.load([row.sha256])
    assert stats.shape == (1, 6)
    assert vectors.shape[0] == 1
    assert thumbs.shape == (1, 32, 32)


# ----------------------------------------------------------------------------------------------------------- parts


def test_descriptor_does_not_change_under_turns_and_mirrors() -> None:
    thumb = grey_thumb(np.asarray(noise(3)), 64)
    want = describe(thumb)
    for changed in _neighbours.dihedral(thumb):
        np.testing.assert_allclose(describe(np.ascontiguousarray(changed)), want, atol=1e-4)
    assert np.abs(describe(grey_thumb(np.asarray(noise(4)), 64)) - want).max() > 0.1


def test_nearest_is_exact_whatever_the_blocks() -> None:
    points = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    distance = ((points[:, None] - points[None]) ** 2).sum(2)
    np.fill_diagonal(distance, np.inf)
    want = {tuple(sorted((i, int(j)))) for i in range(200) for j in np.argsort(distance[i])[:3]}
    for rows, columns in [(1000, 1000), (7, 13), (64, 2), (200, 200)]:
        pairs = _neighbours.nearest(points, 3, rows, columns)
        assert {(int(a), int(b)) for a, b in pairs} == want


@pytest.mark.parametrize("transform", range(8))
@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (5, -9), (-16, 16)])
def test_match_finds_transform_and_shift(transform: int, dy: int, dx: int) -> None:
    scene = np.random.default_rng(1).integers(0, 256, (24, 24), dtype=np.uint8)
    big = np.asarray(Image.fromarray(scene).resize((192, 192), Image.Resampling.BICUBIC))
    a, b = big[64:128, 64:128], big[64 - dy : 128 - dy, 64 - dx : 128 - dx]
    inverse = [0, 1, 6, 3, 4, 5, 2, 7][transform]  # only the quarter turns are not their own
    turned_a = _neighbours.dihedral(a)[inverse]
    found = _neighbours.match(turned_a, np.stack([b, big[:64, 128:]]))
    assert found[0][1:] == (transform, dy, dx)
    assert found[0].score > 0.95
    assert found[1].score < 0.8


def test_robust_deviation() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(10, 2, 20001), [30.0]])
    median, deviation = robust_deviation(values)
    assert median == pytest.approx(10, abs=0.1)
    assert deviation[-1] == pytest.approx(10, abs=0.3)
    assert robust_deviation(np.full(5, 7.0))[1].tolist() == [0] * 5


def test_connected() -> None:
    assert _neighbours.connected([("b", "c"), ("d", "c"), ("x", "y"), ("a", "d")]) == {
        **dict.fromkeys("abcd", "a"),
        **dict.fromkeys("xy", "x"),
    }
