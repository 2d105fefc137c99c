"""Predictions of every cell of a split with folds by a model that has not seen it, within minutes on one core.

    marrowscope split audit/index.csv --classes marrow-8 --folds 5 -o folds.csv
    python scripts/oof_predictions.py DATA folds.csv weights/vit_small_patch14_dinov2.safetensors -o oof.csv
    marrowscope audit index.csv --data DATA --predictions oof.csv -o audit

The model is weak next to a trained network: a ViT-S/14 with DINOv2 weights that are left as they are, and a logistic
regression on what it says of the cells (the class token, and the mean of the patches, at 98 px). Each fold is
answered by a regression on the other folds. It needs scikit-learn, which `pip install marrowscope[audit]` brings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from marrowscope.config import ModelConfig
from marrowscope.datasets import CellImages, batches
from marrowscope.models import CellClassifier, build_model
from marrowscope.schema import OK, Predictions, Preprocessing, Split
from marrowscope.train.runtime import has_bf16

NAME = "vit_small_patch14_dinov2"
SIZE = 98
INVERSE_STRENGTH = 0.003
"""C of the regression, chosen beforehand for 768 standardised features and some thousand cells; not tuned."""


@torch.inference_mode()
def features(model: CellClassifier, images: CellImages, batch: int = 32) -> npt.NDArray[np.float32]:
    """Class token and mean of the patch tokens of every picture: (N, 2 x width)."""
    out = []
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=has_bf16())
    order = [np.arange(i, min(i + batch, len(images))) for i in range(0, len(images), batch)]
    for b in batches(images, order):
        with bf16:
            tokens = model.backbone.forward_features((b.images.float() - model.mean) / model.std).float()
        out.append(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1).numpy())
        print(f"\r{sum(map(len, out))} of {len(images)}", end="", flush=True)
    print()
    return np.concatenate(out)


def held_out(
    x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], folds: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Probabilities (N, C) of each row by a regression on the rows of the other folds."""
    probs = np.zeros((len(y), int(y.max()) + 1))
    for fold in np.unique(folds):
        inside = folds == fold
        model = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_STRENGTH, max_iter=1000))
        model.fit(x[~inside], y[~inside])
        probs[np.ix_(inside, model.classes_)] = model.predict_proba(x[inside])
    return probs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("split", type=Path, help="with folds")
    parser.add_argument("weights", help=f"of {NAME}: a file, or hub")
    parser.add_argument("-o", "--output", type=Path, default=Path("oof.csv"))
    options = parser.parse_args()
    split = Split.read(options.split)
    if split.info.folds is None:
        raise SystemExit(f"{options.split} has no folds; draw it with --folds 5.")
    spec = Preprocessing(size=SIZE)
    model = build_model(ModelConfig(name=NAME, weights=options.weights), 2, spec).eval()
    images = CellImages(options.data, split.rows, split.info.codes, spec)
    folds = np.array([r.fold for r in split.rows], dtype=np.int64)
    probs = held_out(features(model, images), images.labels, folds)
    hits = probs.argmax(1) == images.labels
    by_fold = ", ".join(f"{hits[folds == f].mean():.3f}" for f in np.unique(folds))
    print(f"{len(hits)} cells, accuracy {hits.mean():.3f} (folds: {by_fold})")
    paths = tuple(r.path for r in split.rows)
    truth = tuple(r.label for r in split.rows)
    Predictions(paths, (OK,) * len(paths), tuple(split.info.codes), probs, truth).write(options.output)


if __name__ == "__main__":
    main()
