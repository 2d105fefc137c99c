"""A model, pictures, a store like Amazon's, and a Ray of two workers: one each for all tests of this folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny_onnx import write_model


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="session")
def draw() -> Callable[[Path], None]:
    """Writes a picture of its own colour."""
    rng = np.random.default_rng(5)

    def write(path: Path) -> None:
        pixels = rng.integers(0, 200, (1, 1, 3)) + rng.integers(0, 56, (40, 44, 3))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, "PNG")

    return write


@pytest.fixture
def pictures(tmp_path: Path, draw: Callable[[Path], None]) -> Path:
    """Ten pictures in two folders, and one file that is none."""
    folder = tmp_path / "cells"
    for i in range(10):
        draw(folder / "ab"[i % 2] / f"{i:02}.png")
    (folder / "broken.jpg").write_text("text")
    return folder


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """An S3-compatible server on this machine, named in the environment as users name theirs."""
    server = pytest.importorskip("moto.server", reason="moto is not installed: no store to test with")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    names = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    running = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    names["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    yield names["AWS_ENDPOINT_URL"]
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    running.stop()


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty bucket of the test's own."""
    from pyarrow import fs

    name = "b" + str(abs(hash(request.node.name)))[:12]
    store = fs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True, allow_bucket_deletion=True)
    store.create_dir(name)
    yield name
    store.delete_dir(name)


@pytest.fixture
def upload(endpoint: str, bucket: str) -> Callable[[str, bytes], str]:
    """Puts an object into the bucket; gives its name."""
    from pyarrow import fs

    store = fs.S3FileSystem(endpoint_override=endpoint)

    def put(key: str, data: bytes) -> str:
        with store.open_output_stream(f"{bucket}/{key}") as out:
            out.write(data)
        return f"s3://{bucket}/{key}"

    return put
