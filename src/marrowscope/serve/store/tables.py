"""The tables. Times are ISO 8601 in UTC, which sort as text in every database.

``events`` is only ever added to: the database itself refuses to change or delete a row (see the first migration). It
holds no name of a file or case, so that it may outlive a deleted case.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Double, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

OPEN, SIGNED = "open", "signed"
PENDING, READY, FAILED = "pending", "ready", "failed"


class Base(DeclarativeBase):
    """Base of the tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Case(Base):
    """One smear.

    Attributes:
        version: Goes up by one with every change in the case, its cells included.
        revision: 1, and one more each time a signed case is reopened.
        last_number: Number of the newest cell; numbers are never given twice.
        codes: Class codes of the model, in the order of its probabilities.
    """

    __tablename__ = "cases"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[str] = mapped_column(String(32))
    created_by: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(8))
    version: Mapped[int]
    revision: Mapped[int]
    last_number: Mapped[int]
    model_name: Mapped[str] = mapped_column(String(200))
    model_sha256: Mapped[str] = mapped_column(String(64))
    codes: Mapped[list[str]] = mapped_column(JSON)
    program: Mapped[str] = mapped_column(String(64))


class Cell(Base):
    """One picture of a case, what the model said of it, and what a person said.

    Attributes:
        number: From 1 within its case.
        status: ``pending`` until the model has answered; ``failed`` with its `reason`.
        uncertainty: 1 - confidence, 0..1.
        label: Class that a person gave or accepted; None where nobody has looked yet.
        version: Goes up by one with every change of this cell by a person.
        changed: The case's version at the last change, the model's answer included.
    """

    __tablename__ = "cells"
    __table_args__ = (
        UniqueConstraint("case_id", "sha256"),
        Index(None, "case_id", "changed"),
        Index(None, "case_id", "uncertainty"),
        Index(None, "status"),
    )

    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    file_name: Mapped[str | None] = mapped_column(String(255))
    uploaded_by: Mapped[str] = mapped_column(String(64))
    uploaded_at: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(8))
    reason: Mapped[str | None] = mapped_column(String(300))
    predicted: Mapped[str | None] = mapped_column(String(3))
    confidence: Mapped[float | None] = mapped_column(Double)
    uncertainty: Mapped[float | None] = mapped_column(Double)
    probabilities: Mapped[list[float] | None] = mapped_column(JSON(none_as_null=True))
    conformal_set: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    ood_score: Mapped[float | None] = mapped_column(Double)
    ood: Mapped[bool | None]
    accepted: Mapped[bool | None]
    label: Mapped[str | None] = mapped_column(String(3))
    label_by: Mapped[str | None] = mapped_column(String(64))
    label_at: Mapped[str | None] = mapped_column(String(32))
    excluded: Mapped[bool]
    version: Mapped[int]
    changed: Mapped[int]


class Event(Base):
    """One change: who, when, what, from, to.

    Attributes:
        action: See `history.ACTIONS`.
        case_id: No foreign key: the log outlives the case.
        before, after: ``{"label": ..., "excluded": ...}`` of a cell; of other things what changed.
        cell_version: The cell's version after the change.
        undoes: Event that this one takes back.
    """

    __tablename__ = "events"
    __table_args__ = (Index(None, "case_id", "cell"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[str] = mapped_column(String(32))
    by: Mapped[str] = mapped_column(String(64))
    role: Mapped[str] = mapped_column(String(8))
    action: Mapped[str] = mapped_column(String(24))
    case_id: Mapped[str | None] = mapped_column(String(36))
    cell: Mapped[int | None]
    cell_version: Mapped[int | None]
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    undoes: Mapped[int | None]


class Signature(Base):
    """A case as it was signed out; stays when the case is reopened."""

    __tablename__ = "signatures"

    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[str] = mapped_column(String(32))
    by: Mapped[str] = mapped_column(String(64))
    comment: Mapped[str] = mapped_column(Text)
    case_version: Mapped[int]
    model_name: Mapped[str] = mapped_column(String(200))
    model_sha256: Mapped[str] = mapped_column(String(64))
    program: Mapped[str] = mapped_column(String(64))
    summary: Mapped[dict[str, Any]] = mapped_column(JSON)


class Token(Base):
    """A key to the service; only the SHA-256 of its 256 random bits is kept."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    role: Mapped[str] = mapped_column(String(8))
    hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[str] = mapped_column(String(32))
    revoked_at: Mapped[str | None] = mapped_column(String(32))


class Login(Base):
    """A browser that gave a token; its cookie is kept as SHA-256 alone."""

    __tablename__ = "logins"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_id: Mapped[str] = mapped_column(ForeignKey("tokens.id", ondelete="CASCADE"))
    csrf: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[str] = mapped_column(String(32))
    expires_at: Mapped[str] = mapped_column(String(32))
