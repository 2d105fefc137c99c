"""Judging a model: metrics, intervals, and the evaluation and comparison of predictions files. numpy only."""

from marrowscope.evaluate.compare import compare_csvs, compare_predictions, published_difference
from marrowscope.evaluate.comparison import Comparison
from marrowscope.evaluate.run import evaluate_csv, evaluate_predictions

__all__ = [
    "Comparison",
    "compare_csvs",
    "compare_predictions",
    "evaluate_csv",
    "evaluate_predictions",
    "published_difference",
]
