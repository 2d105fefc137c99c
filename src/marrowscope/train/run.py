"""A run from its folder's point of view: set up, train, checkpoint, resume, describe.

RUN/
    config.toml            the resolved recipe            split.csv, split.json   which image was used for what
    run.json               data, device, versions         index.csv               where the run made it itself
    metrics.csv            one row an epoch               tensorboard/            the same curves
    best.safetensors       weights of the best epoch      card.json               what the model is
    last/                  state to resume from
    teachers.json          where it has teachers; and their answers (teachers.safetensors) where kept
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

import marrowscope
from marrowscope.cells import class_set
from marrowscope.config import Recipe, load_recipe, recipe_toml
from marrowscope.data.folds import fold_split
from marrowscope.data.index import build_index
from marrowscope.data.provenance import is_synthetic, training_data
from marrowscope.data.split import check_its_index, check_split, make_split, relabel
from marrowscope.datasets import CellImages, pack_on_disk
from marrowscope.errors import OutputError, SplitError, TrainingError
from marrowscope.files import make_folder, sha256_file, write_text
from marrowscope.models import build_model
from marrowscope.schema import Card, RunInfo, Split, write_index, write_metrics
from marrowscope.train.checkpoint import (
    Progress,
    load_state,
    optimizer_tensors,
    restore_optimizer,
    save_state,
    save_tensors,
)
from marrowscope.train.distil import check_unseen, keep_record, load_teachers, training_spec
from marrowscope.train.loop import Learner, train_epoch, validate
from marrowscope.train.progress import Reporter, TrainingReport
from marrowscope.train.runtime import StopWish, choose_attention, compiled, make_fabric, synchronised, versions
from marrowscope.train.schedule import Ema, make_optimizer
from marrowscope.train.tally import STEPS_BETWEEN_LOOKS


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended.

    Attributes:
        run: The run folder.
        finished: False where it was stopped before the last epoch and can be resumed.
        stopped_by: Why, in words; None where it finished.
        best_epoch: Epoch (1 the first) of the best weights; 0 before the first validation.
        best_score: Its validation score (the recipe's `engine.monitor`).
    """

    run: Path
    finished: bool
    stopped_by: str | None
    best_epoch: int
    best_score: float | None


