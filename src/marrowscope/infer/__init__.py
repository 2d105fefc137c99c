"""Inference without torch: from files of cells to predictions.csv with onnxruntime.

classifier   one ONNX file and its card: pictures in, probabilities out
inputs       what PATH may be, and the files it stands for
predict      from files to predictions.csv: decoding overlaps inference, memory is bounded
"""

from __future__ import annotations

from marrowscope.infer.classifier import Classifier, bundled, read_card
from marrowscope.infer.ensemble import Ensemble, load_predictor
from marrowscope.infer.inputs import find_images
from marrowscope.infer.items import Item
from marrowscope.infer.predict import Summary, predict_files, predict_items, predict_to_predictions
from marrowscope.infer.predictor import ImageLike, Predictor, batch_size_for

__all__ = [
    "Classifier",
    "Ensemble",
    "ImageLike",
    "Item",
    "Predictor",
    "Summary",
    "batch_size_for",
    "bundled",
    "find_images",
    "load_predictor",
    "predict_files",
    "predict_items",
    "predict_to_predictions",
    "read_card",
]
