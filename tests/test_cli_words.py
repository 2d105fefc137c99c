"""The words of the command line: every argument is explained, and what was left empty by accident is refused."""

from __future__ import annotations

from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from marrowscope.cli import app


def _commands(command: Any = None, names: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every command and group of commands, by its names."""
    command = get_command(app) if command is None else command
    found = [(names, command)] if names else []
    for name, inner in getattr(command, "commands", {}).items():
        found += _commands(inner, (*names, name))
    return found


COMMANDS = _commands()
each_command = pytest.mark.parametrize(("names", "command"), COMMANDS, ids=[" ".join(n) for n, _ in COMMANDS])


def test_the_commands_are_those_of_the_work() -> None:
    assert {names[0] for names, _ in COMMANDS} == {
        "doctor", "phantom", "index", "audit", "show", "split", "import-split", "train", "sweep", "join", "evaluate",
        "analyse", "explain", "report", "compare", "export", "models", "predict", "count", "serve",
    }  # fmt: skip


@each_command
def test_each_argument_and_option_is_explained(names: tuple[str, ...], command: Any) -> None:
    assert command.help, names
    assert command.help.splitlines()[0].endswith(".")
    for param in command.params:
        if param.name == "help":
            continue
        text = getattr(param, "help", None)
        assert text, f"{param.name} of {' '.join(names)} has no help"
        assert len(text) > 8
        if param.param_type_name == "argument":
            assert param.metavar is None or param.metavar.upper() == param.metavar


def test_what_a_command_is_given_stands_in_capitals() -> None:
    """As the texts and the documentation name it."""
    for names, command in COMMANDS:
        if len(names) == 1:
            arguments = [p for p in command.params if p.param_type_name == "argument"]
            assert all(p.metavar for p in arguments), names


def test_the_list_of_commands_cuts_no_sentence_off() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout
    lines = shown.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) == len({names[0] for names, _ in COMMANDS})
    assert not [line for line in lines if line.endswith("...")]


@each_command
def test_what_is_written_goes_where_o_says(names: tuple[str, ...], command: Any) -> None:
    for param in command.params:
        if param.name in {"output", "out"} and param.param_type_name == "option":
            assert "-o" in param.opts, names


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", ""],
        ["index", "cells", "-o", ""],
        ["predict", "marrow8", ""],
        ["serve", "backup", ""],
        ["", "index"],
    ],
)
def test_an_empty_argument_is_refused(arguments: list[str]) -> None:
    """`marrowscope index "$DATA"` with no DATA set would index the current folder."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "There is an empty argument" in result.stderr
    assert "see that it is set" in result.stderr.replace("\n", " ").replace("│", "")


def test_an_empty_folder_index_is_not_made_of_the_current_one(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["index", ""])
    assert not list(tmp_path.iterdir())
