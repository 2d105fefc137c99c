r"""Turn an exported convolutional network back into a run folder, so that it can teach another one.

    python scripts/run_from_file.py marrow8 recipes/marrow8-cnn.toml --split split.csv --out runs/marrow8
    marrowscope train recipes/fast.toml --data DATA --split split.csv --out runs/marrow8-fast

MODEL is an ONNX file of `marrowscope export` or the name of a bundled model; the split is the one that it was trained
on, which no file holds. An exported network has its batch norms folded into its convolutions, and perhaps its weights
rounded: the run answers as the file does, but its weights are no start for training, and it has neither an index nor
a record of its training. RECIPE stands for that of its training, which no file holds either.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from marrowscope.config import Recipe, load_recipe, parse_recipe, recipe_toml
from marrowscope.errors import MarrowscopeError, ModelError, SplitError, TrainingError
from marrowscope.files import make_folder, sha256_file, write_text
from marrowscope.infer import Classifier
from marrowscope.models import CellClassifier, build_model
from marrowscope.schema import Card, Split
from marrowscope.train.checkpoint import save_tensors

WITHIN = 1e-3
"""Largest difference of a logit between the file and the run on noise."""


def stored_weights(graph: onnx.GraphProto) -> dict[str, npt.NDArray[np.float32]]:
    """What the file stores, by the name that the graph uses it under, with casts and scales of small files undone."""
    found = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]].astype(np.float32)
        elif node.op_type == "Mul" and all(i in found for i in node.input):
            found[node.output[0]] = found[node.input[0]] * found[node.input[1]]
    return found


def unfold(model: CellClassifier, graph: onnx.GraphProto) -> None:
    """Load the file's weights into the network; a batch norm becomes the bias that was left of it.

    Raises:
        ModelError: The file lacks a tensor of the network, or has one of another shape.
    """
    stored = stored_weights(graph)
    convolutions = {n.input[1].removeprefix("model."): n for n in graph.node if n.op_type == "Conv"}
    state: dict[str, Tensor] = model.state_dict()
    done: set[str] = set()
    last = ""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            last = name
        elif isinstance(layer, nn.BatchNorm2d) and f"{last}.weight" in convolutions:
            node = convolutions[f"{last}.weight"]
            values = {
                f"{last}.weight": stored[node.input[1]],
                f"{name}.weight": np.ones(layer.num_features),
                f"{name}.bias": stored[node.input[2]],
                f"{name}.running_mean": np.zeros(layer.num_features),
                f"{name}.running_var": np.full(layer.num_features, 1 - layer.eps),
            }
            for key, value in values.items():
                state[key] = torch.from_numpy(np.array(value, dtype=np.float32))
            done |= {*values, f"{name}.num_batches_tracked"}
            last = ""
    for key in state.keys() - done:
        if f"model.{key}" not in stored:
            raise ModelError(f"The file has no tensor of {key}: this network can't be turned back.")
        state[key] = torch.from_numpy(np.array(stored[f"model.{key}"], dtype=np.float32))
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        raise ModelError(f"The file's weights don't fit {type(model.backbone).__name__}: {e}") from e


def check_split(card: Card, split: Split) -> None:
    """The split must be of the index, and of the sizes, that the card tells of."""
    info, data = split.info, card.training_data
    if info.index_sha256 != data.index_sha256 or info.counts != data.counts:
        raise SplitError(
            f"{card.name} was trained on another split: of the index {data.index_sha256[:12]} its card counts "
            f"{data.counts}, and this one of {info.index_sha256[:12]} {info.counts}. Give the split of its training."
        )


def run_recipe(recipe: Recipe, card: Card) -> Recipe:
    """The recipe, with the network, classes and preprocessing of the card."""
    values = recipe.model_dump()
    values["model"] |= {"name": card.architecture, "weights": "none"}
    values |= {"name": card.name, "classes": card.class_set, "image": card.preprocessing.model_dump()}
    return parse_recipe(values, "The recipe of the run")


def run_from_file(model: str, recipe: Recipe, split: Split, out: Path) -> float:
    """Write the run folder; returns the largest difference of a logit to the file, on noise.

    Raises:
        ModelError: The file is no exported model, can't be turned back, or is quantised.
        SplitError: The split is not the one that it was trained on.
        TrainingError: `out` holds a run already.
    """
    if (out / "config.toml").exists():
        raise TrainingError(f"{out} holds a run already. Choose another --out.")
    served = Classifier.load(model)
    card = served.card
    if card.precision == "int8":
        raise ModelError(f"{model} computes in eight bits; export the run with another precision.")
    check_split(card, split)
    ours = run_recipe(recipe, card)
    network = build_model(ours.model, len(card.codes), card.preprocessing).eval()
    unfold(network, onnx.load(served.path).graph)
    size = card.preprocessing.size
    noise = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    with torch.no_grad():
        logits = network(torch.from_numpy(noise).permute(0, 3, 1, 2).float()).numpy()
    difference = float(np.abs(logits - served.logits(noise)).max())
    if not difference < WITHIN:
        raise ModelError(f"The network answers otherwise than {model}: a logit differs by {difference:.2g}.")
    make_folder(out)
    split.write(out / "split.csv")
    save_tensors(out / "best.safetensors", network.state_dict())
    write_text(out / "config.toml", recipe_toml(ours))
    # What was fitted on the file's answers suits these too, but has its statistics beside it in a run: fit it anew.
    card.model_copy(
        update={
            "weights_sha256": sha256_file(out / "best.safetensors"),
            "precision": "fp32",
            "scaling": None,
            "conformal": (),
            "novelty": None,
            "acceptance": (),
            "confusion": (),
            "test": {},
        }
    ).write(out / "card.json")
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an ONNX file, or a bundled model's name")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        difference = run_from_file(args.model, load_recipe(args.recipe), Split.read(args.split), args.out)
    except MarrowscopeError as e:
        raise SystemExit(f"Error: {e}") from e
    print(f"{args.out}: answers as {args.model} does; on noise a logit differs by {difference:.1g} at most")


if __name__ == "__main__":
    main()
