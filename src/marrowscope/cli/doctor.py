"""The first-run check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    data: Annotated[Path | None, typer.Option(help="Images to look for; default what MARROWSCOPE_DATA names.")] = None,
    model: Annotated[str | None, typer.Option(help="ONNX file or bundled name for the self-test.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine and this installation.

    Ends with status 1 where something must be mended.
    """
    import json

    from marrowscope.doctor import examine, print_checks, to_dicts

    checks = examine(data=data, model=model)
    done = list(checks) if as_json else print_checks(checks, typer.echo)
    if as_json:
        typer.echo(json.dumps(to_dicts(done), indent=2))
    if bad := [c.name for c in done if c.state == "bad"]:
        typer.echo(f"{len(bad)} to mend: {', '.join(bad)}", err=True)
        raise typer.Exit(1)
