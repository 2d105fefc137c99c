"""What a model card says about trust reaches the answers, the tables and the averages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from PIL import Image

from marrowscope import images
from marrowscope.errors import FileFormatError, ModelError
from marrowscope.infer import Classifier, Ensemble, load_predictor, predict_files, predict_to_predictions
from marrowscope.schema import Card, CardAcceptance, CardConformal, CardNovelty, CardScaling, Predictions
from tiny_onnx import CODES, card, graph, logits

RNG = np.random.default_rng(8)
SCALING = CardScaling(method="vector", scale=(0.5, 0.4, 0.6, 0.5), bias=(0.1, -0.2, 0.0, 0.3), fitted_on=40)
CONFORMAL = tuple(
    CardConformal(method="class-conditional", alpha=a, thresholds=(0.2 * a, 4 * a, 6 * a, 5 * a), fitted_on=40)
    for a in (0.05, 0.1)
)
ACCEPTANCE = (
    CardAcceptance(accuracy=0.95, threshold=0.5, coverage=0.6, fitted_on=40),
    CardAcceptance(accuracy=0.99, threshold=0.8, coverage=0.2, fitted_on=40),
)
NOVELTY = CardNovelty(method="knn", threshold=0.5, kept=0.95, fitted_on=40)


def full_card(**changes: object) -> Card:
    values = {"scaling": SCALING, "conformal": CONFORMAL, "novelty": NOVELTY, "acceptance": ACCEPTANCE}
    return card().model_copy(update={**values, **changes})


def full_model(path: Path, model_card: Card | None = None, drop: tuple[str, ...] = (), seed: int = 0) -> Path:
    """A model with the outputs `ood_score` (the red channel, normalised) and `features` (all three)."""
    model = graph(seed=seed)
    index = helper.make_tensor("red", onnx.TensorProto.INT64, [], [0])
    model.graph.initializer.append(index)
    model.graph.node.append(helper.make_node("Gather", ["n", "red"], ["ood_score"], axis=1))
    model.graph.node.append(helper.make_node("Identity", ["n"], ["features"]))
    for name, shape in (("ood_score", ["N"]), ("features", ["N", 3])):
        if name not in drop:
            model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    helper.set_model_props(model, {"marrowscope.card": (model_card or full_card()).model_dump_json()})
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_model(tmp_path_factory.mktemp("model") / "full.onnx")


@pytest.fixture(scope="module")
def model(path: Path) -> Classifier:
    return Classifier.load(path, threads=1)


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint8]:
    return np.clip(RNG.integers(0, 240, (40, 1, 1, 3)) + RNG.integers(0, 16, (40, 32, 32, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory, pixels: npt.NDArray[np.uint8]) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    for i, p in enumerate(pixels):
        Image.fromarray(p).save(folder / f"{i:02}.png")
    (folder / "05b.png").write_text("text")
    return folder


def expected(pixels_NHWC: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Calibrated probabilities and scores, in float64."""
    prepared = np.stack([images.prepare(p, card().preprocessing) for p in pixels_NHWC])
    raw = logits(prepared)
    z = (raw - np.log(np.exp(raw).sum(1, keepdims=True))) * SCALING.scale + SCALING.bias
    e = np.exp(z)
    spec = card().preprocessing
    return e / e.sum(1, keepdims=True), (prepared[..., 0].mean((1, 2)) / 255 - spec.mean[0]) / spec.std[0]


def test_answers_follow_the_card(model: Classifier, pixels: npt.NDArray[np.uint8]) -> None:
    probs, score = expected(pixels)
    got = model.predict_answers(pixels)
    np.testing.assert_allclose(got.probs_NC, probs, atol=1e-6)
    assert got.sets_NC is not None
    assert got.ood_score_N is not None
    assert got.ood_N is not None
    assert got.accepted_N is not None
    np.testing.assert_array_equal(got.sets_NC, probs >= np.array([0.01, 0.2, 0.3, 0.25]))
    np.testing.assert_allclose(got.ood_score_N, score, atol=1e-5)
    np.testing.assert_array_equal(got.ood_N, score > 0.5)
    np.testing.assert_array_equal(got.accepted_N, (probs.max(1) >= 0.5) & (score <= 0.5))
    assert 0 < got.ood_N.sum() < 40
    assert 0 < got.accepted_N.sum() < 40 - got.ood_N.sum()
    np.testing.assert_array_equal(model.predict_proba(pixels), got.probs_NC)
    np.testing.assert_array_equal(model.probabilities(pixels), model.predict_proba(pixels))


