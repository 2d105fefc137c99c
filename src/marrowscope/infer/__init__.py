"""Inference without torch: from files of cells to predictions.csv with onnxruntime.

classifier   one ONNX file and its card: pictures in, probabilities out
inputs       what PATH may be, and the files it stands for
predict      from files to predictions.csv: decoding overlaps inference, memory is bounded
"""

from __future__ import annotations

from marrowscope.infer.classifier import Classifier, ImageLike, bundled
from marrowscope.infer.inputs import find_images
from marrowscope.infer.items import Item
from marrowscope.infer.predict import Summary, predict_files, predict_to_predictions

__all__ = [
    "Classifier",
    "ImageLike",
    "Item",
    "Summary",
    "bundled",
    "find_images",
    "predict_files",
    "predict_to_predictions",
]
