"""How far a model's own doubts can be trusted: calibration, selective answers and conformal sets, as documents.

What has to be fitted (scalings, thresholds) is fitted on a validation case and judged on another.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from marrowscope.evaluate import calibration, conformal, metrics, selective
from marrowscope.evaluate.calibration import Scaling
from marrowscope.evaluate.case import Case
from marrowscope.evaluate.figures import NO_IMAGES, Bootstrap, figure, proportion
from marrowscope.evaluate.metrics import Floats
from marrowscope.schema import (
    Calibration,
    CardScaling,
    ConformalSets,
    Figure,
    OperatingPoint,
    ReliabilityBin,
    RiskPoint,
)

# ------------------------------------------------------------------------------------------------------ calibration


def calibrations(
    case: Case, validation: Case | None, bootstrap: Bootstrap, applied: CardScaling | None = None
) -> tuple[Calibration, ...]:
    """Calibration of the network itself, and after a temperature and a vector fitted on validation; one is applied.

    Args:
        case: The judged answers; none of them gives an empty result.
        validation: Answers of the same model for other images.
        bootstrap: Of the intervals.
        applied: The scaling that the answers of both have already; None: none.
    """
    if not len(case):
        return ()
    classes = len(case.codes)
    method = "none" if applied is None else applied.method
    scaled: dict[str, tuple[Scaling, Case]] = {}
    if applied is not None:
        scaled[method] = Scaling(np.array(applied.scale), np.array(applied.bias)), case
    raw, held = (_unscaled(c, applied) if c is not None else None for c in (case, validation))
    assert raw is not None
    out = [calibration_of(raw, bootstrap, {"scaling": "none", "applied": method == "none"})]
    if held is not None and len(held):
        temperature = calibration.fit_temperature(held.truth_N, held.probs_NC)
        fits = {
            "temperature": Scaling.of_temperature(temperature, classes),
            "vector": calibration.fit_vector(held.truth_N, held.probs_NC),
        }
        scaled = {name: (scaling, _rescaled(raw, scaling.apply)) for name, scaling in fits.items()} | scaled
    for name, (scaling, answers) in scaled.items():
        about = {"scaling": name, "applied": name == method, "fitted_on": _fitted_on(name, applied, held)}
        out.append(calibration_of(answers, bootstrap, {**about, **_parameters(name, scaling)}))
    return tuple(out)


def _fitted_on(name: str, applied: CardScaling | None, held: Case | None) -> int:
    if applied is not None and applied.method == name:
        return applied.fitted_on
    return 0 if held is None else len(held)


def _parameters(name: str, scaling: Scaling) -> dict[str, object]:
    if name == "temperature":
        return {"temperature": 1.0 / float(scaling.scale[0])}
    return {"scale": tuple(scaling.scale.tolist()), "bias": tuple(scaling.bias.tolist())}


def _unscaled(case: Case, applied: CardScaling | None) -> Case:
    """The answers of the network itself."""
    if applied is None:
        return case
    return _rescaled(case, Scaling(np.array(applied.scale), np.array(applied.bias)).undo)


def _rescaled(case: Case, change: Callable[[Floats], Floats]) -> Case:
    probs_NC = change(case.probs_NC)
    return Case(case.codes, case.truth_N, probs_NC.argmax(1).astype(np.int64), probs_NC, case.group_N)


def calibration_of(case: Case, bootstrap: Bootstrap, about: dict[str, object]) -> Calibration:
    """Figures and reliability of probabilities as they are; `about` says how they came to be. N above 0."""
    n, classes = len(case), len(case.codes)
    confidence_N = case.probs_NC.max(1)
    # Column 0 is the confidence, judged by right or wrong; then each class's probability, judged by being the truth.
    scores = np.concatenate([confidence_N[:, None], case.probs_NC], axis=1)
    hits = np.concatenate([case.right_N[:, None], np.eye(classes, dtype=bool)[case.truth_N]], axis=1)
    bins = [calibration.equal_mass_bins(scores[:, k]) for k in range(1 + classes)]
    gaps = [calibration.binned_gaps(scores[:, k], hits[:, k].astype(np.float64), bins[k]) for k in range(1 + classes)]

    def statistics(weights: Floats) -> dict[str, Floats]:
        errors = np.stack([np.abs(weights @ g).sum(1) for g in gaps], axis=1) / weights.sum(1, keepdims=True)
        return {"errors": errors, "mean": errors[:, 1:].mean(1, keepdims=True)}

    values, draws = statistics(np.ones((1, n))), bootstrap.run(case, statistics)

    def error(name: str, k: int) -> Figure:
        value = float(values[name][0, k])
        interval = calibration.pivotal_interval(value, draws[name][:, k])
        return figure(value, interval, n, f"pivotal {bootstrap.method(case)}")

    mean, low, high = calibration.error_by_chance(confidence_N, bootstrap.draws, bootstrap.seed)
    return Calibration.model_validate(
        {
            **about,
            "figures": {
                "accuracy": proportion(case.right_N, case.group_N),
                "expected_calibration_error": error("errors", 0),
                "classwise_calibration_error": error("mean", 0),
                "brier_loss": bootstrap.mean(calibration.brier_losses(case.truth_N, case.probs_NC), case, 2.0),
                "log_loss": bootstrap.mean(
                    metrics.log_losses(case.truth_N, case.probs_NC), case, metrics.WORST_LOG_LOSS
                ),
            },
            "by_chance": figure(mean, (low, high), n, f"consistency resampling ({bootstrap.draws} draws)"),
            "per_class": {code: error("errors", 1 + c) for c, code in enumerate(case.codes)},
            "bins": reliability_bins(case, bins[0]),
        }
    )


def reliability_bins(case: Case, bin_N: metrics.Integers) -> tuple[ReliabilityBin, ...]:
    """Confidence and accuracy bin by bin."""
    confidence_N = case.probs_NC.max(1)
    out = []
    for b in range(int(bin_N.max()) + 1):
        inside = bin_N == b
        values = confidence_N[inside]
        out.append(
            ReliabilityBin(
                low=float(values.min()),
                high=float(values.max()),
                confidence=float(values.mean()),
                accuracy=proportion(case.right_N[inside], case.group_N[inside]),
            )
        )
    return tuple(out)


# ------------------------------------------------------------------------------------------------- selective answers


def selective_figures(case: Case, bootstrap: Bootstrap) -> dict[str, Figure]:
    """The figures of `selective.selective_statistics`."""
    names = ("aurc_error", "excess_aurc_error", *map(selective.coverage_name, selective.TARGETS))
    if not len(case):
        return {name: figure(np.nan, None, 0, NO_IMAGES) for name in names}
    confidence_N, right_N = case.probs_NC.max(1), case.right_N
    values = selective.selective_statistics(confidence_N, right_N)
    draws = bootstrap.run(case, lambda w: selective.selective_statistics(confidence_N, right_N, w))
    accuracy = proportion(right_N, case.group_N)
    assert accuracy.low is not None
    assert accuracy.high is not None
    errors = (1 - accuracy.high, 1 - accuracy.low)

    def no_width(name: str) -> tuple[float, float]:
        # All right: the area is at most the error rate's upper end. All wrong: nothing is answered, so far as known.
        return errors if name.endswith("_error") else (0.0, 1.0)

    return {
        name: bootstrap.figure(float(values[name][0]), draws[name], len(case), case, lambda name=name: no_width(name))  # type: ignore[misc]
        for name in names
    }


def risk_points(case: Case) -> tuple[RiskPoint, ...]:
    """The risk-coverage curve, thinned."""
    if not len(case):
        return ()
    threshold, coverage, error = selective.risk_coverage(case.probs_NC.max(1), case.right_N)
    points = selective.thin(len(threshold))
    return tuple(
        RiskPoint(threshold=float(threshold[i]), coverage=float(coverage[i]), error=float(error[i])) for i in points
    )


def operating_points(case: Case, validation: Case | None, figures: dict[str, Figure]) -> tuple[OperatingPoint, ...]:
    """Thresholds for each target: chosen on the same images, and chosen on validation and applied here."""
    out = []
    for target in selective.TARGETS:
        for chosen_on, source, choose in (
            ("itself", case, selective.threshold_for),
            ("validation", validation, selective.threshold_for),
            ("assured", validation, selective.assured_threshold),
        ):
            if source is None or not len(source) or not len(case):
                continue
            threshold = choose(source.probs_NC.max(1), source.right_N, target)
            answered = case.probs_NC.max(1) >= (np.inf if threshold is None else threshold)
            coverage = proportion(answered, case.group_N)
            if chosen_on == "itself":
                coverage = figures[selective.coverage_name(target)]
            out.append(
                OperatingPoint.model_validate(
                    {
                        "target": target,
                        "chosen_on": chosen_on,
                        "threshold": threshold,
                        "coverage": coverage,
                        "accuracy": proportion(case.right_N[answered], case.group_N[answered]),
                    }
                )
            )
    return tuple(out)


# ---------------------------------------------------------------------------------------------------- conformal sets


def conformal_sets(case: Case, validation: Case | None, bootstrap: Bootstrap) -> tuple[ConformalSets, ...]:
    """Coverage and size of the sets of each method at each alpha; empty without validation."""
    if validation is None or not len(validation) or not len(case):
        return ()
    return tuple(
        _conformal_sets(case, validation, method, alpha, bootstrap)
        for alpha in conformal.ALPHAS
        for method in conformal.METHODS
    )


def _conformal_sets(
    case: Case, validation: Case, method: conformal.Method, alpha: float, bootstrap: Bootstrap
) -> ConformalSets:
    thresholds = conformal.conformal_thresholds(validation.truth_N, validation.probs_NC, alpha, method)
    sets_NC = conformal.prediction_sets(case.probs_NC, thresholds)
    holds_N = sets_NC[np.arange(len(case)), case.truth_N]
    size_N = sets_NC.sum(1).astype(np.float64)
    per_class = {}
    for c, code in enumerate(case.codes):
        own = case.only(case.truth_N == c)
        per_class[code] = {
            "coverage": proportion(holds_N[case.truth_N == c], own.group_N),
            "size": bootstrap.mean(size_N[case.truth_N == c], own),
        }
    return ConformalSets(
        method=method,
        alpha=alpha,
        calibrated_on=len(validation),
        thresholds={code: float(t) for code, t in zip(case.codes, thresholds, strict=True)},
        coverage=proportion(holds_N, case.group_N),
        size=bootstrap.mean(size_N, case),
        single=proportion(size_N == 1, case.group_N),
        empty=proportion(size_N == 0, case.group_N),
        per_class=per_class,
    )
