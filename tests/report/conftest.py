"""A run folder as training and evaluation leave it, made of noise through the schema's own writers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from marrowscope.analysis import analyse_predictions
from marrowscope.analysis.quality import MEASURES, quality_measures
from marrowscope.evaluate.case import make_case
from marrowscope.evaluate.figures import Bootstrap
from marrowscope.files import sha256_file
from marrowscope.schema import (
    OK,
    Calibration,
    Card,
    CascadeStep,
    ClassFigures,
    ConformalSets,
    Evaluation,
    FeatureMap,
    Figure,
    LabelCandidate,
    Novelty,
    NoveltyScore,
    OperatingPoint,
    Predictions,
    Preprocessing,
    PublishedFigures,
    ReliabilityBin,
    RiskPoint,
    Robustness,
    RobustnessKind,
    RobustnessPoint,
    RunInfo,
    Split,
    SplitInfo,
    SplitRow,
    StrangerKind,
    TrainingData,
    count_parts,
    write_metrics,
)
from marrowscope.schema.analysis import spelled
from marrowscope.schema.explanations import (
    ExplainedPicture,
    ExplanationCheck,
    ExplanationMethod,
    Explanations,
    ExplanationTests,
    MethodTests,
)

CODES = ("ART", "BLA", "EBO", "LYT", "MYB", "NGB", "NGS", "PMO")
STRANGE = (
    "BLA/a cell with spaces.jpg",
    "BLA/'single' and \"double\".jpg",
    "LYT/<script>alert(1)</script>.jpg",
    "LYT/Zelle_äöüß.jpg",
    "NGS/</script><img src=x onerror=alert(2)>.jpg",
    "NGS/{{ 7 * 7 }} & co.jpg",
    "NGB/bad_\udcff_byte.jpg",
)
MakeRun = Callable[..., Path]


def _figure(value: float | None, n: int) -> Figure:
    if value is None:
        return Figure(value=None, low=None, high=None, n=n, method="none")
    half = 0.5 / max(n, 1) ** 0.5
    return Figure(value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=n, method="Wilson")


def _draw(path: Path, colour: tuple[int, int, int], rng: np.random.Generator, side: int) -> None:
    y, x = np.mgrid[:side, :side] / side - 0.5
    pixels = np.full((side, side, 3), 225.0) + rng.normal(0, 7, (side, side, 3))
    cell = (x * x + y * y) < rng.uniform(0.06, 0.12)
    nucleus = ((x - rng.uniform(-0.06, 0.06)) ** 2 + (y * 1.2) ** 2) < rng.uniform(0.02, 0.05)
    pixels[cell] = 0.5 * pixels[cell] + 0.5 * np.array(colour)
    pixels[nucleus] = np.array(colour) * 0.6 + rng.normal(0, 9, (int(nucleus.sum()), 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=90)


def _evaluation(predictions: Predictions, path: Path) -> Evaluation:
    assert predictions.truth is not None
    codes, ok = predictions.codes, predictions.ok
    truth = np.array([codes.index(t) for t in predictions.truth])[ok]
    answer = predictions.probs_NC[ok].argmax(1)
    confusion = np.zeros((len(codes), len(codes)), int)
    np.add.at(confusion, (truth, answer), 1)
    per_class = []
    for i, code in enumerate(codes):
        support, predicted, hits = int(confusion[i].sum()), int(confusion[:, i].sum()), int(confusion[i, i])
        precision = hits / predicted if predicted else None
        recall = hits / support if support else None
        f1 = 2 * hits / (support + predicted) if support + predicted else None
        per_class.append(
            ClassFigures(
                code=code,
                support=support,
                predicted=predicted,
                precision=_figure(precision, predicted),
                recall=_figure(recall, support),
                f1=_figure(f1, support),
            )
        )
    n = len(truth)
    names = "accuracy balanced_accuracy top2_accuracy macro_precision macro_recall macro_f1 cohen_kappa matthews"
    failed = [s for s in predictions.status if s != OK]
    return Evaluation(
        program="marrowscope 0.1.0",
        predictions=path.name,
        predictions_sha256=sha256_file(path),
        part="test",
        class_set="marrow-8",
        codes=codes,
        n=n,
        failed={s: failed.count(s) for s in sorted(set(failed))},
        macro_minimum=20,
        macro_left_out=(codes[0],),
        figures={
            **{k: _figure(float((truth == answer).mean()), n) for k in names.split()},
            "log_loss": Figure(value=1.25, low=1.1, high=1.4, n=n, method="bootstrap (2000 draws)"),
        },
        per_class=tuple(per_class),
        confusion=tuple(tuple(int(v) for v in row) for row in confusion),
    )


def _calibration(e: Evaluation, scaling: Literal["none", "temperature"], power: float) -> Calibration:
    return Calibration(
        scaling=scaling,
        temperature=1.4 if scaling == "temperature" else 1.0,
        fitted_on=0 if scaling == "none" else 321,
        figures={k: _figure(0.05, e.n) for k in ("accuracy", "expected_calibration_error", "brier_loss")},
        by_chance=_figure(0.02, e.n),
        per_class={c: _figure(0.03, 40) for c in e.codes},
        bins=tuple(
            ReliabilityBin(low=b - 0.05, high=b + 0.05, confidence=b, accuracy=_figure(b**power, e.n // 10))
            for b in (0.1 * i + 0.05 for i in range(10))
        ),
    )


def _conformal(e: Evaluation, method: Literal["split", "class-conditional"]) -> ConformalSets:
    some = _figure(0.9, e.n)
    return ConformalSets(
        method=method,
        alpha=0.1,
        calibrated_on=321,
        thresholds=dict.fromkeys(e.codes, 0.04),
        coverage=some,
        size=Figure(value=1.7, low=1.5, high=1.9, n=e.n, method="bootstrap"),
        single=_figure(0.5, e.n),
        empty=_figure(0.0, e.n),
        per_class={c: {"coverage": some, "size": some} for c in e.codes},
    )


def _novelty(e: Evaluation) -> Novelty:
    some = _figure(0.9, e.n)
    score = NoveltyScore(auroc=_figure(0.812, e.n), fpr_at_95=_figure(0.437, e.n))
    kind = StrangerKind(
        name="other classes",
        description="cells of <b>others</b>",
        n=108,
        scores={"energy": score, "knn": score},
        flagged=_figure(0.345, 108),
        accepted=_figure(0.123, 108),
    )
    left = {"photographs": "none <at hand>"}
    chosen = {"stain": {"energy": 0.8, "knn": 0.7}}
    return Novelty(method="energy", threshold=-3.2, chosen_by=chosen, flagged=some, kinds=(kind,), left_out=left)


def _robustness(e: Evaluation) -> Robustness:
    drop = _figure(0.234, e.n)
    points = tuple(
        RobustnessPoint(
            strength=s, amount=s / 10, accuracy=_figure(0.9 - s / 10, e.n), change=_figure(0.1, e.n), relative_drop=drop
        )
        for s in range(1, 6)
    )
    kinds = tuple(
        RobustnessKind(kind=k, accuracy=_figure(0.6, e.n), relative_drop=drop, points=points) for k in ("stain", "blur")
    )
    return Robustness(
        model="checkpoint",
        seed=0,
        n=e.n,
        clean=_figure(0.85, e.n),
        accuracy=_figure(0.678, e.n),
        relative_drop=drop,
        kinds=kinds,
    )


def _write_explanations(run: Path, paths: list[str]) -> None:
    """Heat maps of two cells by two methods, one map missing, and their tests."""
    folder = run / "explanations"
    (folder / "overlays").mkdir(parents=True)
    methods = tuple(
        ExplanationMethod(name=n, title=f"Title of {n}", about="somebody", class_specific=True)
        for n in ("good", "bad", "third", "fourth")
    )
    pictures = []
    for i, path in enumerate(paths):
        overlays = {n: f"overlays/{i}-{n}.png" for n in ("good", "bad")}
        for name in list(overlays.values())[: 2 - i]:
            Image.fromarray(np.full((60, 120, 3), 90 * i + 50, np.uint8)).save(folder / name)
        pictures.append(
            ExplainedPicture(
                path=path, status=OK, truth="BLA", predicted="BLA" if i else "LYT", confidence=0.75, overlays=overlays
            )
        )
    Explanations(
        model="m",
        program="marrowscope",
        weights_sha256="1" * 64,
        synthetic=True,
        size=96,
        methods=methods,
        pictures=tuple(pictures),
        grids=(),
    ).write(folder / "explanations.json")
    tests = tuple(
        MethodTests(
            method=n,
            title=f"Title of {n}",
            control=n == "control",
            figures={"pointing_game": _figure(0.777, 40)},
            deletion=(0.9, 0.5, 0.1),
            insertion=(0.1, 0.6, 0.9),
            cascade=(CascadeStep(randomised=1.0, spearman=_figure(0.2, 32), ssim=_figure(0.3, 32)),),
            checks=(ExplanationCheck(name="where", passed=n == "good", counted=True, reason="0.8 <b>above</b> 0.5"),),
            passed=n == "good",
        )
        for n in ("bad", "control", "good")
    )
    ExplanationTests(
        model="m",
        program="marrowscope",
        weights_sha256="1" * 64,
        part="test",
        synthetic=True,
        n=40,
        right=30,
        phantoms=20,
        phantoms_right=15,
        cell_area=_figure(0.4, 20),
        nucleus_area=_figure(0.2, 20),
        settings={"seed": 0},
        thresholds={"where": 0.5},
        methods=tests,
    ).write(run / "explanation-tests.json")


def _judged_further(e: Evaluation) -> Evaluation:
    """With all that an evaluation may hold beside the plain figures."""
    some, nothing = _figure(0.9, e.n), _figure(None, 0)
    paper = PublishedFigures(precision=0.5, recall=0.6, tolerant_precision=0.7, tolerant_recall=0.8, n=1234)
    names = ("auroc", "average_precision", "tolerant_precision", "tolerant_recall")
    further = {**dict.fromkeys(names, some), "published": paper}
    reached = OperatingPoint(target=0.95, chosen_on="validation", threshold=0.6, coverage=some, accuracy=some)
    missed = OperatingPoint(target=0.98, chosen_on="itself", threshold=None, coverage=some, accuracy=nothing)
    size = range(len(e.codes))
    return e.model_copy(
        update={
            "figures": {**e.figures, "tolerant_accuracy": _figure(0.93, e.n), "macro_auroc": _figure(0.97, e.n)},
            "per_class": tuple(c if c.code == "ART" else c.model_copy(update=further) for c in e.per_class),
            "neighbours": (("NGB", "NGS"), ("BLA", "PMO")),
            "published": "Somebody (2020), <b>Table 1</b>",
            "costs": tuple(tuple(0.0 if i == j else 0.5 for j in size) for i in size),
            "costs_source": "the tests",
            "never_predicted": ("ART",),
            "calibration": (_calibration(e, "none", 1.5), _calibration(e, "temperature", 1.05)),
            "risk_coverage": tuple(
                RiskPoint(threshold=1 - i / 50, coverage=i / 50, error=0.2 * (i / 50) ** 2) for i in range(1, 51)
            ),
            "operating_points": (reached, missed),
            "conformal": (_conformal(e, "split"), _conformal(e, "class-conditional")),
            "novelty": _novelty(e),
            "robustness": _robustness(e),
        }
    )


def _write_analysis(run: Path, predictions: Predictions) -> None:
    """The error analysis, with a map and measures of noise: UMAP would take longer to load than all the tests."""
    rng = np.random.default_rng(1)
    case = make_case(predictions, None, "noise")
    table = run / "predictions.csv"
    analysis = analyse_predictions(
        predictions, source=table.name, source_sha256=sha256_file(table), part="test", doubt_labels=False, draws=50
    )
    names = sorted(spelled(p) for p, s in zip(predictions.paths, predictions.status, strict=True) if s == OK)
    doubt = LabelCandidate(
        path=analysis.confident_mistakes[0].path,
        label=analysis.confident_mistakes[0].truth,
        suggested=analysis.confident_mistakes[0].predicted,
        label_probability=0.02,
        suggested_probability=0.9,
        margin=0.88,
    )
    analysis.model_copy(
        update={
            "label_candidates": (doubt,),
            "label_basis": "Some <b>basis</b>.",
            "quality": quality_measures(case, rng.uniform(0, 200, (len(case), len(MEASURES))), Bootstrap(50, 0)),
            "unmeasured": {"file not found": 1},
            "feature_map": FeatureMap(
                method="PCA",
                settings="features of length 1",
                seed=0,
                note="A note <b>on the map</b>.",
                dimension=512,
                trustworthiness=0.9,
                neighbours_alike=_figure(0.7, len(case)),
                points={
                    n: (float(x), float(y)) for n, (x, y) in zip(names, rng.uniform(0, 1, (len(names), 2)), strict=True)
                },
            ),
        }
    ).write(run / "analysis.json")


def _write_card(run: Path, split: Split, synthetic: bool) -> None:
    Card(
        name="ResNet-18 <b>bold</b>",
        program="marrowscope 0.1.0",
        architecture="resnet18",
        parameters=11_180_616,
        pretrained="none",
        class_set="marrow-8",
        codes=CODES,
        preprocessing=Preprocessing(size=96),
        training_data=TrainingData(
            name="Noise with blobs",
            licence="CC0",
            citation="Nobody (2026): Blobs. https://example.org/blobs",
            synthetic=synthetic,
            index_sha256="0" * 64,
            counts=split.counts(),
        ),
        seed=7,
        epochs=12,
        best_epoch=9,
        validation={"accuracy": 0.8, "macro_f1": 0.75},
        weights_sha256="1" * 64,
    ).write(run / "card.json")


def _write_training(run: Path, data: Path, rows: list[SplitRow], synthetic: bool) -> None:
    counts = count_parts(rows)
    info = SplitInfo(
        seed=7,
        rule="stratified by class; identical files stay together",
        class_set="marrow-8",
        codes=CODES,
        ratios=(0.8, 0.1, 0.1),
        index_sha256="0" * 64,
        left_out={"class not in the set": 3},
        counts=counts,
    )
    split = Split(tuple(rows), info)
    split.write(run / "split.csv")
    _write_card(run, split, synthetic)
    RunInfo(
        data=str(data),
        synthetic=synthetic,
        started="2026-01-02T03:04:05Z",
        versions={"python": "3.11.9", "torch": "2.6.0"},
        device="cpu",
        precision="fp32",
        cpu_threads=2,
    ).write(run / "run.json")
    write_metrics(
        run / "metrics.csv",
        [
            {
                "epoch": e,
                "step": 40 * e,
                "learning_rate": 1e-3 * (1 - e / 13),
                "train_loss": 2.1 * 0.75**e + 0.1,
                "train_accuracy": 0.95 - 0.8 * 0.75**e,
                "val_loss": 2.1 * 0.78**e + 0.3 + 0.01 * e,
                "val_accuracy": 0.86 - 0.7 * 0.78**e,
                "val_macro_f1": 0.83 - 0.7 * 0.78**e,
                "images_per_second": 210.0,
                "seconds": 9.5,
            }
            for e in range(1, 13)
        ],
    )
    (run / "config.toml").write_text('[model]\nname = "resnet18"  # <script>\n', encoding="utf-8")


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Give a function that makes a run folder with its data folder beside it."""

    def make(
        n: int = 64,
        *,
        training: bool = True,
        synthetic: bool = True,
        side: int = 64,
        further: bool = True,
        analysed: bool = False,
    ) -> Path:
        root = tmp_path_factory.mktemp("report")
        run, data, rng = root / "run", root / "data", np.random.default_rng(0)
        run.mkdir()
        colours = [tuple(int(v) for v in rng.integers(40, 190, 3)) for _ in CODES]
        paths = [*STRANGE, *(f"{CODES[i % len(CODES)]}/cell_{i:05d}.jpg" for i in range(n - len(STRANGE)))]
        truth = [p[:3] for p in paths]
        for path, code in zip(paths, truth, strict=True):
            _draw(data / path, colours[CODES.index(code)], rng, side)  # type: ignore[arg-type]
        logits = rng.normal(0, 1, (n, len(CODES)))
        # Right answers are common, and mistakes lie near in the list, as along a maturation.
        for i, code in enumerate(truth):
            at = CODES.index(code)
            logits[i, at] += 2.6
            logits[i, (at + 1) % len(CODES)] += 1.2
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        status = [OK] * n
        for i, reason in ((n - 1, "empty file"), (n - 2, "empty file"), (n - 3, "damaged or truncated: <b>")):
            status[i] = reason
            probs[i] = np.nan
        predictions = Predictions(tuple(paths), tuple(status), CODES, probs, tuple(truth))
        predictions.write(run / "predictions.csv")
        evaluation = _evaluation(predictions, run / "predictions.csv")
        (_judged_further(evaluation) if further else evaluation).write(run / "evaluation.json")
        if analysed:
            _write_analysis(run, predictions)
            _write_explanations(run, paths[:2])
        if training:
            rows = [SplitRow(p, t, "test") for p, t in zip(paths, truth, strict=True)]
            rows += [SplitRow(f"{c}/train_{i}.jpg", c, "train") for c in CODES for i in range(8 * n // len(CODES))]
            rows += [SplitRow(f"{c}/val_{i}.jpg", c, "val") for c in CODES for i in range(n // len(CODES))]
            _write_training(run, data, sorted(rows), synthetic)
        return run

    return make
