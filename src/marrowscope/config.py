"""Recipes: what a training run does, as a TOML file read into frozen, typed objects.

Unknown keys and values that are not allowed are mistakes, and all mistakes of a recipe are reported at once.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from marrowscope.cells import class_set
from marrowscope.errors import DataError, RecipeError
from marrowscope.schema import Frozen, Preprocessing, validation_lines

Share = Field(default=0.0, ge=0.0, le=1.0)


def _without_defaults(config: Frozen, values: dict[str, Any], later: Sequence[str]) -> dict[str, Any]:
    """Leave out keys that recipes did not always have where they stand at their default.

    A recipe that doesn't use them keeps its text and its hash, and so a run begun before they came can be resumed.
    """
    return {k: v for k, v in values.items() if k not in later or getattr(config, k) != _default(config, k)}


def _default(config: Frozen, key: str) -> Any:
    return type(config).model_fields[key].get_default(call_default_factory=True)


class ModelConfig(Frozen):
    """The network.

    Attributes:
        name: Any model name of timm, or several with ``+`` between: networks that answer with the mean of their
            probabilities (`train.join`).
        weights: ``hub`` (timm's pre-trained weights, downloaded), ``none`` (random), or the path of a local
            safetensors or weights-only ``.pth`` file, which may be the ``best.safetensors`` of another run.
        drop_path: Stochastic depth rate (Huang et al. 2016); 0 is off.
        dropout: Dropout before the classifier; 0 is off.
        patch_drop: Share of a ViT's patches left out of each training step (Liu et al. 2023, PatchDropout): more
            pixels for the same time, and a regulariser; 0 is off.
        images: Of several networks, how each takes its pictures; empty where all do as [image] says. They may differ
            from it in size, mean and std; each gets the picture of [image], resized within the network.
    """

    name: str
    weights: str = "none"
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    patch_drop: float = Field(default=0.0, ge=0.0, le=0.9)
    images: tuple[Preprocessing, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """The names of the networks: one, or several that answer together."""
        return tuple(name.strip() for name in self.name.split("+"))

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, handler(self), ("patch_drop", "images"))

    @model_validator(mode="after")
    def _an_image_for_each(self) -> ModelConfig:
        if self.images and len(self.images) != len(self.members):
            raise ValueError(f"{len(self.images)} images for {len(self.members)} network(s); give one for each")
        return self


class DataConfig(Frozen):
    """Which images, and how often each is drawn.

    Attributes:
        ratios: Shares of train, val and test where the run draws its own split.
        cap: The same number of images per class; null takes all.
        sampling: ``natural`` shows each training image once an epoch; ``balanced`` draws classes equally often.
        source: What the images are, for the model card: ``bone-marrow-cytomorphology`` or ``unstated``. Folders of
            phantoms say so themselves.
        cache: ``memory`` keeps the prepared pictures in RAM (size x size x 3 bytes each); ``disk`` keeps them in a file
            that is made once and serves all runs on the same data; ``none`` decodes the files anew each epoch.
        cache_folder: Where ``disk`` keeps its file; without it, a folder ``cache`` beside the run folder.
    """

    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    cap: int | None = Field(default=None, ge=1)
    sampling: Literal["natural", "balanced"] = "natural"
    source: Literal["bone-marrow-cytomorphology", "unstated"] = "unstated"
    cache: Literal["memory", "disk", "none"] = "memory"
    cache_folder: str | None = Field(default=None, min_length=1)

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, handler(self), ("cache_folder",))


class AugmentConfig(Frozen):
    """Random changes of training pictures; 0 or false is off, and off means off.

    Attributes:
        flip: Horizontal and vertical flips, half of the time each.
        rotation: Any angle up to this many degrees to either side.
        scale: Zoom in or out by up to this share.
        shift: Shift by up to this share of the side.
        brightness: Factor within 1 +/- this.
        contrast: Factor within 1 +/- this, around the picture's mean.
        saturation: Factor within 1 +/- this, around each pixel's grey.
        stain: Scale and offset of each stain channel in optical density, within 1 +/- this.
        stain_axes: What ``stain`` takes for the stains: ``haematoxylin-eosin`` (Ruifrok and Johnston 2001), or
            ``giemsa``: methylene blue and eosin, as Landini measured them for ImageJ's Colour Deconvolution.
        erase: Probability that a random rectangle is blanked (Zhong et al. 2020).
        blur: Gaussian blur with a random sigma of up to this many pixels (of the model's input).
        jpeg: Compress as JPEG with a random quality from this (1 to 99; lower is stronger) up to 100.
        mixup: Alpha of mixup (Zhang et al. 2018).
        cutmix: Alpha of CutMix (Yun et al. 2019); with both on, each batch draws one of them.
    """

    flip: bool = False
    rotation: float = Field(default=0.0, ge=0.0, le=180.0)
    scale: float = Field(default=0.0, ge=0.0, lt=0.9)
    shift: float = Field(default=0.0, ge=0.0, le=0.5)
    brightness: float = Share
    contrast: float = Share
    saturation: float = Share
    stain: float = Share
    stain_axes: Literal["haematoxylin-eosin", "giemsa"] = "haematoxylin-eosin"
    erase: float = Share
    blur: float = Field(default=0.0, ge=0.0, le=4.0)
    jpeg: int = Field(default=0, ge=0, le=99)
    mixup: float = Field(default=0.0, ge=0.0, le=10.0)
    cutmix: float = Field(default=0.0, ge=0.0, le=10.0)

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, handler(self), ("blur", "jpeg", "stain_axes"))


class LossConfig(Frozen):
    """Cross-entropy and its variants.

    Attributes:
        label_smoothing: Share of the target spread over all classes (Szegedy et al. 2016).
        class_weights: ``balanced`` weights each class by 1 / its training count (mean 1).
        focal_gamma: Focusing parameter of the focal loss (Lin et al. 2017); 0 is plain cross-entropy.
        logit_adjustment: Temperature of the logit-adjusted loss for classes of unlike size (Menon et al. 2021, eq. 10;
            theirs is 1); 0 is off.
    """

    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    class_weights: Literal["none", "balanced"] = "none"
    focal_gamma: float = Field(default=0.0, ge=0.0, le=10.0)
    logit_adjustment: float = Field(default=0.0, ge=0.0, le=10.0)

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, handler(self), ("logit_adjustment",))


class DistilConfig(Frozen):
    """Learning from trained networks beside the labels (Hinton et al. 2015).

    Attributes:
        teacher: Run folders of the teachers, one or several (their probabilities are averaged); empty is off. They
            know the recipe's classes, and none of them was trained on a picture that this run validates or tests on.
        temperature: Divides the logits of both sides before they are compared.
        weight: Share of the teachers in the loss; the rest is that of the labels.
        view: ``augmented``: the teachers answer for the very picture that the network sees, after augmentation and
            mixing (Beyer et al. 2022: what helps most, at the cost of the teachers' work in each step). ``plain``: they
            answer once for each picture as it is, which is kept in the run folder. ``held-out``: so too, but each
            picture is answered only by those teachers that were not trained on it, such as the networks of folds; what
            a teacher learnt by heart says no more than the label.
    """

    teacher: tuple[str, ...] = ()
    temperature: float = Field(default=2.0, ge=0.1, le=100.0)
    weight: float = Field(default=0.9, gt=0.0, le=1.0)
    view: Literal["augmented", "plain", "held-out"] = "augmented"

    @field_validator("teacher", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_a_teacher(self) -> DistilConfig:
        if not self.teacher and self.model_fields_set - {"teacher"}:
            raise ValueError("there is no teacher; name the run folder of a trained network")
        if not all(self.teacher) or len(set(self.teacher)) != len(self.teacher):
            raise ValueError("each teacher is the path of another run folder")
        return self


class OptimizerConfig(Frozen):
    """The optimiser.

    Attributes:
        name: ``adamw`` (decoupled weight decay) or ``adam``.
        learning_rate: Peak learning rate.
        weight_decay: Not applied to biases, norms and position embeddings.
        layer_decay: Factor from each block to the one below it (Bao et al. 2021); 1 is off.
        clip: Largest norm of the whole gradient; 0 is off.
    """

    name: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = Field(gt=0.0, le=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0)
    layer_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    clip: float = Field(default=1.0, ge=0.0)


class ScheduleConfig(Frozen):
    """How long, and how the learning rate runs.

    Attributes:
        epochs: Passes over the training part.
        warmup_epochs: Linear rise from 0 at the start (may be a fraction).
        floor: Learning rate at the end as a share of the peak, reached along a cosine.
        constant: Keep the peak to the end (after the warm-up) in place of the cosine.
        patience: Stop after this many epochs without a better validation score; 0 is off.
        head_epochs: For so many epochs at the start only the classifier learns, on the start weights as they are
            (Kumar et al. 2022: it bends pre-trained features less); 0 is off.
    """

    epochs: int = Field(ge=1, le=10_000)
    warmup_epochs: float = Field(default=0.0, ge=0.0)
    floor: float = Field(default=0.01, ge=0.0, le=1.0)
    constant: bool = False
    patience: int = Field(default=0, ge=0)
    head_epochs: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _warmup_fits(self) -> ScheduleConfig:
        for name, value in (("warmup_epochs", self.warmup_epochs), ("head_epochs", self.head_epochs)):
            if value >= self.epochs:
                raise ValueError(f"{name} ({value}) must be below epochs ({self.epochs})")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, handler(self), ("head_epochs",))


class EngineConfig(Frozen):
    """How the work is done; the model learnt is the same idea whatever stands here.

    Attributes:
        batch_size: Images a step (over all processes).
        precision: ``bf16`` (autocast), ``fp32``, or ``auto``: bf16 where the hardware has it.
        channels_last: Memory layout; faster for convolutions.
        ema: Decay of the exponential moving average of the weights, which is then validated and saved; 0 is off.
        checkpoint_minutes: A checkpoint is also written within an epoch when the last is older than this.
        monitor: Validation score that chooses the best epoch.
        compile: Let torch.compile make code for the network first: minutes at the start, faster steps afterwards.
        attention: ``fused`` (torch's scaled_dot_product_attention), ``plain`` (matrix products and a softmax, which
            take more memory), or ``auto``: plain where that trains faster, in bf16 on a CPU without AMX.
    """

    batch_size: int = Field(default=32, ge=2, le=65_536)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    channels_last: bool = True
    ema: float = Field(default=0.0, ge=0.0, lt=1.0)
    checkpoint_minutes: float = Field(default=10.0, gt=0.0)
    monitor: Literal["val_accuracy", "val_macro_f1", "val_loss"] = "val_accuracy"
    compile: bool = False
    attention: Literal["auto", "fused", "plain"] = "auto"

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, handler(self), ("compile", "attention"))


class Recipe(Frozen):
    """A whole recipe.

    Attributes:
        name: Name of the model that comes out.
        classes: A named class set (`cells.CLASS_SETS`) or a list of codes.
        merge: Classes to count as another of the set: ``{NGB = "NGS"}`` makes bands and segmented one class, NGS.
        drop: Classes of the set to leave out.
        seed: Fixes the split (where the run draws it), the start weights, the order and the augmentation.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    classes: str = "marrow-14"
    merge: dict[str, str] = Field(default_factory=dict)
    drop: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0, lt=2**31)
    model: ModelConfig
    image: Preprocessing
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    engine: EngineConfig = EngineConfig()
    distil: DistilConfig = DistilConfig()

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, handler(self), ("merge", "drop", "distil"))

    @field_validator("classes")
    @classmethod
    def _known_classes(cls, value: str) -> str:
        try:
            class_set(value)
        except DataError as e:
            raise ValueError(str(e)) from None
        return value

    @model_validator(mode="after")
    def _classes_left(self) -> Recipe:
        codes = class_set(self.classes).codes
        for code in (*self.merge, *self.merge.values(), *self.drop):
            if code not in codes:
                raise ValueError(f"merge and drop name {code!r}, which is not in {self.classes}: {' '.join(codes)}")
        for source, target in self.merge.items():
            if target in self.merge or target in self.drop or source in self.drop:
                raise ValueError(f"merge.{source} = {target!r}: merge a class once, into one that stays, or drop it")
        if len(self.codes) < 2:
            raise ValueError(f"merge and drop leave {len(self.codes)} class; a classifier needs at least two")
        return self

    @property
    def codes(self) -> tuple[str, ...]:
        """The class codes that the model tells apart, in the order of its outputs."""
        return tuple(c for c in class_set(self.classes).codes if c not in self.merge and c not in self.drop)

    @property
    def class_set_name(self) -> str:
        """Name of the class set, with what was done to it."""
        merged = [f"{a} as {b}" for a, b in sorted(self.merge.items())]
        dropped = [f"without {c}" for c in sorted(self.drop)]
        return ", ".join([class_set(self.classes).name, *merged, *dropped])

    @model_validator(mode="after")
    def _images_of_members(self) -> Recipe:
        for own in self.model.images:
            same = self.image.model_copy(update={"size": own.size, "mean": own.mean, "std": own.std})
            if own != same or own.size > self.image.size:
                raise ValueError(
                    f"model.images: a network takes {own}, which can't be made of the pictures of [image], "
                    f"{self.image}; it may differ in mean and std, and in a smaller size"
                )
        return self

    @model_validator(mode="after")
    def _balance_once(self) -> Recipe:
        ways = [
            text
            for text, on in (
                ('data.sampling = "balanced"', self.data.sampling == "balanced"),
                ('loss.class_weights = "balanced"', self.loss.class_weights == "balanced"),
                (f"loss.focal_gamma = {self.loss.focal_gamma:g}", self.loss.focal_gamma > 0),
                (f"loss.logit_adjustment = {self.loss.logit_adjustment:g}", self.loss.logit_adjustment > 0),
            )
            if on
        ]
        if len(ways) > 1:
            raise ValueError(f"classes are balanced twice, by {' and by '.join(ways)}; keep one of them")
        return self


def parse_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """Check a recipe given as nested tables; `where` names its origin in errors.

    Raises:
        RecipeError: With one line for every mistake.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as e:
        lines = [_with_known_keys(line) for line in validation_lines(e)]
        raise RecipeError(f"{where} has {len(lines)} mistake(s):\n  " + "\n  ".join(lines)) from None


def _with_known_keys(line: str) -> str:
    """Add the keys that are allowed to the report of an unknown one."""
    where, _, text = line.partition(": ")
    if text != "Extra inputs are not permitted":
        return line
    *tables, key = where.split(".")
    section: Any = Recipe
    for table in tables:
        section = section.model_fields[table].annotation
    inside = f" in [{'.'.join(tables)}]" if tables else ""
    return f"{where}: unknown key {key!r}{inside}; known keys: {', '.join(section.model_fields)}"


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key=value`` overrides such as ``schedule.epochs=3``.

    Values are read as TOML; what is not TOML is taken as text (``model.weights=none``).

    Raises:
        RecipeError: The file can't be read or is not TOML, an override has no ``=``, or the recipe has mistakes.
    """
    try:
        values: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise RecipeError(f"Can't read the recipe {path}: {e.strerror or e}.") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path} is not a TOML file: {e}.") from None
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {text!r}: write it as key=value, for example schedule.epochs=3.")
        *tables, last = key.strip().split(".")
        target = values
        for table in tables:
            inner = target.setdefault(table, {})
            if not isinstance(inner, dict):
                raise RecipeError(f"--set {text!r}: {table!r} is a value, not a table.")
            target = inner
        target[last] = _toml_value(raw.strip())
    return parse_recipe(values, str(path))


def _toml_value(raw: str) -> Any:
    try:
        return tomllib.loads(f"x = {raw}")["x"]
    except tomllib.TOMLDecodeError:
        return raw


def recipe_toml(recipe: Recipe) -> str:
    """The recipe as TOML text, every value written out; reading it back gives an equal recipe."""
    top, tables = [], []
    for key, value in recipe.model_dump(mode="json").items():
        if isinstance(value, dict):
            lines = [f"{k} = {_toml_text(v)}" for k, v in value.items() if v is not None]
            tables.append("\n".join([f"[{key}]", *lines]))
        else:
            top.append(f"{key} = {json.dumps(value)}")
    return "\n".join(top) + "\n\n" + "\n\n".join(tables) + "\n"


def _toml_text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_text, value)) + "]"
    return json.dumps(value)
