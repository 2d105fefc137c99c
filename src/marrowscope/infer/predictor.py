"""What answers for pictures: one model, or several of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from marrowscope import images
from marrowscope.errors import ImageError
from marrowscope.schema import Preprocessing
from marrowscope.triage import Answers

T = TypeVar("T")

ImageLike = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]
"""A picture: a path, the bytes of a file, an open Pillow image, or uint8 (H, W, 3) or (H, W)."""

BATCH_SIZE = 4
"""Pictures in one inference: so few that what a network passes on between its layers stays in a core's cache."""


class Predictor(ABC):
    """Answers for pictures of single cells.

    Attributes:
        codes: The C class codes, in the order of the probabilities.
        specs: The S different ways in which a picture has to be prepared.
        threads: CPU threads of one inference.
    """

    codes: tuple[str, ...]
    specs: tuple[Preprocessing, ...]
    threads: int = 1

    @property
    @abstractmethod
    def identity(self) -> str:
        """Differs from that of any predictor that could answer otherwise."""

    @abstractmethod
    def answer(self, prepared: Sequence[images.Pixels]) -> Answers:
        """Answer for N pictures, prepared in each of the S ways, uint8 (N, size, size, 3) each.

        What the answers hold beside probabilities is the same whatever the pictures, and for N = 0 too.

        Raises:
            ModelError: The model can't be run.
        """

    def no_answers(self) -> Answers:
        """The answers for no picture at all: they tell what the answers of this predictor hold."""
        return self.answer([np.empty((0, s.size, s.size, 3), dtype=np.uint8) for s in self.specs])

    def prepare(self, pixels_HWC: images.Pixels) -> tuple[images.Pixels, ...]:
        """Prepare one picture in each of the S ways."""
        return tuple(images.prepare(pixels_HWC, spec) for spec in self.specs)

    def prepare_file(self, data: bytes) -> tuple[images.Pixels, ...]:
        """Prepare one picture from its file's bytes, in each of the S ways.

        Raises:
            ImageError: As `images.decode`.
        """
        if len(self.specs) == 1:
            return (images.to_input(data, self.specs[0]),)
        whole = None if all(s.reduced_decode for s in self.specs) else images.decode(data)
        return tuple(
            images.to_input(data, s) if whole is None or s.reduced_decode else images.prepare(whole, s)
            for s in self.specs
        )

    def answer_each(self, pictures: Sequence[tuple[images.Pixels, ...]]) -> Answers:
        """Answer for N pictures, N above 0, as `prepare` gives them; errors as `answer`."""
        return self.answer([np.stack(way) for way in zip(*pictures, strict=True)])

    def predict_answers(self, pictures: ImageLike | Iterable[ImageLike]) -> Answers:
        """All that the model says of N pictures: probabilities, conformal sets, what is strange, what is accepted.

        Raises:
            ImageError: A picture can't be used; the message names it. (`predict_files` goes on and keeps the reason.)
            ModelError: The model can't be run.
        """
        return joined([self.no_answers(), *map(self.answer_each, self._batches(pictures))])

    def predict_proba(self, pictures: ImageLike | Iterable[ImageLike]) -> npt.NDArray[np.float64]:
        """Calibrated probability of every class for each picture: float64 (N, C), columns as `codes`.

        One picture gives N = 1; errors as `predict_answers`.
        """
        return self.predict_answers(pictures).probs_NC

    def predict(self, pictures: ImageLike | Iterable[ImageLike]) -> list[str]:
        """The most probable class code of each picture; errors as `predict_answers`."""
        return [self.codes[i] for i in self.predict_proba(pictures).argmax(1)]

    def _batches(self, pictures: ImageLike | Iterable[ImageLike]) -> Iterator[list[tuple[images.Pixels, ...]]]:
        return batches((self._prepared(i, p) for i, p in enumerate(_as_sequence(pictures))), BATCH_SIZE)

    def _prepared(self, number: int, picture: ImageLike) -> tuple[images.Pixels, ...]:
        try:
            if isinstance(picture, str | os.PathLike):
                return self.prepare_file(images.read_bytes(Path(picture)))
            return self.prepare_file(picture) if isinstance(picture, bytes) else self.prepare(_pixels(picture))
        except ImageError as e:
            name = f" ({os.fspath(picture)})" if isinstance(picture, str | os.PathLike) else ""
            raise ImageError(f"Picture {number}{name}: {e}") from None


def batch_size_for(device: str) -> int:
    """Pictures in one inference that suit a device; an accelerator wants more at a time."""
    return BATCH_SIZE if device == "cpu" else 64


def joined(parts: Sequence[Answers]) -> Answers:
    """One after another, the answers of one predictor; at least one part."""

    def column(name: str) -> npt.NDArray[Any] | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    return Answers(
        np.concatenate([part.probs_NC for part in parts]),
        sets_NC=column("sets_NC"),
        ood_score_N=column("ood_score_N"),
        ood_N=column("ood_N"),
        accepted_N=column("accepted_N"),
    )


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut into lists of `size`, the last one perhaps shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _as_sequence(pictures: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    if isinstance(pictures, np.ndarray):
        return list(pictures) if pictures.ndim == 4 else [pictures]
    return [pictures] if isinstance(pictures, str | os.PathLike | bytes | Image.Image) else pictures


def _pixels(picture: Image.Image | npt.NDArray[np.uint8]) -> images.Pixels:
    if isinstance(picture, Image.Image):
        return images.from_pil(picture)
    if isinstance(picture, np.ndarray):
        return images.check_pixels(picture)
    raise ImageError(
        f"not a picture: {type(picture).__name__}; allowed are a path, bytes, a Pillow image or a uint8 array"
    )
