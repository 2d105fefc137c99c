"""What all typed values and documents have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from marrowscope.errors import FileFormatError
from marrowscope.files import write_text

OK = "ok"
"""Status of a file that could be read; any other status is the reason why not."""

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")

NOT_A_MEDICAL_DEVICE = "Not a medical device: for research and teaching, not for diagnosis."


def validation_lines(error: ValidationError) -> list[str]:
    """One line a mistake: where it is, what is wrong, what was given (but no whole tables)."""
    lines = []
    for e in error.errors():
        where = ".".join(str(x) for x in e["loc"]) or "(whole file)"
        untold = e["type"] in {"missing", "extra_forbidden"} or isinstance(e["input"], dict)
        given = "" if untold else f" (given: {e['input']!r})"[:120]
        lines.append(f"{where}: {e['msg'].removeprefix('Value error, ')}{given}")
    return lines


class Frozen(BaseModel):
    """Base of all typed values: unchangeable, and unknown keys are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Document(Frozen):
    """Base of the JSON files."""

    kind: ClassVar[str]

    def write(self, path: Path) -> None:
        """Write as indented JSON."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Read from JSON text; `where` names its origin in errors.

        Raises:
            FileFormatError: Not JSON, another kind or version of document, or a field that is not allowed.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as e:
            mistakes = "\n  ".join(validation_lines(e))
            raise FileFormatError(f"{where} is not a valid {cls.kind} of this version:\n  {mistakes}") from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read from a file; errors as in `parse`."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise FileFormatError(f"Can't read the {cls.kind} {path}: {getattr(e, 'strerror', None) or e}.") from e
        return cls.parse(text, str(path))


def to_json(value: object) -> str:
    """Compact JSON with sorted keys, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
