"""What answers for pictures: one model, or several of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from marrowscope import images
from marrowscope.errors import ImageError
from marrowscope.schema import Preprocessing

T = TypeVar("T")

ImageLike = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]
"""A picture: a path, the bytes of a file, an open Pillow image, or uint8 (H, W, 3) or (H, W)."""

BATCH_SIZE = 32


class Predictor(ABC):
    """Answers for pictures of single cells.

    Attributes:
        codes: The C class codes, in the order of the probabilities.
        specs: The S different ways in which a picture has to be prepared.
    """

    codes: tuple[str, ...]
    specs: tuple[Preprocessing, ...]

    @property
    @abstractmethod
    def identity(self) -> str:
        """Differs from that of any predictor that could answer otherwise."""

    @abstractmethod
    def answer(self, prepared: Sequence[images.Pixels]) -> npt.NDArray[np.float64]:
        """N pictures, prepared in each of the S ways, uint8 (N, size, size, 3) -> probabilities, float64 (N, C).

        Raises:
            ModelError: The model can't be run.
        """

    def prepare(self, pixels_HWC: images.Pixels) -> tuple[images.Pixels, ...]:
        """Prepare one picture in each of the S ways."""
        return tuple(images.prepare(pixels_HWC, spec) for spec in self.specs)

    def answer_each(self, pictures: Sequence[tuple[images.Pixels, ...]]) -> npt.NDArray[np.float64]:
        """N pictures as `prepare` gives them -> probabilities, float64 (N, C)."""
        return self.answer([np.stack(way) for way in zip(*pictures, strict=True)])

    def predict_proba(self, pictures: ImageLike | Iterable[ImageLike]) -> npt.NDArray[np.float64]:
        """Probability of every class for each picture: float64 (N, C), columns as `codes`; one picture gives N = 1.

        Raises:
            ImageError: A picture can't be used; the message names it. (`predict_files` goes on and keeps the reason.)
        """
        prepared = (self._prepared(i, p) for i, p in enumerate(_as_sequence(pictures)))
        out = [self.answer_each(batch) for batch in batches(prepared, BATCH_SIZE)]
        return np.concatenate(out) if out else np.empty((0, len(self.codes)))

    def predict(self, pictures: ImageLike | Iterable[ImageLike]) -> list[str]:
        """The most probable class code of each picture; errors as `predict_proba`."""
        return [self.codes[i] for i in self.predict_proba(pictures).argmax(1)]

    def _prepared(self, number: int, picture: ImageLike) -> tuple[images.Pixels, ...]:
        try:
            return self.prepare(_pixels(picture))
        except ImageError as e:
            name = f" ({os.fspath(picture)})" if isinstance(picture, str | os.PathLike) else ""
            raise ImageError(f"Picture {number}{name}: {e}") from None


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut into lists of `size`, the last one perhaps shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _as_sequence(pictures: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    if isinstance(pictures, np.ndarray):
        return list(pictures) if pictures.ndim == 4 else [pictures]
    return [pictures] if isinstance(pictures, str | os.PathLike | bytes | Image.Image) else pictures


def _pixels(picture: ImageLike) -> images.Pixels:
    if isinstance(picture, str | os.PathLike):
        return images.decode(images.read_bytes(Path(picture)))
    if isinstance(picture, bytes):
        return images.decode(picture)
    if isinstance(picture, Image.Image):
        return images.from_pil(picture)
    if isinstance(picture, np.ndarray):
        return images.check_pixels(picture)
    raise ImageError(
        f"not a picture: {type(picture).__name__}; allowed are a path, bytes, a Pillow image or a uint8 array"
    )
