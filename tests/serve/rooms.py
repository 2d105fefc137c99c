"""A service over a tiny model: in this process for its answers, in another one where it is to be killed."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from starlette.testclient import TestClient

from marrowscope.schema import CardAcceptance, CardConformal, CardNovelty
from marrowscope.serve.app import make_app
from marrowscope.serve.auth import add_token
from marrowscope.serve.service import Service, open_database, open_service
from marrowscope.serve.settings import Limits, Settings
from tiny_onnx import CODES, card, graph


def picture(seed: int, side: int = 48, kind: str = "PNG", **options: Any) -> bytes:
    """A picture of one colour with some noise: another one for each seed."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, 3) + rng.integers(-9, 10, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def parts(pictures: list[bytes], name: str = "cell") -> list[tuple[str, tuple[str, bytes, str]]]:
    """Multipart fields of pictures."""
    return [("files", (f"{name}_{i}.png", p, "image/png")) for i, p in enumerate(pictures)]


CONFUSION = ((40, 3, 2, 5), (1, 30, 6, 3), (4, 2, 50, 4), (2, 7, 1, 40))
"""Validation cells of the full model by truth (row) and answer (column)."""


def write_trusting_model(path: Path, name: str = "tiny", *, full: bool = False, seed: int = 0) -> Path:
    """The tiny model, with conformal sets, a threshold of strangeness and one of acceptance on its card.

    With `full` the card tells its confusions too, and the file has the output ``features``: the mean colour.
    """
    trusting = card(name=name).model_copy(
        update={
            "conformal": (
                CardConformal(method="class-conditional", alpha=0.05, thresholds=(0.1,) * len(CODES), fitted_on=100),
            ),
            "novelty": CardNovelty(method="energy", threshold=-0.7, kept=0.95, fitted_on=100),
            "acceptance": (CardAcceptance(accuracy=0.95, threshold=0.8, coverage=0.5, fitted_on=100),),
            "confusion": CONFUSION if full else (),
        }
    )
    model = graph(seed=seed)
    if full:
        model.graph.node.append(helper.make_node("Identity", ["n"], ["features"]))
        model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3]))
    helper.set_model_props(model, {"marrowscope.card": trusting.model_dump_json()})
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trusting_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="session")
def full_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with features and confusions."""
    return write_trusting_model(tmp_path_factory.mktemp("model") / "full.onnx", "full", full=True)


class Room:
    """A service in this process, and clients of it; `tokens` by name."""

    def __init__(self, service: Service, tokens: dict[str, str] | None = None) -> None:
        self.service = service
        self.app = make_app(service)
        self.tokens = tokens or {}

    def client(self, token: str | None = None, **headers: str) -> Any:
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return TestClient(self.app, "http://localhost", headers=headers, raise_server_exceptions=False)

    def case(self, client: Any, pictures: list[bytes], wait: bool = True) -> str:
        """A case with these pictures, answered for."""
        case = client.post("/v1/cases", json={"name": "Smear"}).json()["id"]
        for start in range(0, len(pictures), 50):
            answer = client.post(f"/v1/cases/{case}/cells", files=parts(pictures[start : start + 50]))
            assert answer.status_code == 200, answer.text
        if wait:
            until(lambda: client.get(f"/v1/cases/{case}").json()["pending"] == 0)
        return str(case)


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something holds."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if true():
            return
        pause.wait(0.02)
    raise AssertionError(f"did not come true within {seconds} s")


MakeRoom = Callable[..., Room]


@pytest.fixture
def make_room(tiny_model: Path, tmp_path: Path) -> Iterator[MakeRoom]:
    """Give a function that opens a service; `limits` and settings may be given."""
    rooms: list[Room] = []

    def make(*, limits: Limits | None = None, tokens: dict[str, str] | None = None, **settings: Any) -> Room:
        values: dict[str, Any] = {"data": tmp_path / "data", "models": (str(tiny_model),), "threads": 1} | settings
        chosen = Settings(**values, limits=limits or Limits(), tokens=tokens is not None)
        made = {}
        if tokens:
            database = open_database(chosen)
            with database.write() as session:
                made = {n: add_token(session, n, role) for n, role in tokens.items()}
            database.close()
        room = Room(open_service(chosen), made)
        rooms.append(room)
        return room

    yield make
    for room in rooms:
        room.service.close()


@pytest.fixture
def room(make_room: MakeRoom) -> Room:
    """A service on loopback, without tokens."""
    return make_room()
