"""The reading room: `marrowscope serve`, its tokens, backups and reference sets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

from marrowscope.cli.common import PartName, progress_bar

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
_MODEL = "marrow8"


def _option(name: str, text: str, *more: str, least: int | None = None) -> OptionInfo:
    """An option of the service that its environment may give too."""
    variable = f"MARROWSCOPE_SERVE_{name}"
    option: OptionInfo = typer.Option(*more, help=text, envvar=variable, show_envvar=False, min=least)
    return option


class RoleName(StrEnum):
    """What a token allows: look; look and change; everything."""

    reader = "reader"
    reviewer = "reviewer"
    admin = "admin"


@serve.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        _option("MODEL", f"ONNX file or bundled name; several times for several; {_MODEL} otherwise.", "--model"),
    ] = None,
    data: DataFolder = _DATA,
    database: DatabaseUrl = None,
    host: Annotated[str, _option("HOST", "Address to listen on; others than loopback need tokens and TLS.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, _option("PORT", "0 for any free one.")] = 8321,
    tokens: Annotated[bool, _option("TOKENS", "Let nobody in without a token, on loopback too.", "--tokens")] = False,
    tls_certificate: Annotated[Path | None, _option("TLS_CERTIFICATE", "PEM file.")] = None,
    tls_key: Annotated[Path | None, _option("TLS_KEY", "PEM file.")] = None,
    behind_proxy: Annotated[bool, _option("BEHIND_PROXY", "A proxy ends TLS.", "--behind-proxy")] = False,
    host_name: Annotated[
        list[str] | None, _option("HOST_NAME", "Name under which browsers reach the service.", "--host-name")
    ] = None,
    reference: Annotated[
        list[Path] | None,
        _option("REFERENCE", "Reference set of a model, where it does not lie beside the model.", "--reference"),
    ] = None,
    rate: Annotated[
        int,
        _option("RATE", "Requests a second that one client address may make, and ten times as many at once.", least=1),
    ] = 200,
    threads: Annotated[int | None, _option("THREADS", "Threads of the model; one a core otherwise.", least=1)] = None,
    device: Annotated[str, _option("DEVICE", "cpu, cuda, openvino or coreml.")] = "cpu",
) -> None:
    """Start the reading room, and print its address.

    Options may also stand in the environment: MARROWSCOPE_SERVE_HOST_NAME and so on; several values with spaces.
    """
    if context.invoked_subcommand is not None:
        return
    from marrowscope.serve.run import log_to_stderr
    from marrowscope.serve.run import serve as run
    from marrowscope.serve.service import open_service
    from marrowscope.serve.settings import Limits, Settings

    log_to_stderr()
    settings = Settings(
        data=data,
        models=tuple(model or [_MODEL]),
        references=tuple(reference or ()),
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
        limits=Limits(rate=rate, burst=10 * rate),
    )
    run(open_service(settings), ready=_announce)


def _announce(address: str) -> None:
    typer.echo(f"The reading room is at {address}  (Ctrl-C stops it)")
    typer.echo("Not a medical device.")


@serve.command()
def check(
    address: Annotated[str, typer.Argument(help="Address of a service.")] = "http://127.0.0.1:8321",
) -> None:
    """Ask a service whether it is ready; the status is 1 where it is not. For watchers."""
    from marrowscope.serve.probe import probe

    parts = probe(address)
    typer.echo("\n".join(f"{name}: {'ready' if works else 'NOT READY'}" for name, works in parts.items()))
    if not all(parts.values()):
        raise typer.Exit(1)


@serve.command("reference")
def reference_set(
    model: Annotated[str, typer.Argument(help="ONNX file, or a bundled name.")],
    cells: Annotated[Path, typer.Argument(help="Folder or archive of labelled cells, a folder a class.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; beside the model otherwise.")
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="Take cells of one part of this split.csv; all of the folder otherwise.")
    ] = None,
    part: Annotated[PartName, typer.Option(help="Part of the split.")] = PartName.train,
    per_class: Annotated[int, typer.Option(min=1, help="Cells of each class at the most.")] = 200,
) -> None:
    """Make the set of labelled cells that the page compares a cell with.

    It holds small pictures of these cells: share it as you may share them.
    """
    from marrowscope.serve.reference import make_reference

    with progress_bar("cells") as progress:
        path, made, refused = make_reference(
            model, cells, output, split=split, part=part.value, per_class=per_class, progress=progress
        )
    typer.echo(f"{len(made)} cells of {len(set(made.codes))} classes written to {path}")
    if refused:
        typer.echo(f"{refused} pictures could not be used.", err=True)


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

    with _open(data, database) as (store, _), store.write() as session:
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

    with _open(data, database) as (store, _), store.write() as session:
        revoke_token(session, name)
    typer.echo(f"revoked {name}")


@token.command("list")
def token_list(data: DataFolder = _DATA, database: DatabaseUrl = None) -> None:
    """List the tokens that are valid; never the tokens themselves."""
    from marrowscope.serve.auth import tokens

    with _open(data, database) as (store, _), store.read() as session:
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

    with _open(data, database) as (store, blobs):
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

    with _open(data, database) as (store, blobs):
        counts = read_back(store, blobs, archive)
    typer.echo(f"{counts['cases']} cases with {counts['pictures']} pictures restored from {archive}")


@contextlib.contextmanager
def _open(data: Path, database: str | None) -> Iterator[tuple[Database, Blobs]]:
    from marrowscope.serve.service import open_database
    from marrowscope.serve.settings import Settings
    from marrowscope.serve.store.blobs import Blobs

    settings: Settings = Settings(data=data, models=(), database=database)
    store = open_database(settings)
    try:
        yield store, Blobs(data)
    finally:
        store.close()
