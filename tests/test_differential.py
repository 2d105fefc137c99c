"""The myelogram against hand counts, statsmodels, and mixtures whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marrowscope.cells import BY_CODE, CLASS_SETS, clinical_order
from marrowscope.differential import (
    BLASTS,
    RATIOS,
    Differential,
    adjusted_shares,
    count,
    goodman_interval,
    prior_corrected,
)
from marrowscope.differential.adjust import check_confusion
from marrowscope.errors import DataError
from marrowscope.schema import Card, Predictions
from tiny_onnx import card

M14 = CLASS_SETS["marrow-14"].codes


def card_with(confusion: npt.ArrayLike, codes: tuple[str, ...] = M14) -> Card:
    return card(codes).model_copy(update={"confusion": tuple(map(tuple, np.asarray(confusion).tolist()))})


def predictions(
    counts: dict[str, int], codes: tuple[str, ...] = M14, confidence: float = 0.9, failed: tuple[str, ...] = ()
) -> Predictions:
    answers = [c for c, n in counts.items() for _ in range(n)]
    probs = np.full((len(answers), len(codes)), (1 - confidence) / (len(codes) - 1))
    probs[np.arange(len(answers)), [codes.index(c) for c in answers]] = confidence
    nothing = np.full((len(failed), len(codes)), np.nan)
    paths = tuple(f"{i}.jpg" for i in range(len(answers) + len(failed)))
    return Predictions(paths, ("ok",) * len(answers) + failed, codes, np.concatenate([probs, nothing]))


NORMAL = {
    "BLA": 8, "PMO": 20, "MYB": 60, "MMZ": 80, "NGB": 60, "NGS": 100, "EOS": 20, "MON": 10, "PEB": 12, "EBO": 150,
    "LYT": 70, "PLM": 10, "ART": 40, "NIF": 25,
}  # fmt: skip


def test_counts_and_percentages_in_clinical_order() -> None:
    out = count(predictions(NORMAL, failed=("empty file", "damaged or truncated: x", "damaged or truncated: y")))
    assert [r.code for r in out.rows] == clinical_order(c for c in M14 if c not in {"ART", "NIF"})
    assert out.files == 668
    assert out.counted == 600 == sum(r.count for r in out.rows)
    assert out.left_out == {"NIF": 25, "ART": 40}
    assert out.failed == {"damaged or truncated": 2, "empty file": 1}
    assert out.warnings == ("The myeloid-to-erythroid ratio lacks FGC ABE BAS, which the model does not know.",)
    assert "ot a medical device" in out.intended_use
    assert sum(r.percent.value or 0 for r in out.rows) == pytest.approx(100)
    by_code = {r.code: r for r in out.rows}
    assert by_code["EBO"].name == "erythroblast"
    assert by_code["EBO"].percent.value == 25
    assert by_code["EBO"].percent.n == 600
    assert by_code["EBO"].adjusted is None
    assert out.blast_percent.figure.value == pytest.approx(100 * 8 / 600)


def test_intervals_are_goodmans() -> None:
    from statsmodels.stats.proportion import multinomial_proportions_confint

    out = count(predictions(NORMAL))
    want = 100 * multinomial_proportions_confint([r.count for r in out.rows], alpha=0.05, method="goodman")
    got = np.array([[r.percent.low, r.percent.high] for r in out.rows], dtype=float)
    np.testing.assert_allclose(got, want, rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=2, max_size=21).filter(sum))
def test_goodman_against_statsmodels(counts: list[int]) -> None:
    from statsmodels.stats.proportion import multinomial_proportions_confint

    want = multinomial_proportions_confint(counts, alpha=0.05, method="goodman")
    got = np.array([goodman_interval(c, sum(counts), len(counts)) for c in counts])
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_simultaneous_intervals_hold_together() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([0.01, 0.04, 0.1, 0.15, 0.3, 0.4])
    hits = 0
    for draw in rng.multinomial(500, truth, size=1000):
        ends = np.array([goodman_interval(int(c), 500, 6) for c in draw])
        hits += bool(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).all())
    assert hits >= 935  # 950 less three standard errors, and Wilson's small loss near 0


# ------------------------------------------------------------------------------------------------------------- ratios


@pytest.mark.parametrize(
    ("ratio", "myeloid"),
    [("granulocytic-monocytic", 358), ("granulocytic", 340), ("dividing", 88)],
)
def test_myeloid_to_erythroid(ratio: str, myeloid: int) -> None:
    out = count(predictions(NORMAL), ratio=ratio).myeloid_erythroid
    assert out.definition == ratio
    assert out.text == RATIOS[ratio].text
    assert out.figure.value == pytest.approx(myeloid / 162)
    assert out.figure.n == myeloid + 162
    assert out.figure.low is not None
    assert out.figure.high is not None
    assert out.figure.low < myeloid / 162 < out.figure.high


def test_ratio_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    truth = 3.0
    hits = 0
    for m in rng.binomial(500, 0.75, size=400):
        f = count(predictions({"NGS": int(m), "EBO": 500 - int(m)}, ("EBO", "NGS"))).myeloid_erythroid.figure
        hits += f.low is not None and f.high is not None and f.low <= truth <= f.high
    assert 0.92 <= hits / 400 <= 0.98


def test_ratio_without_erythroblasts() -> None:
    f = count(predictions({"NGS": 50})).myeloid_erythroid.figure
    assert (f.value, f.high) == (None, None)
    assert f.low is not None
    assert f.low > 5
    codes = CLASS_SETS["marrow-8"].codes
    out = count(predictions({"NGS": 50}, codes))
    assert out.myeloid_erythroid.figure.low is None
    assert any("PEB EBO" in w for w in out.warnings)


def test_blast_definitions() -> None:
    codes = CLASS_SETS["marrow-21"].codes
    smear = predictions({"BLA": 10, "FGC": 20, "LYT": 470, "KSC": 100, "OTH": 7}, codes)
    narrow, wide = (count(smear, blasts=b).blast_percent for b in BLASTS)
    assert (narrow.figure.value, wide.figure.value) == (2, 6)
    assert wide.text == "blasts and faggot cells per 100 nucleated cells"
    assert count(smear).left_out == {"OTH": 7, "KSC": 100, "NIF": 0, "ART": 0}
    assert any("lacks FGC" in w for w in count(predictions(NORMAL), blasts="blasts-and-faggot-cells").warnings)


def test_every_ratio_names_known_classes() -> None:
    for ratio in RATIOS.values():
        assert ratio.myeloid | ratio.erythroid <= BY_CODE.keys()
        assert not ratio.myeloid & ratio.erythroid
        assert all(BY_CODE[c].nucleated for c in ratio.myeloid | ratio.erythroid)


# -------------------------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize(
    ("n", "match"), [(0, "Only 0 nucleated"), (299, "Only 299 nucleated"), (300, "count 500"), (499, "count 500")]
)
def test_few_cells_are_warned_of(n: int, match: str) -> None:
    out = count(predictions({"LYT": n, "ART": 1000}))
    assert match in out.warnings[0]
    assert "ICSH" in out.warnings[0]


def test_enough_cells() -> None:
    assert not any("ICSH" in w for w in count(predictions({"LYT": 500})).warnings)


def test_nothing_to_count() -> None:
    out = count(predictions({}, failed=("empty file",) * 3))
    assert out.counted == 0
    assert {r.percent.value for r in out.rows} == {None}
    assert out.blast_percent.figure.value is None
    out = count(predictions({}), card=card_with(np.eye(14, dtype=int)))
    assert {r.adjusted.value for r in out.rows if r.adjusted} == {None}


def test_unsure_cells_are_listed_and_not_counted() -> None:
    sure, unsure = predictions(NORMAL), predictions({"BLA": 3}, confidence=0.4)
    both = Predictions(
        (*sure.paths, "a", "b", "c"), sure.status + unsure.status, M14, np.concatenate([sure.probs_NC, unsure.probs_NC])
    )
    out = count(both, least_confidence=0.5)
    assert [(c.path, c.predicted, c.confidence, c.reason) for c in out.review] == [
        (p, "BLA", 0.4, "low confidence") for p in "abc"
    ]
    assert out.rows == count(sure).rows
    assert count(both).review == ()


def judged(n: int = 60) -> Predictions:
    """Sixty blasts; every third is strange, every second not accepted."""
    plain, number = predictions({"BLA": n}), np.arange(n)
    return replace(plain, ood_N=number % 3 == 0, accepted_N=number % 2 == 1)


def test_what_the_model_would_not_answer_for_is_counted_apart() -> None:
    out = count(judged())
    assert (out.counted, out.rows[0].count) == (20, 20)
    assert out.reasons() == {"out of distribution": 20, "not accepted": 20}
    assert [c.path for c in out.review if c.reason == "out of distribution"] == [f"{i}.jpg" for i in range(0, 60, 3)]
    assert any("40 cells are left for review and not counted" in w for w in out.warnings)
    assert not any("left for review" in w for w in count(judged(), review=False).warnings)
    assert count(judged(), review=False).counted == 60
    assert count(judged(), review=False).review == ()


def test_adjusted_counts_rest_on_all_cells_but_strange_ones() -> None:
    out = count(judged(), card=card_with(np.eye(14, dtype=int) * 30))
    assert out.counted == 20
    assert out.adjustment is not None
    assert (out.adjustment.cells, out.adjustment.validation, out.adjustment.model) == (40, 420, "tiny")
    everything = count(judged(), card=card_with(np.eye(14, dtype=int) * 30), review=False)
    assert everything.adjustment is not None
    assert everything.adjustment.cells == 60


def test_failed_files_are_no_cells_for_review() -> None:
    some = predictions({"LYT": 3}, failed=("empty file", "missing: x"))
    marked = replace(some, accepted_N=np.array([True, True, True, False, False]), ood_N=np.zeros(5, dtype=bool))
    out = count(marked, least_confidence=0.5)
    assert (out.counted, out.review, sum(out.failed.values())) == (3, (), 2)


def test_unknown_definitions() -> None:
    with pytest.raises(DataError, match=r"'m:e'.*granulocytic-monocytic, granulocytic, dividing"):
        count(predictions(NORMAL), ratio="m:e")
    with pytest.raises(DataError, match="'all'"):
        count(predictions(NORMAL), blasts="all")


def test_document_comes_back(tmp_path: Path) -> None:
    out = count(judged(), card=card_with(np.eye(14, dtype=int) * 50), least_confidence=0.95)
    out.write(tmp_path / "differential.json")
    assert Differential.read(tmp_path / "differential.json") == out


# ----------------------------------------------------------------------------------------------------------- adjusted


def confusions(k: int, accuracy: float, n: int = 200, seed: int = 0) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    off = rng.dirichlet(np.ones(k) * 0.5, size=k) * (1 - accuracy)
    return np.rint(n * (off + np.eye(k) * accuracy)).astype(np.int64)


def test_adjusted_count_is_the_inverse_where_that_is_a_mixture() -> None:
    matrix = confusions(6, 0.8)
    recall = matrix / matrix.sum(1, keepdims=True)
    truth = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
    observed = truth @ recall
    np.testing.assert_allclose(adjusted_shares(observed, matrix), truth, atol=1e-6)
    np.testing.assert_allclose(adjusted_shares(observed * 500, matrix), np.linalg.solve(recall.T, observed), atol=1e-6)


def test_adjusted_count_stays_a_mixture() -> None:
    matrix = confusions(6, 0.7)
    only = adjusted_shares([100, 0, 0, 0, 0, 0], matrix)
    assert only.min() >= 0
    assert only.sum() == pytest.approx(1)
    assert np.linalg.solve((matrix / matrix.sum(1, keepdims=True)).T, np.eye(6)[0]).min() < -0.01


def test_perfect_model_needs_no_adjusting() -> None:
    np.testing.assert_allclose(adjusted_shares([5, 3, 0, 2], np.eye(4) * 10), [0.5, 0.3, 0, 0.2], atol=1e-12)


def test_batches_are_as_one_by_one() -> None:
    rng = np.random.default_rng(2)
    counts, matrices = rng.integers(1, 50, (4, 5)), rng.integers(1, 50, (4, 5, 5))
    together = adjusted_shares(counts, matrices, iterations=50)
    for i in range(4):
        np.testing.assert_allclose(together[i], adjusted_shares(counts[i], matrices[i], iterations=50))


def test_prior_correction_finds_the_mix() -> None:
    rng = np.random.default_rng(3)
    means = np.array([[0, 0], [2, 0], [0, 2]])
    train, mix = np.array([1, 1, 1]) / 3, np.array([0.7, 0.25, 0.05])
    x = means[rng.choice(3, size=20_000, p=mix)] + rng.normal(size=(20_000, 2))
    likelihood = np.exp(-((x[:, None] - means) ** 2).sum(-1) / 2)
    probs = likelihood * train
    probs /= probs.sum(1, keepdims=True)
    np.testing.assert_allclose(prior_corrected(probs, train), mix, atol=0.02)
    assert np.abs(np.bincount(probs.argmax(1), minlength=3) / 20_000 - mix).max() > 0.05


def test_prior_correction_is_as_quapys() -> None:
    i = np.arange(80)[:, None]
    z = 3 * np.sin(0.7 * i * np.array([1, 1.3, 0.6, 2.1]) + np.arange(4))
    probs = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    prior = np.array([0.4, 0.3, 0.2, 0.1])
    # quapy 0.2.3: EMQ.EM(prior, probs, epsilon=1e-13)[0]
    want = [0.08701487, 0.16855735, 0.26903257, 0.47539521]
    np.testing.assert_allclose(prior_corrected(probs, prior), want, atol=1e-7)
    twice = prior_corrected(np.concatenate([probs, probs[:9]]), prior)
    weights = np.ones((2, 80))
    weights[1, :9] = 2
    np.testing.assert_allclose(prior_corrected(probs, prior, weights), [want, twice], atol=1e-7)


def test_adjusted_ratio_and_blasts_follow_the_adjusted_mix() -> None:
    matrix = confusions(14, 0.85)
    out = count(predictions(NORMAL), card=card_with(matrix))
    for kind in ("adjusted", "corrected"):
        rows = {r.code: getattr(r, kind) for r in out.rows}
        blasts, ratio = getattr(out.blast_percent, kind), getattr(out.myeloid_erythroid, kind)
        assert blasts == rows["BLA"]
        above = sum(rows[c].value for c in RATIOS["granulocytic-monocytic"].myeloid if c in rows)
        assert ratio.value == pytest.approx(above / (rows["PEB"].value + rows["EBO"].value))
        assert ratio.low < ratio.value < ratio.high
    codes = CLASS_SETS["marrow-8"].codes
    without = count(predictions({"NGS": 50}, codes), card=card_with(np.eye(8, dtype=int) * 9, codes))
    assert without.myeloid_erythroid.adjusted is not None
    assert without.myeloid_erythroid.adjusted.value is None


def test_adjusted_is_closer_to_the_truth_than_raw() -> None:
    rng = np.random.default_rng(4)
    codes = [c for c in M14 if BY_CODE[c].nucleated]
    matrix = confusions(14, 0.8, seed=5)
    recall = matrix / matrix.sum(1, keepdims=True)
    raw, adjusted = [], []
    for _ in range(4):
        mix = rng.dirichlet(np.ones(14) * 0.6)
        drawn = rng.multinomial(1000, mix @ recall)
        out = count(predictions(dict(zip(M14, drawn.tolist(), strict=True))), card=card_with(matrix))
        truth = {c: 100 * mix[M14.index(c)] / sum(mix[M14.index(x)] for x in codes) for c in codes}
        raw.append(np.mean([abs((r.percent.value or 0) - truth[r.code]) for r in out.rows]))
        adjusted.append(np.mean([abs((r.adjusted.value or 0) - truth[r.code]) for r in out.rows if r.adjusted]))
    assert np.mean(adjusted) < 0.6 * np.mean(raw)


def test_adjusted_intervals_cover_and_repeat() -> None:
    matrix = confusions(14, 0.85)
    smear = predictions(NORMAL)
    out = count(smear, card=card_with(matrix))
    assert out.adjustment is not None
    for r in out.rows:
        assert r.adjusted is not None
        assert r.adjusted.low is not None
        assert r.adjusted.value is not None
        assert r.adjusted.high is not None
        assert 0 <= r.adjusted.low <= r.adjusted.value <= r.adjusted.high <= 100
    assert sum(r.adjusted.value or 0 for r in out.rows if r.adjusted) == pytest.approx(100)
    assert out == count(smear, card=card_with(matrix))
    assert out != count(smear, card=card_with(matrix), seed=1)


def test_cards_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="'tiny' has the classes BLA EOS LYT NGS, and the predictions have ART BLA"):
        count(predictions(NORMAL), card=card())
    with pytest.raises(DataError, match="does not tell its confusions"):
        count(predictions(NORMAL), card=card(M14))
    matrix = np.eye(14, dtype=int)
    matrix[M14.index("PEB")] = 0
    with pytest.raises(DataError, match="no cell of PEB"):
        count(predictions(NORMAL), card=card_with(matrix))
    with pytest.raises(DataError, match=r"shape \(3, 3\).*14 classes"):
        check_confusion(M14, np.eye(3, dtype=int))
