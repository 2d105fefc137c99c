"""The command line: one thin function a command; what it needs is imported when it runs."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from marrowscope import __version__
from marrowscope.cli import analyse, data, doctor, explain, judge, learn, models, serve, use
from marrowscope.cli.common import EXIT_BAD_INPUT, EXIT_STOPPED
from marrowscope.errors import MarrowscopeError


class _Commands(TyperGroup):
    """The commands, which take no empty argument.

    An empty path would mean the current folder, though what is meant is mostly a variable of the shell that isn't set.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "" in args:
            place = args.index("")
            before = f"after {args[place - 1]!r}" if place else "at the start"
            raise typer.BadParameter(
                f"There is an empty argument {before}. Give a value, or leave the argument out; where it is a variable "
                "of the shell, see that it is set."
            )
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="marrowscope",
    cls=_Commands,
    help="Classify single cells of bone-marrow smears. Not a medical device.",
    epilog="Begin with: marrowscope doctor. Then name cells with: marrowscope predict marrow8 FOLDER, and count them "
    "with: marrowscope count predictions.csv. Each command says more with --help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Entry point: errors that the user can mend become one message and status 2."""
    try:
        app()
    except MarrowscopeError as e:
        typer.echo(f"Error: {e}", err=True)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        sys.exit(EXIT_STOPPED)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); Python would complain again when it flushes at exit.
        sys.stdout = None
        sys.exit(1)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"marrowscope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


# In the order of the work.
for command in (
    doctor.doctor,
    data.phantom,
    data.index,
    data.audit,
    data.show,
    data.split,
    data.import_split,
    learn.train,
    learn.sweep,
    learn.join,
    judge.evaluate,
    analyse.analyse,
    explain.explain,
    judge.report,
    judge.compare,
    learn.export,
    models.models,
    use.predict,
    use.count,
):
    app.command()(command)
app.add_typer(serve.serve, short_help="Open the reading room, to review cells in the browser.")
