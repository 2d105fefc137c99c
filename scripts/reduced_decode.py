"""What decoding JPEGs at a reduced size changes: answers, pixels, and processor time.

    python scripts/reduced_decode.py MODEL.onnx PREDICTIONS.csv DATA [--size PX]

Takes the pictures that PREDICTIONS.csv names (paths below DATA, with truth), decodes each in full and reduced as
`images.to_input` does it, and lets the model answer for both. `--size` compares times at another size of input, without
answers.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from marrowscope import images
from marrowscope.infer import Classifier
from marrowscope.schema import Predictions, Preprocessing


def timed(files: list[bytes], spec: Preprocessing) -> tuple[list[images.Pixels], float]:
    """Prepared pictures, and milliseconds of the processor for one, the least of three runs."""
    best = float("inf")
    for _ in range(3):
        begin = time.process_time()
        out = [images.to_input(data, spec) for data in files]
        best = min(best, (time.process_time() - begin) / len(files))
    return out, 1000 * best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int)
    options = parser.parse_args()
    table = Predictions.read(options.predictions)
    model = Classifier.load(options.model)
    spec = model.card.preprocessing
    if options.size is not None:
        spec = spec.model_copy(update={"size": options.size})
    files = [images.read_bytes(options.data / path) for path in table.paths]
    whole, whole_ms = timed(files, spec.model_copy(update={"reduced_decode": False}))
    reduced, reduced_ms = timed(files, spec.model_copy(update={"reduced_decode": True}))
    levels = np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(whole, reduced, strict=True)])
    print(f"{len(files)} pictures to {spec.size} px: {whole_ms:.2f} ms in full, {reduced_ms:.2f} ms reduced")
    print(f"mean difference of pixels {levels:.2f} of 255 levels")
    if options.size is None:
        answers = [model.probabilities(np.stack(p)).argmax(1) for p in (whole, reduced)]
        print(f"same answer: {(answers[0] == answers[1]).mean():.4f}")
        if table.truth is not None:
            truth = np.array([table.codes.index(t) for t in table.truth])
            print("accuracy: " + ", ".join(f"{(a == truth).mean():.4f}" for a in answers) + " (in full, reduced)")


if __name__ == "__main__":
    main()
