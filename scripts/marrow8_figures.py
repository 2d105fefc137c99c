"""Two figures of docs/results.md that no command prints.

    python scripts/marrow8_figures.py RUN DATA

RUN was evaluated, and `marrowscope predict RUN/model.onnx DATA -o RUN/all.csv` was run. Prints the accuracy on the test
cells of all classes but ART (ART stays a possible answer), and the largest difference of a probability between the
checkpoint's answers (predictions.csv) and the ONNX file's (all.csv) on the test cells.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from marrowscope.evaluate.intervals import wilson_interval
from marrowscope.schema import Predictions


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    run, data = map(Path, sys.argv[1:])
    judged, served = Predictions.read(run / "predictions.csv"), Predictions.read(run / "all.csv")
    assert judged.truth is not None
    kept = [i for i, t in enumerate(judged.truth) if t != "ART"]
    hits = sum(judged.codes[judged.probs_NC[i].argmax()] == judged.truth[i] for i in kept)
    low, high = wilson_interval(hits, len(kept))
    print(f"without ART: {hits} of {len(kept)} right, {hits / len(kept):.3f} ({low:.3f}-{high:.3f})")
    place = {p: i for i, p in enumerate(served.paths)}
    same = served.probs_NC[[place[str(data / p)] for p in judged.paths]]
    print(f"{len(same)} test cells: largest difference of a probability {np.abs(same - judged.probs_NC).max():.1e}")


if __name__ == "__main__":
    main()
