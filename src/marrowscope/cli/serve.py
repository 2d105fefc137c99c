"""The reading room: `marrowscope serve`, its tokens and its backups."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from marrowscope.serve.settings import Settings
    from marrowscope.serve.store.blobs import Blobs
    from marrowscope.serve.store.database import Database

serve = typer.Typer(
    name="serve",
    help="The reading room: a page to review cases on, and a service for programs. Not a medical device.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
token = typer.Typer(name="token", help="Tokens: who may use the service.", no_args_is_help=True, rich_markup_mode=None)
serve.add_typer(token)

DataFolder = Annotated[
    Path, typer.Option("--data", envvar="MARROWSCOPE_SERVE_DATA", help="Folder of pictures and database.")
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database", envvar="MARROWSCOPE_DATABASE", help="postgresql://...; SQLite in --data otherwise."),
]
_DATA = Path("reading-room")


class RoleName(StrEnum):
    """What a token allows: look; look and change; everything."""

    reader = "reader"
    reviewer = "reviewer"
    admin = "admin"


@serve.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="ONNX file or bundled name; several times for several.")
    ] = None,
    data: DataFolder = _DATA,
    database: DatabaseUrl = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need tokens and TLS.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 for any free one.")] = 8321,
    tokens: Annotated[bool, typer.Option("--tokens", help="Let nobody in without a token, on loopback too.")] = False,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    behind_proxy: Annotated[bool, typer.Option("--behind-proxy", help="A proxy ends TLS.")] = False,
    host_name: Annotated[
        list[str] | None, typer.Option("--host-name", help="Name under which browsers reach the service.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the model; one a core otherwise.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, openvino or coreml.")] = "cpu",
) -> None:
    """Start the reading room, and print its address."""
    if context.invoked_subcommand is not None:
        return
    from marrowscope.serve.run import log_to_stderr
    from marrowscope.serve.run import serve as run
    from marrowscope.serve.service import open_service
    from marrowscope.serve.settings import Settings

    log_to_stderr()
    settings = Settings(
        data=data,
        models=tuple(model or ()),
        database=database,
        host=host,
        port=port,
        tokens=tokens,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        behind_proxy=behind_proxy,
        host_names=tuple(host_name or ()),
        threads=threads,
        device=device,
    )
    run(open_service(settings), ready=_announce)


def _announce(address: str) -> None:
    typer.echo(f"The reading room is at {address}  (Ctrl-C stops it)")
    typer.echo("Not a medical device.")


@token.command("add")
def token_add(
    name: Annotated[str, typer.Argument(help="Who it is for; stands in the log of changes.")],
    role: Annotated[RoleName, typer.Option(help="reader looks, reviewer changes, admin does everything.")] = (
        RoleName.reviewer
    ),
    data: DataFolder = _DATA,
    database: DatabaseUrl = None,
) -> None:
    """Make a token and print it: once, for only its hash is kept."""
    from marrowscope.serve.auth import add_token

    store, _ = _open(data, database)
    with store.write() as session:
        text = add_token(session, name, role.value)
    typer.echo(text)


@token.command("revoke")
def token_revoke(
    name: Annotated[str, typer.Argument(help="As it was made.")],
    data: DataFolder = _DATA,
    database: DatabaseUrl = None,
) -> None:
    """Make a token worthless, at once."""
    from marrowscope.serve.auth import revoke_token

    store, _ = _open(data, database)
    with store.write() as session:
        revoke_token(session, name)
    typer.echo(f"revoked {name}")


@token.command("list")
def token_list(data: DataFolder = _DATA, database: DatabaseUrl = None) -> None:
    """List the tokens that are valid; never the tokens themselves."""
    from marrowscope.serve.auth import tokens

    store, _ = _open(data, database)
    with store.read() as session:
        for t in tokens(session):
            typer.echo(f"{t.name:24} {t.role:9} since {t.created_at[:10]}")


@serve.command()
def backup(
    output: Annotated[Path, typer.Argument(help="Archive to write, for example cases.tar.")],
    data: DataFolder = _DATA,
    database: DatabaseUrl = None,
) -> None:
    """Write all cases, pictures, tokens and the log into one archive, also while the service runs."""
    from marrowscope.serve.store.backup import back_up

    store, blobs = _open(data, database)
    counts = back_up(store, blobs, output)
    typer.echo(f"{counts['cases']} cases with {counts['pictures']} pictures written to {output}")


@serve.command()
def restore(
    archive: Annotated[Path, typer.Argument(help="An archive of 'marrowscope serve backup'.")],
    data: DataFolder = _DATA,
    database: DatabaseUrl = None,
) -> None:
    """Read an archive into an empty folder or database; the service must not run."""
    from marrowscope.serve.store.backup import restore as read_back

    store, blobs = _open(data, database)
    counts = read_back(store, blobs, archive)
    typer.echo(f"{counts['cases']} cases with {counts['pictures']} pictures restored from {archive}")


def _open(data: Path, database: str | None) -> tuple[Database, Blobs]:
    from marrowscope.serve.service import open_database
    from marrowscope.serve.settings import Settings
    from marrowscope.serve.store.blobs import Blobs

    settings: Settings = Settings(data=data, models=(), database=database)
    return open_database(settings), Blobs(data)