def test_one_by_one_is_as_together(model: Classifier, pixels: npt.NDArray[np.uint8]) -> None:
    together = model.predict_answers(pixels)
    for i in (0, 7, 39):
        one = model.predict_answers(pixels[i])
        for name in ("probs_NC", "sets_NC", "ood_score_N", "ood_N", "accepted_N"):
            np.testing.assert_allclose(getattr(one, name)[0], getattr(together, name)[i], atol=1e-6)


def test_no_picture_has_the_same_columns(model: Classifier) -> None:
    none = model.predict_answers([])
    assert len(none) == 0
    assert all(v is not None for v in (none.sets_NC, none.ood_score_N, none.ood_N, none.accepted_N))


def test_alpha_and_accuracy_choose_out_of_the_card(
    path: Path, model: Classifier, pixels: npt.NDArray[np.uint8]
) -> None:
    probs, score = expected(pixels)
    other = Classifier.load(path, threads=1, alpha=0.1, accuracy=0.99)
    got = other.predict_answers(pixels)
    np.testing.assert_array_equal(got.sets_NC, probs >= np.array([0.02, 0.4, 0.6, 0.5]))
    np.testing.assert_array_equal(got.accepted_N, (probs.max(1) >= 0.8) & (score <= 0.5))
    assert other.identity != model.identity
    with pytest.raises(ModelError, match=r"alpha|0\.2.*class-conditional 0\.05, class-conditional 0\.1"):
        Classifier.load(path, alpha=0.2)
    with pytest.raises(ModelError, match=r"0\.9; it has: 0\.95, 0\.99"):
        Classifier.load(path, accuracy=0.9)