def train(
    recipe: Recipe,
    *,
    data: Path,
    out: Path,
    split: Path | None = None,
    index: Path | None = None,
    fold: int | None = None,
    resume: bool = False,
    limit_seconds: float | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train a recipe on the images under `data`, in the run folder `out`.

    Args:
        recipe: As `config.load_recipe` gives it.
        data: Folder of images.
        out: Run folder; made if it isn't there.
        split: A split.csv; without it, the run indexes `data` and draws a split by the recipe's `data.ratios`,
            `data.cap` and `seed`.
        index: The index that the split was drawn from, to check that it fits; without it, an index.csv beside the
            split, if there is one.
        fold: With a split that has folds: test on this one, validate on the next, train on the rest.
        resume: Go on from the run's last state; starts from the beginning where there is none.
        limit_seconds: Stop at a checkpoint after this time.
        quiet: No progress bars.

    Raises:
        TrainingError: `out` holds a run and `resume` is False, another process uses it, its recipe or split is
            another one, or the loss became not finite.
        DataError, SplitError, ModelError, OutputError: As the stages say.
    """
    stop = StopWish(limit_seconds)
    make_folder(out)
    fabric = make_fabric(recipe.engine)
    with _lock(out, fabric), stop, Reporter(quiet or fabric.global_rank > 0) as reporter:
        if fabric.global_rank == 0:
            _set_up_folder(recipe, data, out, _chosen_split(split, index, fold), resume, reporter)
        fabric.barrier()
        the_split = Split.read(out / "split.csv")
        if fabric.global_rank == 0:
            _write_run_info(recipe, data, out, fabric)
        learner = _make_learner(fabric, recipe, data, out, the_split, reporter)
        progress = _start_or_resume(learner, recipe, out)
        with reporter.training(recipe) as report:
            place = _Place(recipe, data, out, the_split)
            while not progress.finished:
                progress = _advance(learner, progress, place, stop, report)
                if _agreed(fabric, bool(stop)):
                    break
    reason = None if progress.finished else f"stopped by {stop.reason}"
    score = progress.best_score
    if score is not None and recipe.engine.monitor == "val_loss":
        score = -score
    return TrainResult(out, progress.finished, reason, progress.best_epoch + 1, score)


@contextlib.contextmanager
def _lock(out: Path, fabric: Fabric) -> Iterator[None]:
    """Keep a second process from training in the same folder; the lock ends with the process, however it ends."""
    if fabric.global_rank > 0:
        yield
        return
    with (out / ".lock").open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"Another process trains in {out}. Wait for it, or choose another --out.") from None
        yield


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of a recipe; a run goes on only with the same."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()


def _set_up_folder(
    recipe: Recipe, data: Path, out: Path, split: Split | None, resume: bool, reporter: Reporter
) -> None:
    """Write config.toml and split.csv, or check that those of the run to resume are the same."""
    config, own_split = out / "config.toml", out / "split.csv"
    if config.exists():
        if not resume:
            raise TrainingError(f"{out} holds a run already. Add --resume to go on with it, or choose another --out.")
        _check_same_recipe(load_recipe(config), recipe, config)
    if split is not None:
        check_fits(split, recipe)
        chosen = with_recipe_classes(split, recipe)
        if own_split.exists() and Split.read(own_split).rows != chosen.rows:
            raise TrainingError(f"This is not the split that the run was begun with ({own_split}). Leave --split out.")
    elif own_split.exists():
        chosen = Split.read(own_split)
    else:
        chosen = with_recipe_classes(draw_split(recipe, data, out, reporter), recipe)
    check_split(chosen, data)
    if not own_split.exists():
        chosen.write(own_split)
    if not config.exists():
        write_text(config, recipe_toml(recipe))


def _chosen_split(path: Path | None, index: Path | None, fold: int | None) -> Split | None:
    """The split that is given, or one fold of it, once it fits its index."""
    if path is None:
        if fold is not None:
            raise SplitError("--fold needs a --split with folds: marrowscope split INDEX --classes ... --folds 5")
        if index is not None:
            raise SplitError("--index is there to check a --split against it; give both, or neither.")
        return None
    split = Split.read(path)
    check_its_index(split, path, index)
    return split if fold is None else fold_split(split, fold)


def draw_split(recipe: Recipe, data: Path, out: Path, reporter: Reporter) -> Split:
    """Index the images, keep the index in `out`, and draw the split that the recipe describes."""
    with reporter.task("index the images") as advance:
        rows = build_index(data, progress=advance)
    write_index(out / "index.csv", rows)
    classes = class_set(recipe.classes)
    return make_split(
        rows,
        codes=classes.codes,
        class_set=classes.name,
        ratios=recipe.data.ratios,
        seed=recipe.seed,
        cap=recipe.data.cap,
    )


def _check_same_recipe(old: Recipe, new: Recipe, path: Path) -> None:
    if old == new:
        return
    a, b = _flat(old.model_dump()), _flat(new.model_dump())
    differing = [f"{k}: {a.get(k)!r} there, {b.get(k)!r} now" for k in sorted(a | b) if a.get(k) != b.get(k)]
    raise TrainingError(
        f"The recipe is not the one that the run was begun with ({path}):\n  "
        + "\n  ".join(differing)
        + "\nResume with the same recipe, or choose another --out."
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for k, v in values.items():
        out |= _flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v}
    return out


def with_recipe_classes(split: Split, recipe: Recipe) -> Split:
    """Merge and drop classes as the recipe says."""
    if not recipe.merge and not recipe.drop:
        return split
    return relabel(split, merge=recipe.merge, drop=recipe.drop, class_set=recipe.class_set_name)


def check_fits(split: Split, recipe: Recipe) -> None:
    """Check that a split is of the recipe's classes, before merging and dropping."""
    wanted = class_set(recipe.classes).codes
    if tuple(split.info.codes) != wanted:
        raise SplitError(
            f"The split is of the classes {' '.join(split.info.codes)}; the recipe wants {' '.join(wanted)}. "
            "Draw a split with --classes as in the recipe, or change the recipe's classes."
        )


def _write_run_info(recipe: Recipe, data: Path, out: Path, fabric: Fabric) -> None:
    RunInfo(
        data=str(data),
        synthetic=is_synthetic(data),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        device=torch.cuda.get_device_name() if fabric.device.type == "cuda" else "cpu",
        precision=str(fabric._precision.precision),
        cpu_threads=torch.get_num_threads(),
    ).write(out / "run.json")


def _make_learner(fabric: Fabric, recipe: Recipe, data: Path, out: Path, split: Split, reporter: Reporter) -> Learner:
    _check_shares(fabric, recipe, split)
    start = Path(recipe.model.weights).parent
    if recipe.model.weights not in {"hub", "none"} and (start / "split.csv").is_file():
        check_unseen(start, split, f"The run of the start weights {recipe.model.weights}")
    codes = recipe.codes
    torch.manual_seed(recipe.seed)
    module = build_model(recipe.model, len(codes), recipe.image)
    if recipe.engine.channels_last:
        module = module.to(memory_format=torch.channels_last)
    module = synchronised(module.to(fabric.device), fabric)
    choose_attention(module, recipe.engine, fabric)
    ema = Ema(module, copy.deepcopy(module), recipe.engine.ema) if recipe.engine.ema else None
    network = compiled(module, fabric) if recipe.engine.compile else module
    model, optimizer = fabric.setup(network, make_optimizer(module, recipe.optimizer))
    teachers = load_teachers(recipe, split, fabric)
    if fabric.global_rank == 0:
        keep_record(teachers, out)
    train_images = CellImages(data, split.part("train"), codes, training_spec(recipe, teachers))
    val_images = CellImages(data, split.part("val"), codes, recipe.image)
    if teachers is not None:
        with reporter.task("ask the teachers") as advance:
            teachers.answer_all(train_images, out, advance)
    _keep_pictures(recipe, {"train": train_images, "val": val_images}, out, reporter)
    return Learner(fabric, recipe, module, model, optimizer, ema, train_images, val_images, len(codes), teachers)


def _check_shares(fabric: Fabric, recipe: Recipe, split: Split) -> None:
    """Every process must have pictures in every step."""
    world, size = fabric.world_size, recipe.engine.batch_size
    if world > 1 and (size % world or size < 2 * world):
        raise TrainingError(
            f"engine.batch_size ({size}) must be a multiple of the {world} processes, and {2 * world} or more."
        )
    for part in ("train", "val"):
        pictures, least = len(split.part(part)), 2 * world if part == "train" else 1
        if pictures < least:
            raise SplitError(
                f"The split has {pictures} picture(s) in the part {part!r}; training needs {least} or more."
            )


def _keep_pictures(recipe: Recipe, parts: dict[str, CellImages], out: Path, reporter: Reporter) -> None:
    """Prepare the pictures once, in memory or on the disk, as the recipe says."""
    if recipe.data.cache == "memory":
        for name, images in parts.items():
            with reporter.task(f"read the {name} images") as advance:
                images.fill_cache(advance)
    elif recipe.data.cache == "disk":
        folder = recipe.data.cache_folder
        where = Path(folder).expanduser() if folder else out.parent / "cache"
        # One file for each way of preparing: where there are teachers, the parts may differ in size.
        for spec in dict.fromkeys(images.spec for images in parts.values()):
            with reporter.task("check or make the picture cache") as advance:
                pack_on_disk([images for images in parts.values() if images.spec == spec], where, advance)


def _start_or_resume(learner: Learner, recipe: Recipe, out: Path) -> Progress:
    fresh = Progress(recipe_sha256=recipe_hash(recipe), split_sha256=sha256_file(out / "split.csv"))
    state = load_state(out / "last")
    if state is None:
        return fresh
    progress, weights, optimizer = state
    if progress.split_sha256 != fresh.split_sha256 or progress.recipe_sha256 != fresh.recipe_sha256:
        raise TrainingError(f"{out}/config.toml or split.csv is not the one of the state in {out}/last any more.")
    learner.module.load_state_dict(weights)
    restore_optimizer(learner.optimizer, optimizer)
    if learner.ema is not None:
        learner.ema.module.load_state_dict(
            {k.removeprefix("ema."): v for k, v in optimizer.items() if k.startswith("ema.")}
        )
    return progress


def _save(learner: Learner, progress: Progress, out: Path) -> Progress:
    """Checkpoint (the first process does it for all)."""
    if learner.fabric.global_rank == 0:
        tensors = optimizer_tensors(learner.optimizer)
        if learner.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in learner.ema.module.state_dict().items()}
        progress = save_state(out / "last", progress, learner.module.state_dict(), tensors)
    learner.fabric.barrier()
    return progress


