"""The command itself: what it prints, how it stops, TLS, tokens, backup and restore, and what it refuses."""

from __future__ import annotations

import io
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import httpx2 as httpx
import pytest
from rooms import parts, picture

from marrowscope.cli import main
from marrowscope.serve.probe import probe

trustme = pytest.importorskip("trustme", reason="trustme is not installed")

Run = subprocess.CompletedProcess[str]
COMMAND = [sys.executable, "-m", "marrowscope.cli", "serve"]


def serve(*arguments: object, **environment: str) -> Run:
    """Run the command to its end, in this process, for starting one takes more than a second."""
    out, err = io.StringIO(), io.StringIO()
    given = ["marrowscope", "serve", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", given)
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            main()
            status = 0
        except SystemExit as e:
            status = int(e.code or 0)
    return Run(given, status, out.getvalue(), err.getvalue())


@contextmanager
def running(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in the background: its process and the address that it printed."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert process.stdout is not None
    late = threading.Timer(60, process.kill)
    late.start()
    try:
        first = process.stdout.readline()
        found = re.search(r"https?://[^ ]+", first)
        if found is None:
            process.kill()
            raise AssertionError(f"no address in {first!r}: {process.communicate()[1]}")
        yield process, found.group().rstrip("/")
    finally:
        late.cancel()
        process.kill()
        process.communicate()


def refused(done: Run, *hints: str) -> bool:
    """Whether it ended with status 2 and one message that holds the hints; what is wrong otherwise."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for hint in hints:
        assert hint in done.stderr, done.stderr
    return True


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, ssl.SSLContext]:
    """Certificate and key for marrow.example and this machine, and a client's trust in them."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    made = authority.issue_cert("marrow.example", "localhost", "127.0.0.1")
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return folder / "cert.pem", folder / "key.pem", context


def test_it_serves_says_where_and_stops_when_told(tiny_model: Path, tmp_path: Path) -> None:
    with running("--model", tiny_model, "--data", tmp_path / "d", "--port", 0, "--threads", 1) as (process, address):
        assert process.stdout is not None
        assert process.stdout.readline() == "Not a medical device.\n"
        assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}
        answer = httpx.post(f"{address}/v1/predict", files=parts([picture(0)])).json()
        assert answer["model"] == "tiny"
        assert probe(address) == {"models": True, "annotator": True, "database": True}
        checked = serve("check", address)
        assert (checked.returncode, checked.stdout.count(": ready")) == (0, 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in {0, -signal.SIGTERM}
    assert refused(serve("check", address), "Nothing answers")


def test_options_may_stand_in_the_environment(tiny_model: Path, tmp_path: Path) -> None:
    environment = {"MODEL": str(tiny_model), "DATA": str(tmp_path / "d"), "PORT": "0", "THREADS": "1", "TOKENS": "1"}
    given = {f"MARROWSCOPE_SERVE_{k}": v for k, v in environment.items()}
    token = serve("token", "add", "anna", **given).stdout.strip()
    with running(**given) as (_, address):
        assert httpx.get(f"{address}/v1/models").status_code == 401
        listed = httpx.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {token}"}).json()
        assert [m["name"] for m in listed["models"]] == ["tiny"]


def test_tls_with_tokens_on_all_addresses(
    tiny_model: Path, tmp_path: Path, certificate: tuple[Path, Path, ssl.SSLContext]
) -> None:
    cert, key, trust = certificate
    data = tmp_path / "d"
    outside = ["--model", tiny_model, "--data", data, "--port", 0, "--threads", 1, "--host", "0.0.0.0"]
    outside += ["--host-name", "marrow.example", "--tls-certificate", cert, "--tls-key", key]
    assert refused(serve(*outside), "token add")
    token = serve("token", "add", "anna", "--data", data).stdout.strip()
    assert token.startswith("mrw_")
    with running(*outside) as (_, address):
        port = address.rpartition(":")[2]
        assert address == f"https://marrow.example:{port}"
        here = f"https://127.0.0.1:{port}"
        header = {"Authorization": f"Bearer {token}", "Host": "marrow.example"}
        with httpx.Client(verify=trust, base_url=here) as client:
            answer = client.get("/v1/models", headers=header)
            assert answer.status_code == 200
            assert answer.headers["strict-transport-security"].startswith("max-age=")
            assert client.get("/v1/models", headers={"Host": "marrow.example"}).status_code == 401
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 421
            assert client.get("/healthz").status_code == 200
        with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
            httpx.get(f"{here}/healthz")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/healthz")
        assert all(probe(here).values())
        assert serve("check", here).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "hints"),
    [
        (["--host", "0.0.0.0"], ["--tls-certificate", "--behind-proxy"]),
        (["--host", "::"], ["--tls-certificate"]),
        (["--host", "0.0.0.0", "--behind-proxy"], ["--host-name"]),
        (["--host", "0.0.0.0", "--behind-proxy", "--host-name", "marrow.example"], ["token add"]),
        (["--tls-key", "key.pem"], ["both"]),
        (["--model", "no-such-model"], ["no-such-model", "Bundled models"]),
        (["--reference", "missing.npz"], ["missing.npz"]),
        (["--database", "mysql://x/y"], ["not supported"]),
    ],
)
def test_what_is_unsafe_or_wrong_is_refused(
    tiny_model: Path, tmp_path: Path, arguments: list[str], hints: list[str]
) -> None:
    model = [] if "--model" in arguments else ["--model", tiny_model]
    assert refused(serve(*model, "--data", tmp_path / "d", "--port", 0, *arguments), *hints)


