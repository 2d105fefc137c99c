"""A search over a grid of recipe values, judged on validation cells alone.

OUT/
    split.csv, split.json   the whole split, for training the chosen recipe afterwards
    index.csv               where the sweep made it
    tuning/                 the splits of the runs: train and val only; the test part is in none of them, nor,
                            for teachers (`train_only`), the val part of the whole split
    runs/VALUES/seed-S[-fold-F]/   a run folder each
    sweep.csv               one row a run, written anew after each

No run of a sweep has a test part, so none can be judged on it, by accident or otherwise. The best of many validation
scores is a little too good; only the test part, opened once for the recipe that was chosen, says how good it is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import statistics
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marrowscope.config import Recipe, load_recipe
from marrowscope.data.folds import make_folds
from marrowscope.data.index import build_index
from marrowscope.data.split import check_split
from marrowscope.errors import DivergedError, RecipeError, SplitError, TrainingError
from marrowscope.files import atomic_open, csv_line, make_folder, sha256_file
from marrowscope.schema import IndexRow, Split, count_parts, read_index, write_index
from marrowscope.train.checkpoint import Progress
from marrowscope.train.progress import Reporter
from marrowscope.train.run import check_fits, draw_split, recipe_hash, train, with_recipe_classes

Value = str | int | float | bool | list[Any]

_ONE_FOR_ALL = ("seed", "name", "classes", "merge", "drop", "data.ratios", "data.cap", "engine.monitor")
"""What all runs of a sweep have in common, or their scores could not be compared."""

_SCORES = ("val_loss", "val_accuracy", "val_macro_f1")
_COLUMNS = ("seed", "fold", "status", "epochs", "best_epoch", *_SCORES, "seconds", "run")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        values: The grid's values, by recipe key.
        seed: Of the recipe: start weights, order and augmentation; the split is the same for all.
        fold: The fold that validates; None where the split's val part does.
    """

    values: Mapping[str, Value]
    seed: int
    fold: int | None

    @property
    def folder(self) -> str:
        """Path of the run below OUT; depends on nothing but the trial, so that a larger grid finds its runs again."""
        text = "+".join(f"{k}={_plain(v)}" for k, v in self.values.items()) or "as-it-is"
        name = re.sub(r"[^A-Za-z0-9._=+-]", "_", text)
        if name != text or len(name) > 120:
            name = f"{name[:120]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return f"runs/{name}/seed-{self.seed}" + ("" if self.fold is None else f"-fold-{self.fold}")


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    Attributes:
        trial: Which one.
        status: ``finished``, ``diverged`` or ``stopped``.
        epochs: Epochs done.
        best_epoch: 1 the first; 0 where none was done.
        scores: Validation figures of the best epoch; empty where there is none.
        seconds: Of all epochs.
    """

    trial: Trial
    status: str
    epochs: int
    best_epoch: int
    scores: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Summary:
    """One combination of the grid: its validation score (the recipe's `engine.monitor`) over seeds and folds.

    `spread` is the standard deviation over the `n` runs (n - 1 in the denominator), None for one run.
    """

    values: Mapping[str, Value]
    n: int
    mean: float
    spread: float | None
    lowest: float
    highest: float


@dataclass(frozen=True)
class SweepResult:
    """All trials so far, the combinations best first, and why it was stopped (None where nothing is left to do)."""

    trials: tuple[TrialResult, ...]
    summaries: tuple[Summary, ...]
    monitor: str
    stopped_by: str | None


def sweep(
    recipe: Path,
    grid: Sequence[str],
    *,
    data: Path,
    out: Path,
    split: Path | None = None,
    index: Path | None = None,
    seeds: Sequence[int] = (),
    folds: int | None = None,
    train_only: bool = False,
    changes: Sequence[str] = (),
    limit_seconds: float | None = None,
    quiet: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> SweepResult:
    """Train every combination of a grid; call it again to go on, or with more values to add to it.

    Args:
        recipe: A recipe file.
        grid: ``key=v1,v2,...`` a dimension.
        data: Folder of images.
        out: Folder of the sweep.
        split: A split.csv, whose test part is left alone; without it, one is drawn by the recipe.
        index: Index of `data`, for drawing folds that keep its groups together; without it, `data` is indexed.
        seeds: Train each combination once a seed; without it, with the recipe's own.
        folds: Validate on each of so many folds of the cells outside the test part, in place of the val part.
        train_only: Draw the folds from the train part alone, so that their networks may teach one that is validated
            on the val part (``distil.view = "held-out"``).
        changes: ``key=value`` changes of the recipe, for all runs.
        limit_seconds: Stop at a checkpoint after this time.
        quiet: No progress bars.
        report: Called with a line before each run.

    Raises:
        RecipeError: A key or value that is not allowed; nothing was trained then.
        SplitError, TrainingError, DataError, ModelError, OutputError: As `train`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("A sweep runs in one process; start it without torchrun.")
    if train_only and folds is None:
        raise SplitError("--train-only is for --folds: without folds, the val part is what validates.")
    deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
    base = load_recipe(recipe, changes)
    dimensions = parse_grid(grid)
    seeds = tuple(dict.fromkeys(seeds)) or (base.seed,)
    combinations = [dict(zip(dimensions, v, strict=True)) for v in itertools.product(*dimensions.values())]
    recipes = {_key(c): [*changes, *(f"{k}={_text(v)}" for k, v in c.items())] for c in combinations}
    trials = [
        (Trial(c, s, f), load_recipe(recipe, [*recipes[_key(c)], f"seed={s}"]))
        for c in combinations
        for s in seeds
        for f in (range(folds) if folds is not None else (None,))
    ]
    splits = _tuning_splits(base, data, out, split, index, folds, train_only, quiet)
    results: list[TrialResult] = []
    stopped: str | None = None
    for i, (trial, one) in enumerate(trials, 1):
        report(f"{i}/{len(trials)}  {trial.folder.removeprefix('runs/')}")
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        result, stopped = _run(trial, one, data, out, splits[trial.fold], left, quiet)
        results.append(result)
        _write_table(out / "sweep.csv", list(dimensions), results, out)
        if stopped is not None:
            break
    return SweepResult(tuple(results), _summaries(results, base.engine.monitor), base.engine.monitor, stopped)


def parse_grid(texts: Sequence[str]) -> dict[str, list[Value]]:
    """Dimensions of a grid from ``key=v1,v2,...`` texts: TOML values, or words where they are no TOML.

    Raises:
        RecipeError: No ``=``, no value, one given twice, or a key that all runs of a sweep must share.
    """
    out: dict[str, list[Value]] = {}
    for text in texts:
        key, equals, raw = (part.strip() for part in text.partition("="))
        if not equals or not key or not raw:
            raise RecipeError(f"--grid {text!r}: write it as key=v1,v2, for example optimizer.learning_rate=1e-4,3e-4.")
        if key in out:
            raise RecipeError(f"--grid names {key} twice; give all its values at once.")
        if any(key == k or key.startswith(f"{k}.") for k in _ONE_FOR_ALL):
            hint = " Repeat the runs with --seeds." if key == "seed" else " Change it for all runs with --set."
            raise RecipeError(f"--grid {key}: all runs of a sweep have this in common.{hint}")
        try:
            values: list[Value] = tomllib.loads(f"x = [{raw}]")["x"]
        except tomllib.TOMLDecodeError:
            values = [word.strip() for word in raw.split(",")]
        if len(set(map(_text, values))) != len(values) or "" in values:
            raise RecipeError(f"--grid {text!r}: each value once, none empty.")
        out[key] = values
    return out


def _text(value: Value) -> str:
    """A value as TOML, which for what a recipe holds is JSON."""
    return json.dumps(value)


def _plain(value: Value) -> str:
    """A value for people: words without their quotes."""
    return value if isinstance(value, str) else _text(value)


def _key(values: Mapping[str, Value]) -> str:
    return json.dumps(values)


def _tuning_splits(
    recipe: Recipe,
    data: Path,
    out: Path,
    split: Path | None,
    index: Path | None,
    folds: int | None,
    train_only: bool,
    quiet: bool,
) -> dict[int | None, Path]:
    """The split of each fold (None: of the val part), without the test part; with `train_only`, without val too."""
    make_folder(out)
    whole = _whole_split(recipe, data, out, split, quiet)
    known = [r._replace(fold=None) for r in whole.rows if r.part == "train" or (r.part == "val" and not train_only)]
    held = len(whole.rows) - len(known)
    fold_of: dict[str, int | None] = {}
    if folds is not None:
        rows = _index_rows(data, out, index, {r.path for r in known}, quiet)
        codes, name = whole.info.codes, whole.info.class_set
        (drawn,) = make_folds(rows, codes=codes, class_set=name, k=folds, seed=recipe.seed)
        fold_of = {r.path: r.fold for r in drawn.rows}
    paths: dict[int | None, Path] = {}
    for fold in range(folds) if folds is not None else (None,):
        if fold is not None:
            known = [r._replace(part="val" if fold_of[r.path] == fold else "train") for r in known]
        parts = ("val and test parts ({}) are" if train_only else "test part ({}) is").format(f"{held} images")
        purpose = "for teachers" if train_only else "for tuning"
        note = f"the {parts} left out: {purpose}" + ("" if fold is None else f"; fold {fold}")
        update = {"folds": None, "counts": count_parts(known), "notes": (*whole.info.notes, note)}
        inside = "-of-train" if train_only else ""
        path = out / "tuning" / ("val.csv" if fold is None else f"fold-{fold}-of-{folds}{inside}.csv")
        tuning = Split(tuple(known), whole.info.model_copy(update=update))
        check_split(tuning, data)
        tuning.write(path)
        paths[fold] = path
    return paths


def _whole_split(recipe: Recipe, data: Path, out: Path, given: Path | None, quiet: bool) -> Split:
    """The split that is given, that the sweep has already, or a new one; kept as OUT/split.csv."""
    own = out / "split.csv"
    if given is not None:
        whole = Split.read(given)
        if own.exists() and Split.read(own).rows != whole.rows:
            raise TrainingError(f"This is not the split that the sweep was begun with ({own}). Leave --split out.")
    elif own.exists():
        whole = Split.read(own)
    else:
        with Reporter(quiet) as reporter:
            whole = draw_split(recipe, data, out, reporter)
    check_fits(whole, recipe)
    if not own.exists():
        whole.write(own)
    return whole


def _index_rows(data: Path, out: Path, given: Path | None, paths: set[str], quiet: bool) -> list[IndexRow]:
    path = given or out / "index.csv"
    if path.exists():
        rows = read_index(path)
    else:
        with Reporter(quiet) as reporter, reporter.task("index the images") as advance:
            rows = build_index(data, progress=advance)
        write_index(path, rows)
    found = [r for r in rows if r.path in paths]
    if len(found) < len(paths):
        lacking = len(paths) - len(found)
        raise SplitError(f"{path} lacks {lacking} images of the split. Give the --index that it was drawn from.")
    return found


def _run(
    trial: Trial, recipe: Recipe, data: Path, out: Path, split: Path, left: float | None, quiet: bool
) -> tuple[TrialResult, str | None]:
    """Train one trial, or take what it came to before; and why the sweep must stop, if it must."""
    run = out / trial.folder
    if not _finished(run, recipe, split):
        if left == 0.0:
            return _result(trial, run, "stopped"), "stopped by the time limit"
        try:
            done = train(recipe, data=data, out=run, split=split, resume=True, limit_seconds=left, quiet=quiet)
        except DivergedError:
            return _result(trial, run, "diverged"), None
        if not done.finished:
            return _result(trial, run, "stopped"), done.stopped_by
    return _result(trial, run, "finished"), None


def _finished(run: Path, recipe: Recipe, split: Path) -> bool:
    """Whether the run is done, with this recipe and split; looks at small files only."""
    state = run / "last" / "state.json"
    if not state.exists():
        return False
    progress = Progress.read(state)
    same = progress.recipe_sha256 == recipe_hash(recipe) and progress.split_sha256 == sha256_file(run / "split.csv")
    wanted = with_recipe_classes(Split.read(split), recipe)
    return progress.finished and same and Split.read(run / "split.csv").rows == wanted.rows


def _result(trial: Trial, run: Path, status: str) -> TrialResult:
    state = run / "last" / "state.json"
    history = Progress.read(state).history if state.exists() else ()
    best = Progress.read(state).best_epoch if history else -1
    scores = {k: history[best][k] for k in _SCORES} if best >= 0 else {}
    return TrialResult(trial, status, len(history), best + 1, scores, sum(row["seconds"] for row in history))


def _write_table(path: Path, keys: Sequence[str], results: Sequence[TrialResult], out: Path) -> None:
    with atomic_open(path) as f:
        f.write(csv_line([*keys, *_COLUMNS]))
        for r in results:
            t = r.trial
            values = [_plain(t.values[k]) for k in keys]
            scores = [f"{r.scores[k]:.6g}" if k in r.scores else "" for k in _SCORES]
            fold = "" if t.fold is None else str(t.fold)
            place = [str(t.seed), fold, r.status, str(r.epochs), str(r.best_epoch), *scores, f"{r.seconds:.1f}"]
            f.write(csv_line([*values, *place, t.folder]))


def _summaries(results: Sequence[TrialResult], monitor: str) -> tuple[Summary, ...]:
    """Combinations with finished runs, best mean first."""
    found: dict[str, list[TrialResult]] = {}
    for r in results:
        if r.status == "finished":
            found.setdefault(_key(r.trial.values), []).append(r)
    out = []
    for group in found.values():
        scores = [r.scores[monitor] for r in group]
        spread = statistics.stdev(scores) if len(scores) > 1 else None
        values = group[0].trial.values
        out.append(Summary(values, len(scores), statistics.fmean(scores), spread, min(scores), max(scores)))
    return tuple(sorted(out, key=lambda s: s.mean, reverse=monitor != "val_loss"))


def lines(result: SweepResult) -> list[str]:
    """A table of the combinations, best first, and what to know about it."""
    rows = [["mean", "spread", "lowest", "highest", "runs", "values"]]
    for s in result.summaries:
        values = "  ".join(f"{k}={_text(v)}" for k, v in s.values.items()) or "the recipe as it is"
        spread = "-" if s.spread is None else f"{s.spread:.4f}"
        rows.append([f"{s.mean:.4f}", spread, f"{s.lowest:.4f}", f"{s.highest:.4f}", str(s.n), values])
    out = [f"{result.monitor} of the best epoch, on validation cells:"]
    out += ["  ".join(cell.rjust(8) for cell in row[:-1]) + f"  {row[-1]}" for row in rows]
    failed = [r.trial.folder for r in result.trials if r.status == "diverged"]
    out += [f"diverged: {folder}" for folder in failed]
    if len(result.summaries) > 1:
        out.append("The best of several is a little too good; the test part, opened once, says how good it is.")
    return out
