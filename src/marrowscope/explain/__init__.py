"""Heat maps: what a model's answer for a cell hangs on, and tests of whether to believe them.

`explain` (``marrowscope explain MODEL PATH... -o FOLDER``) writes a folder:

    explanations.json            what is here (`schema.Explanations`): the methods, a row a picture, a row a grid
    arrays/00001.npz             of one picture, by method: float32 (size, size), 0 or more, not scaled, on the prepared
                                 picture (`images.prepare`); read with ``numpy.load(file)[method]``
    overlays/00001-gradcam.png   cell and overlay side by side, in a frame: green and R where the answer was right,
                                 vermilion and W where it was wrong, grey where no truth is known
    grids/BLA-gradcam.png        the cells of a class (their true one, or else the answer), up to `run.PER_GRID`

Names of files in the JSON are relative to the folder. A report embeds some of the overlays that the JSON names, shrunk,
and needs only `schema.Explanations.read`.

`judge_run` (``marrowscope explain RUN --test``) writes RUN/explanation-tests.json (`schema.ExplanationTests`): each
method through each test, beside controls, and which passed; `judge` says what each figure is.

    methods     the ways of making heat maps
    subject     what is explained: an ONNX file (answers alone) or a network
    layers      where to look in a timm network
    cam         class activation maps         attention   rollout and relevance
    heat        flat maps, and controls       drawing     overlays and grids
    masks       pointing game, energy inside  curves      deletion and insertion    sanity   randomised weights
    judge       all tests of one run          run         the folder of heat maps
"""

from __future__ import annotations

from marrowscope.explain.judge import Settings, judge_run
from marrowscope.explain.methods import METHODS
from marrowscope.explain.run import PartPictures, explain, part_pictures
from marrowscope.explain.subject import Subject, open_subject

__all__ = [
    "METHODS",
    "PartPictures",
    "Settings",
    "Subject",
    "explain",
    "judge_run",
    "open_subject",
    "part_pictures",
]
