"""What `deploy/` says still holds: options exist, tokens are asked for, nothing runs as root, units are accepted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from marrowscope.cli import app

REPOSITORY = Path(__file__).parent.parent.parent
DEPLOY = REPOSITORY / "deploy"
SERVICES = sorted(DEPLOY.glob("*.service"))


@pytest.fixture(scope="module")
def serve() -> Any:
    """The command `marrowscope serve` with its commands."""
    return get_command(app).commands["serve"]  # type: ignore[attr-defined]


def environment_names(command: Any) -> set[str]:
    names = {p.envvar for p in command.params if getattr(p, "envvar", None)}
    for inner in getattr(command, "commands", {}).values():
        names |= environment_names(inner)
    return names


class Unit:
    """A unit file: keys may come several times, and all their values are kept."""

    def __init__(self, path: Path) -> None:
        self.values: dict[str, list[str]] = {}
        for line in path.read_text().splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith(("#", "[")):
                self.values.setdefault(key, []).append(value)

    def all(self, key: str) -> list[str]:
        return self.values.get(key, [])


def stages(text: str) -> list[list[tuple[str, str]]]:
    """The instructions of a container file, stage by stage."""
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    out: list[list[tuple[str, str]]] = []
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            out.append([])
        out[-1].append((name, " ".join(rest.split())))
    return out


@pytest.fixture(scope="module")
def container() -> list[list[tuple[str, str]]]:
    return stages((DEPLOY / "Containerfile").read_text())


def _values(stage: Iterable[tuple[str, str]], name: str) -> list[str]:
    return [rest for n, rest in stage if n == name]


# ----------------------------------------------------------------------------------------------------- container file


def test_the_container_is_small_and_does_not_run_as_root(container: list[list[tuple[str, str]]]) -> None:
    build, last = container
    assert any("pip install" in r for r in _values(build, "RUN"))
    assert not any("pip" in r or "apt" in r for r in _values(last, "RUN")), "what builds stays in the first stage"
    (user,) = _values(last, "USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    names = [n for n, _ in last]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert all(re.search(r":\d", rest) for rest in _values(build, "FROM") + _values(last, "FROM")), "a version is named"


def test_what_the_container_copies_exists_and_is_enough(container: list[list[tuple[str, str]]]) -> None:
    copied = [word for rest in _values(container[0], "COPY") for word in rest.split()[:-1]]
    assert copied
    for name in copied:
        assert (REPOSITORY / name).exists(), name
    let_in = {line[1:] for line in (DEPLOY / "Containerfile.dockerignore").read_text().split() if line.startswith("!")}
    assert {c.removeprefix("./") for c in copied} == let_in
    project = (REPOSITORY / "pyproject.toml").read_text()
    for name in re.findall(r'^(?:readme = "|license-files = \[")([^"]+)"', project, re.MULTILINE):
        assert name in copied, f"building the wheel reads {name}"


def test_the_container_listens_with_tokens_and_watches_itself(
    container: list[list[tuple[str, str]]], serve: Any
) -> None:
    last = container[1]
    env = dict(pair.split("=", 1) for rest in _values(last, "ENV") for pair in rest.split())
    ours = {k: v for k, v in env.items() if k.startswith("MARROWSCOPE_")}
    assert ours.keys() <= environment_names(serve)
    assert ours["MARROWSCOPE_SERVE_TOKENS"] == "1"
    assert _values(last, "VOLUME") == [ours["MARROWSCOPE_SERVE_DATA"]]
    assert _values(last, "EXPOSE") == [ours["MARROWSCOPE_SERVE_PORT"]]
    (entry,) = _values(last, "ENTRYPOINT")
    assert json.loads(entry) == ["marrowscope", "serve"]
    (health,) = _values(last, "HEALTHCHECK")
    command = json.loads(health.partition("CMD ")[2])
    assert "check" in serve.commands
    shown = ["sh", "-c", command[2].replace("exec marrowscope", "echo")]
    for extra, scheme in (({}, "http"), ({"MARROWSCOPE_SERVE_TLS_CERTIFICATE": "/c"}, "https")):
        done = subprocess.run(shown, capture_output=True, text=True, env={**ours, **extra, "PATH": "/usr/bin:/bin"})
        assert done.stdout.split() == ["serve", "check", f"{scheme}://127.0.0.1:8321"]


# -------------------------------------------------------------------------------------------------------------- units


HARDENED = {
    "DynamicUser": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "RestrictSUIDSGID": "yes",
    "UMask": "0077",
}


@pytest.mark.parametrize("path", SERVICES, ids=lambda p: p.name)
def test_units_give_the_process_nothing_to_take(path: Path) -> None:
    unit = Unit(path)
    for key, value in HARDENED.items():
        assert unit.all(key) == [value], key
    assert unit.all("User") == ["marrowscope"]
    assert "marrowscope" in unit.all("StateDirectory")[0].split()


def test_the_service_listens_with_tokens_and_its_options_exist(serve: Any) -> None:
    unit = Unit(DEPLOY / "marrowscope.service")
    (start,) = unit.all("ExecStart")
    words = start.split()
    assert words[:2] == ["/opt/marrowscope/bin/marrowscope", "serve"]
    options = {o for p in serve.params for o in p.opts}
    assert set(words[2:]) <= options
    assert "--tokens" in words
    known = environment_names(serve)
    given = {pair.partition("=")[0] for pair in unit.all("Environment")}
    commented = (DEPLOY / "serve.env").read_text().replace("#MARROWSCOPE", "MARROWSCOPE")
    file = dict(line.split("=", 1) for line in commented.splitlines() if line.startswith("MARROWSCOPE"))
    assert given | file.keys() <= known
    assert {"MARROWSCOPE_SERVE_TLS_CERTIFICATE", "MARROWSCOPE_SERVE_TLS_KEY"} <= given
    loaded = {pair.partition(":")[0] for pair in unit.all("LoadCredential")}
    assert {pair.rpartition("/")[2] for pair in unit.all("Environment") if "%d/" in pair} == loaded


def test_the_backup_names_a_command_that_exists_and_a_folder_that_it_may_write(serve: Any) -> None:
    unit = Unit(DEPLOY / "marrowscope-backup.service")
    (start,) = unit.all("ExecStart")
    assert "marrowscope serve backup " in start
    assert "backup" in serve.commands
    assert "%S/marrowscope-backup/" in start
    assert "marrowscope-backup" in unit.all("StateDirectory")[0].split()
    timer = Unit(DEPLOY / "marrowscope-backup.timer")
    assert timer.all("OnCalendar")
    assert timer.all("Persistent") == ["yes"]


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not here")
    for path in DEPLOY.glob("*.[st]*"):
        if path.suffix in {".service", ".timer"}:
            # The program stands elsewhere here; anything that can be run serves for looking at the rest.
            text = path.read_text().replace("/opt/marrowscope/bin/marrowscope", "/bin/true")
            (tmp_path / path.name).write_text(text)
    units = sorted(str(p) for p in tmp_path.iterdir())
    assert len(units) == 3
    done = subprocess.run([tool, "verify", "--man=no", *units], capture_output=True, text=True)
    assert (done.returncode, _about(done.stderr, units)) == (0, [])


def _about(text: str, units: list[str]) -> list[str]:
    """Lines that speak of these units, and not of others that this machine has."""
    names = [Path(u).name for u in units]
    return [line for line in text.splitlines() if any(n in line for n in names)]


def _options(text: str) -> Iterator[tuple[str, str]]:
    for line in re.sub(r"\\\n", " ", text).splitlines():
        found = re.search(
            r"\bmarrowscope(?: marrowscope)? (?:serve )?(token add|token list|backup|restore|check)\b", line
        )
        if found:
            yield found.group(1), line


def test_the_commands_in_its_readme_exist(serve: Any) -> None:
    text = (DEPLOY / "README.md").read_text()
    found = list(_options(text))
    assert {"token add", "backup", "restore", "check"} <= {name for name, _ in found}
    for name, line in found:
        command = serve
        for word in name.split():
            command = command.commands[word]
        options = {o for p in command.params for o in p.opts} | {"--rm", "-v", "-p", "--pipe", "--wait"}
        tail = line.partition(name)[2].split("&&")[0].split("`")[0]
        assert set(re.findall(r"(?<=\s)--[\w-]+", tail)) <= options, line
    names = set(re.findall(r"MARROWSCOPE_\w*[A-Z]", text))
    assert names <= environment_names(serve)