@dataclass(frozen=True)
class _Place:
    """What a run works on, and where it writes."""

    recipe: Recipe
    data: Path
    out: Path
    split: Split


def _agreed(fabric: Fabric, wish: bool) -> bool:
    """Whether any process has the wish: all must leave the loop at the same step."""
    if fabric.world_size == 1:
        return wish
    total = fabric.all_reduce(torch.tensor(float(wish), device=fabric.device), reduce_op="sum")
    return bool(total > 0)  # type: ignore[operator]


def _advance(learner: Learner, progress: Progress, place: _Place, stop: StopWish, report: TrainingReport) -> Progress:
    """Train until the epoch ends, a checkpoint is due or somebody wants to stop; then write the checkpoint."""
    begin, longest = time.monotonic(), 60 * place.recipe.engine.checkpoint_minutes

    def should_pause(p: Progress) -> bool:
        if learner.fabric.world_size > 1 and learner.fabric.device.type != "cpu" and p.step % STEPS_BETWEEN_LOOKS:
            return False  # to agree is to wait for the device
        return _agreed(learner.fabric, bool(stop) or time.monotonic() - begin > longest)

    steps = len(learner.order(progress.epoch))
    progress = train_epoch(learner, progress, after_step=report.step, should_pause=should_pause)
    if progress.step_in_epoch == steps:
        progress = _end_epoch(learner, progress, place)
        report.epoch(progress)
    return _save(learner, progress, place.out)


