"""Uploads that mean harm: each gets a clear 4xx, and other clients are served meanwhile and afterwards."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from live import Live
from PIL import Image
from rooms import parts, picture

from marrowscope.serve.settings import Limits, Settings

BOUNDARY = b"xyz"
KIND = {"Content-Type": "multipart/form-data; boundary=xyz"}


@pytest.fixture(scope="module")
def live(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    limits = Limits(chunk_seconds=1.0, body_seconds=3.0, request_bytes=5_000_000, file_bytes=2_000_000)
    data = tmp_path_factory.mktemp("hostile")
    with Live(Settings(data=data, models=(str(tiny_model),), port=0, threads=1, limits=limits)) as live:
        yield live


@pytest.fixture
def client(live: Live) -> Iterator[httpx.Client]:
    """At the end of each test the service is alive and answers an honest client."""
    with httpx.Client(base_url=live.address, timeout=30) as client:
        yield client
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").json()["ready"]
        honest = client.post("/v1/predict", files=parts([picture(1)]))
        assert honest.json()["predictions"][0]["status"] == "ok"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (32, 32)).save(buffer, "GIF")
    return buffer.getvalue()


def _animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), c) for c in ("red", "blue")]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


HOSTILE = {
    "a header that claims ten thousand million pixels": _png(100_000, 100_000, zlib.compress(b"\0" * 1000)),
    "a bomb: a few kilobytes of file, a hundred million pixels": _png(
        10_000, 10_000, zlib.compress(b"\0" * 100_010_000)
    ),
    "an SVG with a script": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "a page": b"<!doctype html><script>alert(1)</script>",
    "a page that begins like a GIF": b"GIF89a/*" + b"<script>alert(1)</script>",
    "a GIF": _gif(),
    "an animation": _animated(),
    "a JPEG cut short": picture(1, 200, "JPEG")[:900],
    "an archive": b"PK\x03\x04" + b"\0" * 300,
    "a program": b"\x7fELF" + b"\0" * 300,
    "PostScript that Pillow could hand to Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n",
    "nothing": b"",
    "a pixel": picture(1, 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_picture_of_a_cell_is_refused_with_the_reason(client: httpx.Client, name: str) -> None:
    data = HOSTILE[name]
    case = client.post("/v1/cases", json={"name": "hostile"}).json()["id"]
    for url in ("/v1/predict", f"/v1/cases/{case}/cells"):
        answer = client.post(url, files=[("files", ("cell.png", data, "image/png"))])
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
        assert len(answer.json()["detail"]) == 1
    assert client.get(f"/v1/cases/{case}").json()["cells"] == 0


def test_a_polyglot_goes_out_as_the_picture_alone(client: httpx.Client) -> None:
    data = picture(3, 64, "JPEG") + b"<script>alert(1)</script>PK\x03\x04"
    case = client.post("/v1/cases", json={"name": "polyglot"}).json()["id"]
    upload = [("files", ("x.html", data, "text/html"))]
    assert client.post(f"/v1/cases/{case}/cells", files=upload).status_code == 200
    for kind in ("picture", "thumbnail"):
        answer = client.get(f"/v1/cases/{case}/cells/1/{kind}")
        assert answer.headers["content-type"] in {"image/png", "image/webp"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert b"script" not in answer.content


@pytest.mark.parametrize(
    "name",
    ["../../../etc/passwd", "/etc/cron.d/x", "..\\..\\x", "a\x00b", "C:\\x", "x" * 5000, '"; rm -rf /', "~/.ssh/x"],
)
def test_no_name_of_a_client_reaches_the_disk(client: httpx.Client, live: Live, name: str) -> None:
    before = {p for p in live.settings.data.rglob("*") if "pictures" not in p.parts and "views" not in p.parts}
    case = client.post("/v1/cases", json={"name": "names"}).json()["id"]
    answer = client.post(f"/v1/cases/{case}/cells", files=[("files", (name, picture(5), "image/png"))])
    assert answer.status_code in {200, 400}
    after = {p for p in live.settings.data.rglob("*") if "pictures" not in p.parts and "views" not in p.parts}
    assert {p.name.partition(".sqlite")[0] for p in after} == {p.name.partition(".sqlite")[0] for p in before}
    pictures = [p.name for p in (live.settings.data / "pictures" / case).rglob("*") if p.is_file()]
    assert all(len(n) == 64 for n in pictures)


def _part(data: bytes, name: bytes = b"files", end: bool = True) -> bytes:
    head = b'--xyz\r\nContent-Disposition: form-data; name="' + name + b'"; filename="a"\r\n\r\n'
    return head + data + (b"\r\n--xyz--\r\n" if end else b"")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (_part(picture(1), end=False), KIND),
        (_part(picture(1))[:200], KIND),
        (_part(picture(1)), {"Content-Type": "multipart/form-data; boundary=other"}),
        (_part(picture(1)), {"Content-Type": "multipart/form-data"}),
        (_part(picture(1)), {"Content-Type": "image/png"}),
        (_part(picture(1), name=b"other"), KIND),
        (b"", KIND),
        (b"--xyz--\r\n", KIND),
        (b"--xyz\r\n" + b"A" * 100_000, KIND),
        (b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xyz--\r\n", KIND),
        (b"--xyz\r\n" + b"X: y\r\n" * 20_000 + b"\r\nx\r\n--xyz--\r\n", KIND),
        (_part(picture(1)), {"Content-Type": "multipart/form-data; charset=utf-7-imap4; boundary=xyz" + "x" * 3000}),
    ],
)
def test_broken_multipart_bodies_are_refused(client: httpx.Client, body: bytes, headers: dict[str, str]) -> None:
    answer = client.post("/v1/predict", content=body, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text
    assert set(answer.json()) == {"code", "message", "detail"}


def test_thousands_of_tiny_files_are_refused_as_a_whole(client: httpx.Client) -> None:
    body = b"".join(_part(b"x", end=False) + b"\r\n" for _ in range(10_000)) + b"--xyz--\r\n"
    answer = client.post("/v1/predict", content=body, headers=KIND)
    assert answer.status_code in {400, 413}
    assert "100" in answer.json()["message"] or "files" in answer.json()["message"].lower()


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"name": ' * 20_000, b"\xff\xfe", b"null", b'{"name": "\\ud800"}'])
def test_hostile_json_is_refused(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/cases", content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.json()["code"] in {"invalid", "bad_request"}


def _raw(live: Live, head: str) -> socket.socket:
    host, port = live.address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(f"{head}\r\nHost: {host}:{port}\r\n".encode())
    return connection


def test_slow_clients_are_dropped_and_others_served_meanwhile(live: Live, client: httpx.Client) -> None:
    slow = []
    for _ in range(20):
        s = _raw(live, "POST /v1/predict HTTP/1.1")
        s.sendall(b"Content-Type: multipart/form-data; boundary=xyz\r\nContent-Length: 100000\r\n\r\n--xyz\r\n")
        slow.append(s)
    drip = _raw(live, "POST /v1/predict HTTP/1.1")
    drip.sendall(b"Content-Type: multipart/form-data; boundary=xyz\r\nContent-Length: 100000\r\n\r\n")
    drip.sendall(_part(b"", end=False))
    stop = threading.Event()

    def send_drops() -> None:
        while not stop.wait(0.1):
            try:
                drip.sendall(b"x")
            except OSError:
                return

    dripping = threading.Thread(target=send_drops)
    dripping.start()
    assert client.post("/v1/predict", files=parts([picture(2)])).status_code == 200
    for s in slow:
        answer = s.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408")
        assert json.loads(answer.partition(b"\r\n\r\n")[2] or s.recv(65536))["code"] == "too_slow"
        s.close()
    assert drip.recv(65536).startswith(b"HTTP/1.1 408")
    stop.set()
    dripping.join()
    drip.close()


def test_clients_that_go_away_in_the_middle_leave_nothing_behind(live: Live, client: httpx.Client) -> None:
    for _ in range(20):
        s = _raw(live, "POST /v1/predict HTTP/1.1")
        s.sendall(
            b"Content-Type: multipart/form-data; boundary=xyz\r\nContent-Length: 100000\r\n\r\n" + _part(b"x" * 500)
        )
        s.close()
    time.sleep(0.2)
    answer = client.get("/metrics").text
    assert "marrowscope_queue_pictures 0.0" in answer
