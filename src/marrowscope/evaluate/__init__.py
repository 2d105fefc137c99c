"""Judging a model: metrics, intervals, and the evaluation and comparison of predictions files. numpy only."""

from marrowscope.evaluate.compare import (
    compare_csvs,
    compare_predictions,
    compare_published,
    parse_published,
    published_difference,
)
from marrowscope.evaluate.comparison import Comparison
from marrowscope.evaluate.run import evaluate_csv, evaluate_predictions, read_groups

__all__ = [
    "Comparison",
    "compare_csvs",
    "compare_predictions",
    "compare_published",
    "evaluate_csv",
    "evaluate_predictions",
    "parse_published",
    "published_difference",
    "read_groups",
]
