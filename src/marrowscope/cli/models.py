"""The command that says which models there are."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    card: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Print this model's card: a bundled name, ONNX file or run folder."),
    ] = None,
) -> None:
    """List the models that come with the package."""
    from marrowscope.modelcards import bundled_models, card_line, card_markdown, read_card
    from marrowscope.schema import NOT_A_MEDICAL_DEVICE

    if card is not None:
        typer.echo(card_markdown(read_card(card)), nl=False)
        return
    found = bundled_models()
    for model in found:
        typer.echo(card_line(model))
    if not found:
        typer.echo("No model comes with this package. Make one: marrowscope train, then marrowscope export.")
    typer.echo(NOT_A_MEDICAL_DEVICE)