def test_a_port_that_is_taken_is_said(tiny_model: Path, tmp_path: Path) -> None:
    with running("--model", tiny_model, "--data", tmp_path / "d", "--port", 0) as (_, address):
        taken = address.rpartition(":")[2]
        assert refused(
            serve("--model", tiny_model, "--data", tmp_path / "e", "--port", taken), "Choose another with --port"
        )
        assert refused(serve("--model", tiny_model, "--data", tmp_path / "d", "--port", 0), "Another service")


def test_tokens_are_made_listed_and_revoked(tmp_path: Path) -> None:
    data = ("--data", tmp_path / "d")
    text = serve("token", "add", "anna", "--role", "admin", *data).stdout.strip()
    assert re.fullmatch(r"mrw_[0-9a-f]{16}_[\w-]{43}", text)
    assert refused(serve("token", "add", "anna", *data), "already")
    listed = serve("token", "list", *data).stdout
    assert re.match(r"anna +admin +since \d{4}-", listed)
    assert text.split("_", 2)[2] not in listed
    assert serve("token", "revoke", "anna", *data).stdout == "revoked anna\n"
    assert serve("token", "list", *data).stdout == ""
    assert refused(serve("token", "revoke", "anna", *data), "There are: none")


def test_backup_while_it_runs_and_restore(tiny_model: Path, tmp_path: Path) -> None:
    data, archive = tmp_path / "d", tmp_path / "cases.tar"
    with running("--model", tiny_model, "--data", data, "--port", 0, "--threads", 1) as (_, address):
        case = httpx.post(f"{address}/v1/cases", json={"name": "Smear"}).json()["id"]
        httpx.post(f"{address}/v1/cases/{case}/cells", files=parts([picture(i) for i in range(3)]))
        done = serve("backup", archive, "--data", data)
        assert "1 cases with 3 pictures" in done.stdout, done.stderr
    assert refused(serve("restore", archive, "--data", data), "not empty")
    assert "1 cases with 3 pictures" in serve("restore", archive, "--data", tmp_path / "e").stdout
    with running("--model", tiny_model, "--data", tmp_path / "e", "--port", 0, "--threads", 1) as (_, address):
        assert httpx.get(f"{address}/v1/cases/{case}").json()["cells"] == 3
    assert refused(serve("restore", tmp_path / "none.tar", "--data", tmp_path / "f"), "can't be read")


def test_a_reference_set_is_made_by_the_command(full_model: Path, cells: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.npz"
    done = serve("reference", full_model, cells, "-o", output, "--per-class", 4)
    assert re.match(r"\d+ cells of 3 classes written to", done.stdout), done.stderr
    assert refused(serve("reference", full_model, tmp_path, "-o", output), "No labelled picture")


@pytest.mark.parametrize("address", ["127.0.0.1:8321", "ftp://x", "http://", "nonsense"])
def test_what_is_no_address_is_refused(address: str) -> None:
    assert refused(serve("check", address), "no address of a service")
