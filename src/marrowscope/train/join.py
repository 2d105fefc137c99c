"""Several trained runs as one: a run folder whose network answers with the mean of theirs.

Networks that differ in nothing but the seed err in different places, so that their mean is better than each of them
(Lakshminarayanan et al. 2017, arXiv:1612.01474). The run that comes out is evaluated, explained, exported and taken for
a teacher as any other; its calibration and thresholds are fitted for the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import marrowscope
from marrowscope.config import Recipe, load_recipe, parse_recipe, recipe_toml
from marrowscope.data.provenance import is_synthetic
from marrowscope.data.split import check_split
from marrowscope.datasets import CellImages
from marrowscope.errors import ModelError, SplitError, TrainingError
from marrowscope.evaluate.metrics import confusion_matrix
from marrowscope.files import make_folder, sha256_file, write_text
from marrowscope.models import CellClassifier, load_run_model, mean_of_networks
from marrowscope.outputs import cell_outputs
from marrowscope.schema import Card, CardMember, RunInfo, Split
from marrowscope.train.checkpoint import save_tensors
from marrowscope.train.loop import validation_scores
from marrowscope.train.runtime import versions


@dataclass(frozen=True)
class _Member:
    """A run that is joined."""

    path: Path
    model: CellClassifier
    card: Card
    recipe: Recipe


def join(runs: Sequence[Path], out: Path, *, name: str | None = None, data: Path | None = None) -> Card:
    """Write a run folder whose network answers with the mean of the probabilities of several runs' best networks.

    Beside the weights it has what later stages read: config.toml, split.csv, run.json, card.json and, where the first
    run has one, index.csv. There is no training to go on with, and no curve.

    Args:
        runs: Two run folders or more, trained on one split, with the same classes. Their networks may differ, and take
            pictures in sizes and normalisations of their own; then pictures are prepared for the largest, and made
            smaller for the others.
        out: Run folder to make.
        name: Name of the model; without it, that of the first run.
        data: Folder of images; without it, the one that the first run was trained on.

    Returns:
        The card, with the validation scores of the mean.

    Raises:
        TrainingError: Fewer than two runs, the same weights twice, or `out` holds a run.
        ModelError: A run has no model yet, was joined itself, or the models differ in classes, or in how pictures are
            prepared otherwise than by size, mean and std.
        SplitError: The runs were trained on different splits, or there is no validation part.
        RecipeError: `name` is not allowed.
        DataError: A validation picture can't be read any more.
        OutputError: `out` can't be written.
    """
    if (out / "config.toml").exists():
        raise TrainingError(f"{out} holds a run already. Choose another --out.")
    if len(runs) < 2:
        raise TrainingError(f"Joining needs two runs or more; {len(runs)} given.")
    members = [_member(Path(run)) for run in runs]
    for other in members[1:]:
        _check_alike(members[0], other)
    _check_different(members)
    first = members[0]
    recipe = _recipe(members, name)
    split, root = Split.read(first.path / "split.csv"), Path(_info(first.path).data) if data is None else Path(data)
    check_split(split, root)
    networks, images = [m.model.backbone for m in members], [m.card.preprocessing for m in members]
    model = CellClassifier(mean_of_networks(networks, images, recipe.image), recipe.image).eval()
    scores = _validation_scores(model, recipe, split, root)
    make_folder(out)
    split.write(out / "split.csv")
    if (first.path / "index.csv").is_file():
        write_text(out / "index.csv", (first.path / "index.csv").read_text(encoding="utf-8"))
    save_tensors(out / "best.safetensors", model.state_dict())
    _info(first.path).model_copy(
        update={
            "data": str(root),
            "synthetic": is_synthetic(root),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }
    ).write(out / "run.json")
    write_text(out / "config.toml", recipe_toml(recipe))
    card = _card(members, recipe, scores, out / "best.safetensors")
    card.write(out / "card.json")  # last: without a card it is no run yet
    return card


def _member(run: Path) -> _Member:
    model, card = load_run_model(run)
    if card.members:
        raise ModelError(f"{run} was joined from {len(card.members)} runs itself. Join those with the others at once.")
    return _Member(run, model, card, load_recipe(run / "config.toml"))


def _info(run: Path) -> RunInfo:
    return RunInfo.read(run / "run.json")


def _check_alike(first: _Member, other: _Member) -> None:
    for what, ours, theirs in (
        ("class_set", first.card.class_set, other.card.class_set),
        ("codes", first.card.codes, other.card.codes),
        *((f"preprocessing.{k}", v, _cutting(other)[k]) for k, v in _cutting(first).items()),
    ):
        if ours != theirs:
            raise ModelError(
                f"{first.path} and {other.path} differ in {what} ({ours}; {theirs}). Join runs of one class set whose "
                "[image] sections differ in nothing but size, mean and std; `predict A.onnx,B.onnx` averages models "
                "that prepare pictures in any way."
            )
    if Split.read(first.path / "split.csv").rows != Split.read(other.path / "split.csv").rows:
        raise SplitError(
            f"{first.path} and {other.path} were trained on different splits, so that one may have learnt what the "
            f"other is judged on. Train on the same: --split {first.path / 'split.csv'}"
        )


def _cutting(member: _Member) -> dict[str, Any]:
    """How pictures are prepared, but for what a network can do within itself."""
    return member.card.preprocessing.model_dump(exclude={"size", "mean", "std"})


def _check_different(members: Sequence[_Member]) -> None:
    seen: dict[str, Path] = {}
    for m in members:
        if m.card.weights_sha256 in seen:
            raise TrainingError(
                f"{seen[m.card.weights_sha256]} and {m.path} have the same weights. Give each run once."
            )
        seen[m.card.weights_sha256] = m.path


def _recipe(members: Sequence[_Member], name: str | None) -> Recipe:
    """The first run's recipe, with all networks named."""
    values = members[0].recipe.model_dump()
    # What only matters in training goes: not every kind of network takes it.
    values["model"] |= {"drop_path": 0.0, "dropout": 0.0, "patch_drop": 0.0}
    values["model"]["name"] = " + ".join(m.recipe.model.name for m in members)
    images = [m.card.preprocessing for m in members]
    if len(set(images)) > 1:
        values["image"] = max(images, key=lambda i: i.size)
        values["model"]["images"] = images
    if name is not None:
        values["name"] = name
    return parse_recipe(values, "The joined recipe")


