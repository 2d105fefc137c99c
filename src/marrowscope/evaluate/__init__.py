"""Judging a model: metrics, intervals, and the evaluation of a predictions file. numpy only."""

from marrowscope.evaluate.run import evaluate_csv, evaluate_predictions

__all__ = ["evaluate_csv", "evaluate_predictions"]
