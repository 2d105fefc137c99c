"""Who asks, and what they may do.

A token is ``mrw_<id>_<secret>`` with 256 random bits of secret, of which only the SHA-256 is kept: so much chance needs
no slow hash. Programs send it as ``Authorization: Bearer``; a browser gives it once and gets a cookie that no script
can read, and a second secret that every change must carry as ``X-CSRF-Token``.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from marrowscope.errors import ServiceError
from marrowscope.serve.store.database import now
from marrowscope.serve.store.history import PROGRAM, ROLES, Person, Role, log
from marrowscope.serve.store.tables import Login, Token

COOKIE = "marrowscope"
CSRF_HEADER = "X-CSRF-Token"
LOGIN_HOURS = 12
LOCAL = Person("local", "admin")
"""Everybody on a loopback without tokens."""

_TOKEN = re.compile(r"mrw_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[\w.@-]{1,64}")


@dataclass(frozen=True)
class Entry:
    """A browser's login: the cookie's value and the secret that changes must carry."""

    cookie: str
    csrf: str


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def add_token(session: Session, name: str, role: str, who: Person = PROGRAM) -> str:
    """Make a token and return it; it can't be shown again.

    Raises:
        ServiceError: A name that is not allowed or in use, or an unknown role.
    """
    if not _NAME.fullmatch(name) or name in {LOCAL.name, PROGRAM.name}:
        raise ServiceError(
            f"The name {name!r} is not allowed: 1 to 64 letters, digits or . _ @ -, and not {LOCAL.name!r}."
        )
    if role not in ROLES:
        raise ServiceError(f"Unknown role {role!r}; allowed: {', '.join(ROLES)}.")
    if session.scalar(select(Token).where(Token.name == name, Token.revoked_at.is_(None))):
        raise ServiceError(f"There is a token for {name} already. Revoke it first, or choose another name.")
    identity, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    session.add(Token(id=identity, name=name, role=role, hash=_hash(secret), created_at=now(), revoked_at=None))
    log(session, who, "token-add", after={"token": identity, "name": name, "role": role})
    return f"mrw_{identity}_{secret}"


def revoke_token(session: Session, name: str, who: Person = PROGRAM) -> None:
    """Make the token of this name worthless, and end its logins.

    Raises:
        ServiceError: There is none.
    """
    token = session.scalar(select(Token).where(Token.name == name, Token.revoked_at.is_(None)))
    if token is None:
        known = session.scalars(select(Token.name).where(Token.revoked_at.is_(None)).order_by(Token.name))
        raise ServiceError(f"There is no token for {name!r}. There are: {', '.join(known) or 'none'}.")
    token.revoked_at = now()
    session.execute(delete(Login).where(Login.token_id == token.id))
    log(session, who, "token-revoke", before={"token": token.id, "name": name})


def tokens(session: Session) -> list[Token]:
    """All that are not revoked."""
    return list(session.scalars(select(Token).where(Token.revoked_at.is_(None)).order_by(Token.name)))


def check_token(session: Session, text: str) -> Token | None:
    """The token of this text; None where it is not valid. Takes the same time whatever part is wrong."""
    match = _TOKEN.fullmatch(text)
    identity, secret = match.groups() if match else ("", "")
    token = session.get(Token, identity)
    right = hmac.compare_digest(_hash(secret), token.hash if token else "0" * 64)
    return token if token and right and token.revoked_at is None else None


def person(token: Token) -> Person:
    role: Role = next(r for r in ROLES if r == token.role)
    return Person(token.name, role)


def log_in(session: Session, token: Token) -> Entry:
    """Start a browser's login."""
    entry = Entry(secrets.token_urlsafe(32), secrets.token_urlsafe(32))
    expires = datetime.now(UTC) + timedelta(hours=LOGIN_HOURS)
    session.execute(delete(Login).where(Login.expires_at < now()))
    session.add(
        Login(
            hash=_hash(entry.cookie),
            token_id=token.id,
            csrf=entry.csrf,
            created_at=now(),
            expires_at=expires.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        )
    )
    log(session, person(token), "login")
    return entry


def check_cookie(session: Session, cookie: str) -> tuple[Token, str] | None:
    """The token behind a cookie, and the secret for changes; None where it is not valid any more."""
    login = session.get(Login, _hash(cookie))
    if login is None or login.expires_at < now():
        return None
    token = session.get(Token, login.token_id)
    return (token, login.csrf) if token is not None and token.revoked_at is None else None


def log_out(session: Session, cookie: str, who: Person) -> None:
    """End a browser's login."""
    login = session.get(Login, _hash(cookie))
    if login is not None:
        session.delete(login)
        log(session, who, "logout")
