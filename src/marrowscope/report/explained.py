"""Heat maps for the page: what `marrowscope explain` left in RUN/explanations, shrunk to fit."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from marrowscope.errors import ImageError
from marrowscope.images import decode, read_bytes
from marrowscope.schema.explanations import ExplainedPicture, Explanations, ExplanationTests, MethodTests

FOLDER = "explanations"
PICTURES = 16
METHODS = 3
HEIGHT = 120
"""Pixels of a picture beside its heat."""


@dataclass(frozen=True)
class Explained:
    """Heat maps of a run and what the tests say of their methods, as far as they exist.

    Attributes:
        pictures: Those that the page shows.
        methods: Names of the methods that it shows.
        images: JPEG in base64, by path of the picture and name of the method.
        missing: Overlays that can't be read.
    """

    maps: Explanations | None
    tests: ExplanationTests | None
    pictures: tuple[ExplainedPicture, ...] = ()
    methods: tuple[str, ...] = ()
    images: dict[tuple[str, str], str] = field(default_factory=dict)
    missing: int = 0

    @property
    def of_method(self) -> tuple[MethodTests, ...]:
        """Tests of every method, the controls last."""
        tests = self.tests.methods if self.tests else ()
        return (*(t for t in tests if not t.control), *(t for t in tests if t.control))

    def title(self, method: str) -> str:
        """Name of a method for readers."""
        names = {m.name: m.title for m in self.maps.methods} if self.maps else {}
        return names.get(method, method)

    def other_weights(self, sha256: str) -> bool:
        """Whether the maps or their tests are of other weights than these."""
        return any(d is not None and d.weights_sha256 != sha256 for d in (self.maps, self.tests))


def read_explained(run: Path) -> Explained | None:
    """Read the heat maps of a run folder; None where there are none.

    Raises:
        FileFormatError: A document is not what its schema says.
    """
    folder = run / FOLDER
    maps_file = folder / "explanations.json"
    tests_file = next(
        (f for f in (folder / "explanation-tests.json", run / "explanation-tests.json") if f.is_file()), None
    )
    maps = Explanations.read(maps_file) if maps_file.is_file() else None
    tests = ExplanationTests.read(tests_file) if tests_file else None
    if maps is None:
        return Explained(None, tests) if tests else None
    methods, pictures = choose_methods(maps, tests), choose_pictures(maps)
    images: dict[tuple[str, str], str] = {}
    missing = 0
    for picture in pictures:
        for method in methods:
            if method in picture.overlays:
                try:
                    images[picture.path, method] = _shrunk(folder, picture.overlays[method])
                except ImageError:
                    missing += 1
    return Explained(maps, tests, pictures, methods, images, missing)


def choose_methods(maps: Explanations, tests: ExplanationTests | None) -> tuple[str, ...]:
    """At most `METHODS`: those that passed all tests before the others."""
    passed = {t.method for t in tests.methods if t.passed} if tests else set()
    names = [m.name for m in maps.methods]
    return tuple(sorted(names, key=lambda n: (n not in passed, names.index(n)))[:METHODS])


def choose_pictures(maps: Explanations) -> tuple[ExplainedPicture, ...]:
    """At most `PICTURES`: in turn a wrong and a right answer of each class."""
    queues: dict[tuple[str, bool], list[ExplainedPicture]] = {}
    for picture in maps.pictures:
        if picture.status == "ok" and picture.overlays:
            queues.setdefault((picture.truth or "", picture.truth == picture.predicted), []).append(picture)
    out: list[ExplainedPicture] = []
    while any(queues.values()) and len(out) < PICTURES:
        for key in sorted(queues):
            if queues[key] and len(out) < PICTURES:
                out.append(queues[key].pop(0))
    return tuple(sorted(out, key=lambda p: (p.truth or "", p.truth == p.predicted, p.path)))


def _shrunk(folder: Path, name: str) -> str:
    """A JPEG of one overlay in base64; only out of the folder of the document."""
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise ImageError("lies outside the folder of the explanations")
    with Image.fromarray(decode(read_bytes(folder / inside))) as image:
        width = max(1, round(image.width * HEIGHT / image.height))
        small = image.resize((width, HEIGHT), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
