"""The last words of `make demo`: how well it went, where to look, and how to do the same on real cells."""

from __future__ import annotations

import sys
from pathlib import Path

from marrowscope.schema import Evaluation


def main() -> None:
    demo = Path(sys.argv[1])
    result = Evaluation.read(demo / "run" / "evaluation.json")
    accuracy = result.figures["accuracy"]
    print(f"""
Done, on synthetic cells that the package drew itself (they say nothing about real marrow).
  test accuracy   {accuracy}  on {result.n} cells of {len(result.codes)} classes, 95 % interval
  report          {demo / "run" / "report.html"}
  predictions     {demo / "predictions.csv"}

Further sections of the report: strange and changed pictures, and heat maps with their tests.
  .venv/bin/marrowscope evaluate {demo / "run"} --novelty --robustness all
  .venv/bin/marrowscope explain {demo / "run"} --test
  .venv/bin/marrowscope report {demo / "run"}

The same on the real collection (171,374 cells; a GPU is of help), its folder being COLLECTION:
  .venv/bin/marrowscope index COLLECTION -o index.csv
  .venv/bin/marrowscope split index.csv --classes marrow-14 --cap 2700 -o split.csv
  .venv/bin/marrowscope train recipes/resnet50.toml --data COLLECTION --split split.csv --out runs/resnet50
  .venv/bin/marrowscope evaluate runs/resnet50
  .venv/bin/marrowscope report runs/resnet50

Not a medical device.""")


if __name__ == "__main__":
    main()