def _end_epoch(learner: Learner, progress: Progress, place: _Place) -> Progress:
    """Validate, keep the weights if they are the best, write the metrics; returns the start of the next epoch."""
    recipe, out, sums = place.recipe, place.out, progress.sums
    scores = validate(learner)
    row = {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "learning_rate": max(g["lr"] for g in learner.optimizer.param_groups),
        "train_loss": sums["loss"] / sums["seen"],
        "train_accuracy": sums["correct"] / sums["seen"],
        **scores,
        "images_per_second": sums["seen"] / max(sums["seconds"], 1e-9),
        "seconds": sums["seconds"],
    }
    score = -scores["val_loss"] if recipe.engine.monitor == "val_loss" else scores[recipe.engine.monitor]
    better = progress.best_score is None or score > progress.best_score
    best_epoch = progress.epoch if better else progress.best_epoch
    history = (*progress.history, row)
    patience = recipe.schedule.patience
    tired = patience > 0 and progress.epoch - best_epoch >= patience
    ended = progress.model_copy(
        update={
            "epoch": progress.epoch + 1,
            "step_in_epoch": 0,
            "sums": Progress(recipe_sha256="", split_sha256="").sums,
            "history": history,
            "best_score": score if better else progress.best_score,
            "best_epoch": best_epoch,
            "finished": progress.epoch + 1 == recipe.schedule.epochs or tired,
        }
    )
    if learner.fabric.global_rank == 0:
        if better:
            save_tensors(
                out / "best.safetensors",
                learner.averaged.state_dict(),
                {"epoch": str(progress.epoch + 1), recipe.engine.monitor: f"{abs(score):.6f}"},
            )
        _write_card(learner, place, ended)
        write_metrics(out / "metrics.csv", history)
        _write_tensorboard(out / "tensorboard", row)
    return ended


def _write_tensorboard(folder: Path, row: dict[str, float]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    try:
        # purge_step hides what an interrupted run wrote of this epoch.
        with SummaryWriter(str(folder), purge_step=int(row["epoch"])) as writer:
            for name, value in row.items():
                if name not in {"epoch", "step"}:
                    writer.add_scalar(name.replace("_", "/", 1), value, int(row["epoch"]))
    except OSError as e:
        raise OutputError(f"Can't write {folder}: {e.strerror or e}. Make room, then --resume.") from e


def _origin(weights: str) -> str:
    """What a card says of the weights that a training began with."""
    if weights in {"hub", "none"}:
        return weights
    path = Path(weights)
    card = path.with_name("card.json")
    return f"{path.name} of the run {Card.read(card).name}" if card.is_file() else path.name


def _write_card(learner: Learner, place: _Place, progress: Progress) -> None:
    recipe = place.recipe
    best = progress.history[progress.best_epoch]
    Card(
        name=recipe.name,
        program=f"marrowscope {marrowscope.__version__}",
        architecture=recipe.model.name,
        parameters=sum(p.numel() for p in learner.module.parameters()),
        pretrained=_origin(recipe.model.weights),
        teachers=() if learner.teachers is None else tuple(t.name for t in learner.teachers.record.teachers),
        class_set=recipe.class_set_name,
        codes=recipe.codes,
        preprocessing=recipe.image,
        training_data=training_data(place.data, recipe.data.source, place.split),
        seed=recipe.seed,
        epochs=progress.epoch,
        best_epoch=progress.best_epoch + 1,
        validation={k: best[k] for k in ("val_loss", "val_accuracy", "val_macro_f1")},
        weights_sha256=sha256_file(place.out / "best.safetensors"),
    ).write(place.out / "card.json")