def _validation_scores(model: CellClassifier, recipe: Recipe, split: Split, data: Path) -> dict[str, float]:
    """What a card says of validation, for the mean before any scaling."""
    rows = split.part("val")
    if not rows:
        raise SplitError("The split has no image in the part 'val', on which the mean is judged and calibrated.")
    images = CellImages(data, rows, recipe.codes, recipe.image)
    logits = torch.from_numpy(cell_outputs(model, images).logits_NC)
    labels = torch.from_numpy(images.labels)
    counts = confusion_matrix(images.labels, logits.argmax(1).numpy(), len(recipe.codes))
    return validation_scores(float(F.cross_entropy(logits, labels)), counts)


def _card(members: Sequence[_Member], recipe: Recipe, scores: dict[str, float], weights: Path) -> Card:
    cards = [m.card for m in members]
    return Card(
        name=recipe.name,
        program=f"marrowscope {marrowscope.__version__}",
        architecture=recipe.model.name,
        parameters=sum(c.parameters for c in cards),
        pretrained=" and ".join(dict.fromkeys(c.pretrained for c in cards)),
        teachers=tuple(dict.fromkeys(t for c in cards for t in c.teachers)),
        members=tuple(
            CardMember(
                name=c.name,
                architecture=c.architecture,
                seed=c.seed,
                epochs=c.epochs,
                best_epoch=c.best_epoch,
                weights_sha256=c.weights_sha256,
                input_px=c.preprocessing.size if recipe.model.images else None,
            )
            for c in cards
        ),
        class_set=cards[0].class_set,
        codes=cards[0].codes,
        preprocessing=recipe.image,
        training_data=cards[0].training_data,
        seed=cards[0].seed,
        epochs=cards[0].epochs,
        best_epoch=cards[0].best_epoch,
        validation=scores,
        weights_sha256=sha256_file(weights),
    )
