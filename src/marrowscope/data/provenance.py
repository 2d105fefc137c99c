"""What a set of images is: its source, licence and citation, so that a model never travels without them."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from marrowscope.schema import Split, TrainingData

SYNTHETIC_MARK = "SYNTHETIC.txt"
"""A data folder with this file at its top holds drawn pictures."""


@dataclass(frozen=True)
class Source:
    """Name, licence and citation of a collection of images."""

    name: str
    licence: str
    citation: str


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "bone-marrow-cytomorphology": Source(
            "Bone Marrow Cytomorphology (MLL / Helmholtz / Fraunhofer), The Cancer Imaging Archive",
            "CC BY 4.0",
            "Matek, C., Krappe, S., Münzenmayer, C., Haferlach, T., & Marr, C. (2021). An Expert-Annotated Dataset of "
            "Bone Marrow Cytology in Hematologic Malignancies [Data set]. The Cancer Imaging Archive. "
            "https://doi.org/10.7937/TCIA.AXH3-T579. And: Matek et al. (2021). Highly accurate differentiation of bone "
            "marrow cell morphologies using deep neural networks on a large image data set. Blood 138(20), 1917-1927. "
            "https://doi.org/10.1182/blood.2020010568",
        ),
        "phantom": Source("Phantom cells drawn by marrowscope (synthetic)", "MIT", "marrowscope"),
        "unstated": Source("not stated", "not stated", "not stated"),
    }
)


def is_synthetic(data: Path) -> bool:
    """Whether a data folder (or a folder right in it) or an archive says of itself that its cells are drawn."""
    data = Path(data)
    if data.is_dir():
        return any((folder / SYNTHETIC_MARK).is_file() for folder in (data, *(p for p in data.iterdir() if p.is_dir())))
    names: list[str] = []
    if zipfile.is_zipfile(data):
        with zipfile.ZipFile(data) as archive:
            names = archive.namelist()
    elif data.is_file() and tarfile.is_tarfile(data):
        with tarfile.open(data) as tar:
            names = tar.getnames()
    return any(PurePosixPath(name).name == SYNTHETIC_MARK for name in names)


def training_data(data: Path, source: str, split: Split) -> TrainingData:
    """Describe what a model is trained on, for its card."""
    synthetic = is_synthetic(data)
    known = SOURCES["phantom" if synthetic else source]
    return TrainingData(
        name=known.name,
        licence=known.licence,
        citation=known.citation,
        synthetic=synthetic,
        index_sha256=split.info.index_sha256,
        counts=split.counts(),
    )
