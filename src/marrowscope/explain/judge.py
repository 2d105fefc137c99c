"""Which heat maps of a model may be believed: every method through every test, beside maps that know nothing.

Figures of a method (`schema.MethodTests.figures`), each with its 95 % interval:

    not_flat          share of cells whose map is not the same everywhere
    other_class       mean rank correlation with the map of the second most probable class; 1: the class doesn't matter
    other_cell        mean rank correlation with the map of the next cell; 1: the picture doesn't matter
    deletion          mean area under the deletion curve; less is better
    insertion         mean area under the insertion curve; more is better
    deletion_gain     how much less than a map of chance on the same cells; above 0 is better
    insertion_gain    how much more than a map of chance
    spearman, ssim    similarity to the map of the wholly randomised network; less is better
    pointing_cell     share of phantoms whose hottest pixel lies on the cell; and pointing_nucleus
    energy_cell       mean share of the heat on the cell; and energy_nucleus
    energy_cell_gain  how much more than the cell's share of the picture; and energy_nucleus_gain

Checks (`schema.MethodTests.checks`), and what each demands:

    answers           at least `ANSWERS` of the maps are not flat
    faithful          deletion_gain and insertion_gain are above 0 with all of their intervals
    sanity            spearman is below `SANITY` with all of its interval: less than a quarter of the variance of the
                      ranks is left when the network has forgotten everything
    where             pointing_cell is above the cell's share of the area, and energy_cell_gain above 0, with all of
                      their intervals; counts only for a model trained on phantoms, as one of real cells may be at a
                      loss with drawings
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from marrowscope import __version__
from marrowscope.errors import DataError, ModelError, SplitError
from marrowscope.evaluate.figures import figure, proportion
from marrowscope.evaluate.intervals import bootstrap_weights, percentile_interval
from marrowscope.explain.curves import curves
from marrowscope.explain.heat import CONTROLS, Heat, is_flat, random_maps
from marrowscope.explain.masks import MaskedCells, energy_inside, masked_cells, pointing_hits
from marrowscope.explain.methods import METHODS, chosen_methods
from marrowscope.explain.selection import some_of_each
from marrowscope.explain.subject import NetworkSubject, Precision, Probabilities, need_packages
from marrowscope.images import Pixels
from marrowscope.occlusion import Fill
from marrowscope.schema import (
    Card,
    CascadeStep,
    ExplanationCheck,
    ExplanationTests,
    Figure,
    MethodTests,
    Part,
    RunInfo,
    Split,
)

if TYPE_CHECKING:
    from marrowscope.models import CellClassifier

ANSWERS = 0.9
SANITY = 0.5
DRAWS = 2000
PHANTOM_SEED = 74_201
"""Of the phantoms that are drawn for the tests; take another one if a model was trained on it."""

Columns = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Explainer = Callable[[NetworkSubject, Pixels, Columns], Heat]
"""Makes maps (N, size, size) of a subject's answers for N pictures and classes."""
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Settings:
    """How the tests are run.

    Attributes:
        cells: Of the part, for all figures but the next two; as many of each class as can be.
        phantoms: With masks.
        sanity_cells: Of the cells, for the sanity check.
        steps: Of the deletion and insertion curves.
        window: Of occlusion, as a share of the side.
        occlusion_steps: Of occlusion, a side.
        fill: Of occlusion.
        precision: ``bf16`` answers faster where the processor can, with three digits; maps are made in fp32.
        seed: Of chance: which cells, which shuffling, the bootstrap.
    """

    cells: int = 100
    phantoms: int = 100
    sanity_cells: int = 32
    steps: int = 10
    window: float = 0.2
    occlusion_steps: int = 10
    fill: Fill = "background"
    precision: Precision = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("cells", 2), ("phantoms", 0), ("sanity_cells", 2), ("steps", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ModelError(f"{name} is {getattr(self, name)}; allowed are {least} and more.")


def judge_run(
    run: Path,
    *,
    part: Part = "test",
    data: Path | None = None,
    methods: Sequence[str] | None = None,
    settings: Settings | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
) -> tuple[ExplanationTests, Path]:
    """Test the explanations of a run on cells of its split and on phantoms.

    Args:
        run: Run folder.
        part: Of its split.
        data: Folder of images; without it, the one that the run was trained on.
        methods: Names out of `METHODS`; None for all that fit the network.
        settings: How much, and the seed.
        output: Where to write; RUN/explanation-tests.json without it.
        progress: Called with (done, total).

    Returns:
        What was found, and where it was written.

    Raises:
        ModelError: No finished run, an unknown method, or one that doesn't fit.
        SplitError, DataError: The part is empty or its pictures can't be read.
        MissingExtraError: torch or grad-cam is not installed.
    """
    settings = settings or Settings()
    subject = _subject(Path(run), settings)
    card = subject.card
    names = chosen_methods(methods, subject.fitting, subject.not_fitting, f"the network of {run}")
    pictures, label_N = _cells(Path(run), card, part, data, settings)
    phantoms = masked_cells(card.codes, card.preprocessing, settings.phantoms, PHANTOM_SEED + settings.seed)
    trial = Trial(subject, pictures, phantoms, settings, card.training_data.synthetic)
    jobs = {**{m: (METHODS[m].title, False) for m in names}, **{c: (t, True) for c, (t, _) in CONTROLS.items()}}
    found = []
    for done, (name, (title, control)) in enumerate(jobs.items()):
        if progress is not None:
            progress(done, len(jobs))
        found.append(trial.judge(name, title, explainer(name), control=control))
    result = ExplanationTests(
        model=card.name,
        program=f"marrowscope {__version__}",
        weights_sha256=card.weights_sha256,
        part=part,
        synthetic=card.training_data.synthetic,
        n=len(pictures),
        right=int((trial.target_N == label_N).sum()),
        phantoms=len(phantoms),
        phantoms_right=trial.phantoms_right,
        cell_area=trial.mean(phantoms.cell_NHW.mean((1, 2))),
        nucleus_area=trial.mean(phantoms.nucleus_NHW.mean((1, 2))),
        settings=asdict(settings),
        thresholds={"answers": ANSWERS, "sanity": SANITY},
        methods=tuple(found),
        not_fitting=subject.not_fitting,
    )
    where = output or Path(run) / "explanation-tests.json"
    result.write(where)
    return result, where


def _subject(run: Path, settings: Settings) -> NetworkSubject:
    need_packages()
    from marrowscope.models import load_run_model

    model, card = load_run_model(run)
    return NetworkSubject(
        model,
        card,
        window=settings.window,
        steps=settings.occlusion_steps,
        fill=settings.fill,
        precision=settings.precision,
    )


def _cells(run: Path, card: Card, part: Part, data: Path | None, settings: Settings) -> tuple[Pixels, Columns]:
    """Prepared cells of a part, as many of each class as can be, and their true columns."""
    from marrowscope.datasets import CellImages, unreadable

    rows = Split.read(run / "split.csv").part(part)
    if not rows:
        raise SplitError(f"{run / 'split.csv'} has no image in the part {part!r}.")
    chosen = some_of_each(rows, settings.cells, settings.seed)
    root = Path(RunInfo.read(run / "run.json").data) if data is None else Path(data)
    images = CellImages(root, chosen, card.codes, card.preprocessing)
    pictures = np.empty((len(chosen), card.preprocessing.size, card.preprocessing.size, 3), dtype=np.uint8)
    if broken := images.load_into(np.arange(len(chosen)), pictures):
        raise unreadable(broken)
    return pictures, images.labels


def explainer(name: str) -> Explainer:
    """What makes the maps of a method or of a control."""
    if name in CONTROLS:
        make = CONTROLS[name][1]
        return lambda subject, pictures, target: make(pictures)
    return lambda subject, pictures, target: subject.maps(name, pictures, target)


class Trial:
    """The pictures that every method is tried on, and what all of them share.

    Attributes:
        target_N: Column of the most probable class of each cell: the answer that is explained.
        second_N: Column of the second most probable one.
        phantoms_right: How many phantoms the model names right.
    """

    def __init__(
        self, subject: NetworkSubject, pictures_NHWC: Pixels, phantoms: MaskedCells, settings: Settings, synthetic: bool
    ) -> None:
        if len(pictures_NHWC) < 2:
            raise DataError("The tests of explanations need at least two cells.")
        self.subject, self.pictures, self.phantoms = subject, pictures_NHWC, phantoms
        self.settings, self.synthetic = settings, synthetic
        probs = subject.answer(pictures_NHWC)
        order = np.argsort(-probs, axis=1, kind="stable")
        self.target_N, self.second_N = order[:, 0], order[:, 1]
        on_phantoms: Probabilities = subject.answer(phantoms.pictures_NHWC) if len(phantoms) else np.empty((0, 1))
        self.phantom_target_N = on_phantoms.argmax(1)
        named = [subject.codes[i] for i in self.phantom_target_N]
        self.phantoms_right = sum(a == b for a, b in zip(named, phantoms.codes, strict=True))
        self.chance = curves(
            subject.answer,
            pictures_NHWC,
            random_maps(pictures_NHWC, settings.seed + 1),
            self.target_N,
            steps=settings.steps,
            seed=settings.seed,
        )

    def judge(self, name: str, title: str, explain: Explainer, *, control: bool = False) -> MethodTests:
        """Put one way of making maps through all tests."""
        heat = explain(self.subject, self.pictures, self.target_N)
        drawn = curves(
            self.subject.answer, self.pictures, heat, self.target_N, steps=self.settings.steps, seed=self.settings.seed
        )
        figures = {
            "not_flat": self.share(np.array([not is_flat(h) for h in heat])),
            "deletion": self.mean(drawn.deletion_area),
            "insertion": self.mean(drawn.insertion_area),
            "deletion_gain": self.mean(self.chance.deletion_area - drawn.deletion_area),
            "insertion_gain": self.mean(drawn.insertion_area - self.chance.insertion_area),
        }
        steps, others = self._sanity(explain, heat)
        figures |= {**others, "spearman": steps[-1].spearman, "ssim": steps[-1].ssim}
        figures |= self._where(explain)
        checks = self._checks(figures)
        return MethodTests(
            method=name,
            title=title,
            control=control,
            figures=figures,
            deletion=tuple(float(v) for v in drawn.deletion_NK.mean(0)),
            insertion=tuple(float(v) for v in drawn.insertion_NK.mean(0)),
            cascade=steps,
            checks=checks,
            passed=all(c.passed for c in checks if c.counted),
        )

    def mean(self, values_N: npt.NDArray[np.floating]) -> Figure:
        """Mean of one value a cell, with the bootstrap's interval over cells."""
        n = len(values_N)
        if not n:
            return figure(np.nan, None, 0, "none (no cells)")
        groups = np.arange(n, dtype=np.int64)
        draws = [w @ values_N / n for w in bootstrap_weights(groups, DRAWS, self.settings.seed)]
        interval = percentile_interval(np.concatenate(draws))
        return figure(float(np.mean(values_N)), interval, n, f"bootstrap ({DRAWS} draws)")

    def share(self, hits_N: npt.NDArray[np.bool_]) -> Figure:
        """Share of hits with Wilson's interval."""
        return proportion(hits_N, np.arange(len(hits_N), dtype=np.int64))

    def _sanity(self, explain: Explainer, heat_NHW: Heat) -> tuple[tuple[CascadeStep, ...], dict[str, Figure]]:
        """The cascade, and how alike the maps of other classes and of other cells are, on the first cells."""
        from marrowscope.explain.sanity import sanity, similarity

        n = min(self.settings.sanity_cells, len(self.pictures))
        pictures, target = self.pictures[:n], self.target_N[:n]

        def maps(model: CellClassifier) -> Heat:
            if model is self.subject.model:
                return heat_NHW[:n]
            return explain(self.subject.of(model), pictures, target)

        steps = tuple(
            CascadeStep(randomised=share, spearman=self.mean(s.spearman_N), ssim=self.mean(s.ssim_N))
            for share, s in sanity(self.subject.model, pictures, maps, self.settings.seed)
        )
        of_second = explain(self.subject, pictures, self.second_N[:n])
        return steps, {
            "other_class": self.mean(similarity(heat_NHW[:n], of_second).spearman_N),
            "other_cell": self.mean(similarity(heat_NHW[:n], np.roll(heat_NHW[:n], 1, axis=0)).spearman_N),
        }

    def _where(self, explain: Explainer) -> dict[str, Figure]:
        if not len(self.phantoms):
            return {}
        heat = explain(self.subject, self.phantoms.pictures_NHWC, self.phantom_target_N)
        out = {}
        for what, mask in (("cell", self.phantoms.cell_NHW), ("nucleus", self.phantoms.nucleus_NHW)):
            energy = energy_inside(heat, mask)
            out[f"pointing_{what}"] = self.share(pointing_hits(heat, mask))
            out[f"energy_{what}"] = self.mean(energy)
            out[f"energy_{what}_gain"] = self.mean(energy - mask.mean((1, 2)))
        return out

    def _checks(self, figures: Mapping[str, Figure]) -> tuple[ExplanationCheck, ...]:
        f = {name: (v.value or 0.0, v.low or 0.0, v.high or 0.0) for name, v in figures.items()}
        checks = [
            ExplanationCheck(
                name="answers",
                passed=f["not_flat"][0] >= ANSWERS,
                counted=True,
                reason=f"{f['not_flat'][0]:.0%} of the maps are not flat; {ANSWERS:.0%} are demanded.",
            ),
            ExplanationCheck(
                name="faithful",
                passed=min(f["deletion_gain"][1], f["insertion_gain"][1]) > 0,
                counted=True,
                reason=f"Against a map of chance the area of deletion is less by {figures['deletion_gain']}, that of "
                f"insertion more by {figures['insertion_gain']}; both must be above 0.",
            ),
            ExplanationCheck(
                name="sanity",
                passed=f["spearman"][2] < SANITY,
                counted=True,
                reason=f"Rank correlation with the maps of the randomised network is {figures['spearman']}; it must be "
                f"below {SANITY:g}.",
            ),
        ]
        if len(self.phantoms):
            area = float(self.phantoms.cell_NHW.mean())
            own = "" if self.synthetic else " Not counted: the model was not trained on phantoms."
            checks.append(
                ExplanationCheck(
                    name="where",
                    passed=f["pointing_cell"][1] > area and f["energy_cell_gain"][1] > 0,
                    counted=self.synthetic,
                    reason=f"The hottest pixel lies on the cell in {figures['pointing_cell']} of the phantoms (chance: "
                    f"{area:.3f}), and {figures['energy_cell']} of the heat does.{own}",
                )
            )
        return tuple(checks)
