"""Networks: any timm model behind one wrapper that takes pixels and gives logits."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import group_parameters
from torch import Tensor, nn

from marrowscope.config import ModelConfig, load_recipe
from marrowscope.errors import ModelError
from marrowscope.files import sha256_file
from marrowscope.images import resize_matrix
from marrowscope.schema import Card, Preprocessing


class CellClassifier(nn.Module):
    """A backbone with the normalisation in front.

    Input: (B, 3, size, size) RGB, 0..255, any dtype. Output: logits, (B, C).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, spec: Preprocessing) -> None:
        super().__init__()
        self.backbone = backbone
        # Not part of the checkpoint: the card's preprocessing is their one source.
        self.register_buffer("mean", 255 * torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.backbone((images_BCHW.to(self.mean.dtype) - self.mean) / self.std)
        return logits


class MemberInput(nn.Module):
    """What the networks of a mean share as a picture, made into what one of them takes: its size, its normalisation.

    Input: (B, 3, shared.size, shared.size), normalised as `shared` says. Output: (B, 3, own.size, own.size), as `own`.

    Attributes:
        size: Side of the output in pixels.
    """

    scale: Tensor
    shift: Tensor
    resize: Tensor | None

    def __init__(self, shared: Preprocessing, own: Preprocessing) -> None:
        super().__init__()
        self.size = own.size
        ours, theirs = torch.tensor([shared.mean, shared.std]), torch.tensor([own.mean, own.std])
        matrix = None if own.size == shared.size else torch.from_numpy(resize_matrix(shared.size, own).copy())
        self.register_buffer("scale", (ours[1] / theirs[1]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", ((ours[0] - theirs[0]) / theirs[1]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("resize", matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.resize is not None:
            x = self.resize @ x @ self.resize.T
        return x * self.scale + self.shift


class MeanOfNetworks(nn.Module):
    """Several timm networks that answer together; for the rest of the package it is one more timm network.

    Input: (B, 3, size, size), normalised. Output: logits (B, C) whose softmax is the mean of their probabilities
    (Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4), and whose logsumexp, the negative energy by which a
    strange picture may be told (Liu et al. 2020, arXiv:2010.03759), is the mean of theirs; those of one network are its
    own. Its features are theirs, one after the other.

    Attributes:
        members: The networks.
        inputs: For each what makes the shared picture into its own: a `MemberInput`, or nothing.
    """

    def __init__(self, members: Sequence[nn.Module], inputs: Sequence[MemberInput | None] = ()) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.inputs = nn.ModuleList([i or nn.Identity() for i in inputs or [None] * len(members)])

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        return [m.forward_features(own(x)) for m, own in zip(self._networks(), self.inputs, strict=True)]

    def forward_head(self, inside: Sequence[Tensor], pre_logits: bool = False) -> Tensor:
        parts = [m.forward_head(i, pre_logits=pre_logits) for m, i in zip(self._networks(), inside, strict=True)]
        if pre_logits:
            return torch.cat([p.flatten(1) for p in parts], dim=1)
        logits = torch.stack(parts).float()
        log_mean_BC = logits.log_softmax(2).logsumexp(0) - math.log(len(parts))
        return log_mean_BC + logits.logsumexp(2, keepdim=True).mean(0)

    def get_classifier(self) -> tuple[nn.Module, ...]:
        return tuple(m.get_classifier() for m in self._networks())

    def no_weight_decay(self) -> set[str]:
        return {
            f"members.{i}.{name}"
            for i, m in enumerate(self._networks())
            if hasattr(m, "no_weight_decay")
            for name in m.no_weight_decay()
        }

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Layers by depth: those of all members that lie equally far from the answer go together."""
        groups = [group_parameters(m, m.group_matcher(coarse=coarse)) for m in self._networks()]
        deepest = max(max(g) for g in groups)
        place = {
            f"members.{i}.{name}": deepest - max(g) + depth
            for i, g in enumerate(groups)
            for depth, names in g.items()
            for name in names
        }
        return place.__getitem__

    def _networks(self) -> list[Any]:
        return list(self.members)


def mean_of_networks(
    members: Sequence[nn.Module], images: Sequence[Preprocessing], shared: Preprocessing
) -> MeanOfNetworks:
    """Networks that answer together to pictures prepared as `shared` says, each as its own of `images` does."""
    return MeanOfNetworks(members, [None if own == shared else MemberInput(shared, own) for own in images])


def build_model(config: ModelConfig, n_classes: int, spec: Preprocessing) -> CellClassifier:
    """Make the network of a recipe, with its start weights.

    Raises:
        ModelError: timm doesn't know the name, the input size doesn't suit the network, the hub can't be reached, or
            local weights don't fit (the message lists the keys).
    """
    if "+" in config.name:
        images = config.images or (spec,) * len(config.members)
        members = [
            build_model(config.model_copy(update={"name": name, "images": ()}), n_classes, own).backbone
            for name, own in zip(config.members, images, strict=True)
        ]
        return CellClassifier(mean_of_networks(members, images, spec), spec)
    name = config.name.removeprefix("timm/")
    if not timm.is_model(name.split(".")[0]):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:8]) or "see timm.list_models()"
        raise ModelError(f"timm {timm.__version__} has no model {config.name!r}. Near it: {near}.")
    options: dict[str, Any] = {"num_classes": n_classes, "drop_rate": config.dropout}
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    if config.patch_drop:
        options["patch_drop_rate"] = config.patch_drop
    pretrained = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if pretrained is not None and pretrained.fixed_input_size:
        options["img_size"] = spec.size
    try:
        backbone = timm.create_model(name, pretrained=config.weights == "hub", **options)
    except Exception as e:  # timm and the hub raise many types; each message is theirs to explain
        if config.weights == "hub":
            raise ModelError(
                f"Can't get the pre-trained weights of {config.name} from the hub: {_short(e)}. Without a network, "
                "download them elsewhere and give the file: --set model.weights=PATH.safetensors"
            ) from e
        raise ModelError(f"timm can't make {config.name} for {spec.size} px: {_short(e)}") from e
    if config.weights not in {"hub", "none"}:
        _load_local(backbone, Path(config.weights))
    model = CellClassifier(backbone, spec)
    _check_size(model, config.name, spec.size)
    return model


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_size(model: CellClassifier, name: str, size: int) -> None:
    """Run one blank picture through, so that a size that doesn't suit the network is an error now, not in an hour."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as e:
        raise ModelError(f"{name} can't take pictures of {size} px: {_short(e)}") from e
    model.train(was_training)


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read tensors from a safetensors or a weights-only ``.pth`` file."""
    if not path.is_file():
        raise ModelError(
            f"No weights file {path}. model.weights is 'hub', 'none', or the path of a .safetensors or .pth file."
        )
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as e:
        raise ModelError(f"{path} is not a safetensors or weights-only .pth file: {_short(e)}") from e
    except Exception as e:
        # torch raises pickle.UnpicklingError for a file that would run code.
        raise ModelError(f"{path} can't be loaded safely as weights only: {_short(e)}") from e
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path} holds no state dict (names with tensors).")
    return {str(k).removeprefix("module."): v for k, v in state.items()}


def _load_local(backbone: nn.Module, path: Path) -> None:
    """Load pre-trained weights; position embeddings are resized, a head for other classes is left out."""
    state: dict[str, Tensor] = _read_state(path)
    if state and all(k.startswith("backbone.") for k in state):  # a checkpoint of our own, of another run
        state = {k.removeprefix("backbone."): v for k, v in state.items()}
    convert: Any = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            state = convert(state, backbone)
        except Exception as e:
            raise ModelError(f"{path} doesn't fit {type(backbone).__name__}: {_short(e)}") from e
    wanted = backbone.state_dict()
    config: Any = backbone.pretrained_cfg
    heads = config.get("classifier") or ()
    head_names = tuple(f"{h}." for h in ((heads,) if isinstance(heads, str) else heads))
    for key in [k for k in state if k.startswith(head_names)] if head_names else []:
        if key not in wanted or state[key].shape != wanted[key].shape:
            del state[key]
    missing = [k for k in wanted if k not in state and not k.startswith(head_names or ("\0",))]
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in wanted]
    shapes = [
        f"{k} is {tuple(v.shape)}, not {tuple(wanted[k].shape)}"
        for k, v in state.items()
        if k in wanted and v.shape != wanted[k].shape
    ]
    problems = [("missing", missing), ("unknown", unexpected), ("of another shape", shapes)]
    if any(keys for _, keys in problems):
        text = "; ".join(
            f"{len(keys)} {what}: {', '.join(keys[:6])}{' ...' if len(keys) > 6 else ''}"
            for what, keys in problems
            if keys
        )
        raise ModelError(f"{path} doesn't fit {type(backbone).__name__}. Keys {text}.")
    backbone.load_state_dict(state, strict=False)


def load_weights(model: CellClassifier, path: Path) -> None:
    """Load a run's own checkpoint: every tensor must fit.

    Raises:
        ModelError: The file can't be read or doesn't fit; the message lists the keys.
    """
    state = _read_state(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        raise ModelError(f"{path} doesn't fit the model of its run: {_short(e)}") from e


def load_run_model(run: Path) -> tuple[CellClassifier, Card]:
    """The best model of a run, in evaluation mode on the CPU, and its card.

    Raises:
        ModelError, FileFormatError: The run has no card or weights yet, or they don't fit each other.
    """
    if not (run / "card.json").is_file():
        raise ModelError(
            f"{run} is no run folder with a finished epoch: it has no card.json. "
            f"Train first: marrowscope train RECIPE --data DATA --out {run}"
        )
    card = Card.read(run / "card.json")
    weights = run / "best.safetensors"
    if not weights.is_file() or sha256_file(weights) != card.weights_sha256:
        raise ModelError(f"{weights} is missing or not the file that card.json describes. Train again, or --resume.")
    recipe = load_recipe(run / "config.toml")
    config = recipe.model.model_copy(update={"weights": "none"})
    model = build_model(config, len(card.codes), card.preprocessing)
    load_weights(model, weights)
    return model.eval(), card
