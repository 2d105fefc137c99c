"""The log of every change: who, when, from what, to what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from marrowscope.serve.store.database import now
from marrowscope.serve.store.tables import Event

Role = Literal["reader", "reviewer", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""

CELL_ACTIONS = ("label", "accept", "unlabel", "exclude", "include")
ACTIONS = (
    *CELL_ACTIONS, "undo", "create", "upload", "sign", "reopen", "delete", "export", "token-add", "token-revoke",
    "login", "logout", "backup", "restore",
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """Who asks.

    Attributes:
        name: Name of the token, or ``local`` on a loopback without tokens.
        role: What they may do.
    """

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


PROGRAM = Person("command line", "admin")
"""Who acts at the command line."""


def log(session: Session, who: Person, action: str, case: str | None = None, **more: Any) -> Event:
    """Add one event; `more` are columns of `Event`."""
    assert action in ACTIONS
    event = Event(at=now(), by=who.name, role=who.role, action=action, case_id=case, **more)
    session.add(event)
    return event


def events(session: Session, *, case: str | None, cell: int | None, after: int, limit: int) -> list[Event]:
    """Events in the order they happened, those behind the event number `after`."""
    query = select(Event).where(Event.id > after).order_by(Event.id).limit(limit)
    if case is not None:
        query = query.where(Event.case_id == case)
    if cell is not None:
        query = query.where(Event.cell == cell)
    return list(session.scalars(query))