def test_what_the_card_has_not_is_not_asked_for_in_vain(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    bare = full_model(tmp_path / "bare.onnx", card())
    got = Classifier.load(bare).predict_answers(pixels)
    assert (got.sets_NC, got.ood_score_N, got.ood_N, got.accepted_N) == (None,) * 4
    with pytest.raises(ModelError, match=r"no conformal sets, so none for alpha 0\.05"):
        Classifier.load(bare, alpha=0.05)
    with pytest.raises(ModelError, match=r"no threshold of acceptance, so none for 0\.95"):
        Classifier.load(bare, accuracy=0.95)


def test_energy_needs_no_output(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    novelty = CardNovelty(method="energy", threshold=-1.0, kept=0.95, fitted_on=40)
    path = full_model(tmp_path / "e.onnx", full_card(novelty=novelty), drop=("ood_score",))
    got = Classifier.load(path).predict_answers(pixels)
    want = -np.log(np.exp(logits(pixels)).sum(1))
    np.testing.assert_allclose(got.ood_score_N, want, atol=1e-5)
    np.testing.assert_array_equal(got.ood_N, want > -1)


def test_a_score_without_an_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tells of a score 'knn', and it has no output 'ood_score'"):
        Classifier.load(full_model(tmp_path / "x.onnx", drop=("ood_score",)))


def test_features(model: Classifier, tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    spec = card().preprocessing
    want = (pixels.astype(float).mean((1, 2)) / 255 - spec.mean) / spec.std
    assert model.has_features
    got = model.predict_features(pixels)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert model.predict_features([]).shape == (0, 3)
    without = Classifier.load(full_model(tmp_path / "x.onnx", drop=("features",)))
    assert not without.has_features
    with pytest.raises(ModelError, match="has no output 'features'"):
        without.predict_features(pixels)


def test_outputs_of_another_shape(tmp_path: Path) -> None:
    model = graph()
    model.graph.node.append(helper.make_node("Identity", ["n"], ["ood_score"]))
    model.graph.output.append(helper.make_tensor_value_info("ood_score", onnx.TensorProto.FLOAT, ["N", 3]))
    helper.set_model_props(model, {"marrowscope.card": full_card().model_dump_json()})
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ModelError, match=r"'ood_score' must be float \(N,\)"):
        Classifier.load(tmp_path / "x.onnx")


# ------------------------------------------------------------------------------------------------------------ averages


def test_a_mean_has_what_holds_for_it(model: Classifier, tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    other = Classifier.load(full_model(tmp_path / "o.onnx", seed=3), threads=1)
    two = Ensemble([model, other]).predict_answers(pixels)
    np.testing.assert_allclose(two.probs_NC, (model.predict_proba(pixels) + other.predict_proba(pixels)) / 2)
    assert (two.sets_NC, two.ood_score_N, two.ood_N, two.accepted_N) == (None,) * 4
    alone = model.predict_answers(pixels)
    views = Ensemble([model], 8).predict_answers(pixels)
    assert (views.sets_NC, views.accepted_N) == (None, None)
    np.testing.assert_array_equal(views.ood_score_N, alone.ood_score_N)
    np.testing.assert_array_equal(views.ood_N, alone.ood_N)
    one = Ensemble([model]).predict_answers(pixels)
    np.testing.assert_array_equal(one.sets_NC, alone.sets_NC)
    np.testing.assert_array_equal(one.accepted_N, alone.accepted_N)


def test_one_way_to_open(path: Path, tmp_path: Path) -> None:
    assert isinstance(load_predictor([path]), Classifier)
    assert load_predictor([path], alpha=0.1).identity == Classifier.load(path, alpha=0.1).identity
    assert isinstance(load_predictor([path], views=2), Ensemble)
    assert isinstance(load_predictor([path, path]), Ensemble)
    for options in ({"alpha": 0.05}, {"accuracy": 0.95}):
        with pytest.raises(ModelError, match="don't hold for a mean"):
            load_predictor([path], views=2, **options)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- tables


def test_columns_of_each_format(model: Classifier, cells: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    direct = predict_to_predictions(model, [cells])
    assert direct.header() == [
        "path", "status", "predicted", "confidence", *CODES, "conformal_set", "ood_score", "ood", "accepted",
    ]  # fmt: skip
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        predict_files(model, [cells], tmp_path / name, batch_size=7)
        got = Predictions.read(tmp_path / name)
        assert (got.paths, got.status, got.codes) == (direct.paths, direct.status, direct.codes)
        np.testing.assert_allclose(got.probs_NC, direct.probs_NC, atol=2e-6)
        np.testing.assert_allclose(got.ood_score_N, direct.ood_score_N, rtol=1e-5)  # type: ignore[arg-type]
        for flags in ("sets_NC", "ood_N", "accepted_N"):
            np.testing.assert_array_equal(getattr(got, flags), getattr(direct, flags))
    bad = direct.status.index("not a known picture format: allowed are JPEG, PNG, TIFF, BMP, WEBP")
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[1 + bad].endswith(",".join([""] * 11))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == pq.read_table(tmp_path / "out.parquet").to_pylist()
    for i, row in enumerate(rows):
        if i == bad:
            assert {row[c] for c in row if c not in {"path", "status"}} == {None}
            continue
        assert direct.sets_NC is not None
        assert row["conformal_set"] == [c for c, inside in zip(CODES, direct.sets_NC[i], strict=True) if inside]
        assert (type(row["ood"]), type(row["accepted"]), type(row["ood_score"])) == (bool, bool, float)


def test_a_model_without_thresholds_has_no_such_columns(cells: Path, tmp_path: Path) -> None:
    bare = Classifier.load(full_model(tmp_path / "bare.onnx", card()))
    predict_files(bare, [cells], tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().startswith(f"path,status,predicted,confidence,{','.join(CODES)}\n")


def test_resuming_with_another_alpha_is_refused(path: Path, cells: Path, tmp_path: Path) -> None:
    from marrowscope.errors import OutputError
    from marrowscope.infer.outputs import Journal
    from marrowscope.infer.predict import to_predictions

    model = Classifier.load(path)
    header = to_predictions(model.codes, (), (), model.no_answers()).header()
    with Journal(tmp_path / "o.csv", model.identity, header, resume=False) as journal:
        journal.append([[str(cells / "00.png"), "missing", *[""] * (len(header) - 2)]])
    with pytest.raises(OutputError, match="another model or other options"):
        predict_files(Classifier.load(path, alpha=0.1), [cells], tmp_path / "o.csv", resume=True)
    assert predict_files(model, [cells], tmp_path / "o.csv", resume=True).resumed == 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tables_come_back(data: st.DataObject) -> None:
    import tempfile

    n = data.draw(st.integers(0, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    codes = ("BLA", "EOS", "LYT")
    status = tuple(data.draw(st.sampled_from(["ok", "ok", "missing: no such file"])) for _ in range(n))
    ok = np.array([s == "ok" for s in status], dtype=bool)
    probs = np.where(ok[:, None], rng.dirichlet(np.ones(3), n), np.nan).reshape(n, 3)
    has = [data.draw(st.booleans()) for _ in range(5)]
    made = Predictions(
        tuple(f"{i}.jpg" for i in range(n)), status, codes, probs,
        truth=("BLA",) * n if has[0] else None,
        sets_NC=(rng.random((n, 3)) > 0.5) & ok[:, None] if has[1] else None,
        ood_score_N=np.where(ok, rng.normal(size=n) * 1e4, np.nan) if has[2] else None,
        ood_N=(rng.random(n) > 0.5) & ok if has[3] else None,
        accepted_N=(rng.random(n) > 0.5) & ok if has[4] else None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        made.write(Path(folder, "p.csv"))
        got = Predictions.read(Path(folder, "p.csv"))
    assert (got.paths, got.status, got.codes, got.truth) == (made.paths, made.status, made.codes, made.truth)
    assert got.header() == made.header()
    np.testing.assert_allclose(got.probs_NC, made.probs_NC, atol=2e-6)
    for name in ("sets_NC", "ood_score_N", "ood_N", "accepted_N"):
        if getattr(made, name) is not None:
            np.testing.assert_allclose(getattr(got, name), getattr(made, name), rtol=1e-5)


@pytest.mark.parametrize(
    ("cells", "match"),
    [
        ("BLA|XXX,0.5,0,1", "line 2: conformal_set names 'XXX'; allowed are the table's classes, BLA LYT"),
        ("BLA,high,0,1", "line 2: a ood_score is not a number"),
        ("BLA,0.5,no,1", "line 2: ood is 'no'; allowed are 1 and 0"),
        ("BLA,0.5,0,", "line 2: accepted is ''; allowed are 1 and 0"),
    ],
)
def test_cells_that_are_not_allowed(tmp_path: Path, cells: str, match: str) -> None:
    head = "path,status,predicted,confidence,BLA,LYT,conformal_set,ood_score,ood,accepted\n"
    (tmp_path / "p.csv").write_text(f"{head}a.jpg,ok,BLA,0.7,0.7,0.3,{cells}\n")
    with pytest.raises(FileFormatError, match=match):
        Predictions.read(tmp_path / "p.csv")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("p.jsonl", "no json\n", "not a table of predictions in JSON lines"),
        ("p.jsonl", "[1, 2]\n", "line 1: a JSON object is needed"),
        ("p.jsonl", "", "its columns must be path,status"),
        ("p.parquet", "text", "not a table of predictions in Parquet|Can't read"),
        ("p.csv", "path,label\n", "its columns must be path,status"),
    ],
)
def test_files_of_something_else(tmp_path: Path, name: str, content: str, match: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FileFormatError, match=match):
        Predictions.read(tmp_path / name)
    with pytest.raises(FileFormatError, match="Can't read the table of predictions"):
        Predictions.read(tmp_path / f"gone-{name}")
