"""A real Chromium before a real server: fixtures and what the tests of the page do again and again."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from live import Live
from rooms import until

from marrowscope.serve.auth import add_token
from marrowscope.serve.service import open_database
from marrowscope.serve.settings import Settings

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
WAIT = 120_000
"""Milliseconds that a page may take for anything: much, for machines that have other work too."""

WIDE, TABLET = {"width": 1280, "height": 800}, {"width": 820, "height": 1180}


@pytest.fixture(scope="module")  # only one may be open at a time in a process
def browser() -> Iterator[Any]:
    names = (os.environ.get("MARROWSCOPE_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next((p for name in names if name and (p := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium found; install one, or name it in MARROWSCOPE_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Site:
    """A server at an address that stays the same when it is started anew, and programs that ask it."""

    def __init__(self, model: Path, data: Path, *, tokens: dict[str, str] | None = None) -> None:
        self.settings = Settings(
            data=data, models=(str(model),), port=free_port(), threads=1, tokens=tokens is not None
        )
        self.tokens: dict[str, str] = {}
        if tokens:
            database = open_database(self.settings)
            with database.write() as session:
                self.tokens = {n: add_token(session, n, role) for n, role in tokens.items()}
            database.close()
        self.live = Live(self.settings)
        self._clients: dict[str | None, httpx.Client] = {}

    @property
    def address(self) -> str:
        return self.live.address

    def client(self, name: str | None = None) -> httpx.Client:
        """A program that asks, with the token of this name; always the same one."""
        if name not in self._clients:
            headers = {"Authorization": f"Bearer {self.tokens[name]}"} if name else {}
            self._clients[name] = httpx.Client(base_url=self.address, headers=headers, timeout=60)
        return self._clients[name]

    def restart(self) -> None:
        """Start again where it was."""
        self._hang_up()
        self.live.start()

    def close(self) -> None:
        self._hang_up()
        self.live.kill()

    def _hang_up(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Give a function that starts a server: open_site(model, tokens=...)."""
    sites: list[Site] = []

    def opened(model: Path, **options: Any) -> Site:
        site = Site(model, tmp_path / f"room{len(sites)}", **options)
        site.live.start()
        sites.append(site)
        return site

    yield opened
    for site in sites:
        site.close()


class Visits:
    """Pages that a test opens; in the end none complained, and none asked anybody but the server."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self.contexts: list[Any] = []
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.allowed: list[str] = []

    def open(self, site: Site, name: str | None = None, path: str = "/", **options: Any) -> Any:
        """A page of its own browser context; with `name`, after giving that person's token in the form."""
        context = self.browser.new_context(**{"viewport": WIDE, "accept_downloads": True, **options})
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda m: self.complaints.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda e: self.complaints.append(str(e)))
        page.on("dialog", lambda d: self.complaints.append(f"dialog {d.message}"))
        page.on("request", lambda r: self.hosts.add(r.url.partition("://")[2].partition("/")[0]))
        page.goto(site.address + path)
        if name is not None:
            page.fill("#token", site.tokens[name])
            page.keyboard.press("Enter")
            page.locator("#who", has_text=name).wait_for()
        return page

    def allow(self, *texts: str) -> None:
        """Complaints of the browser that a test brings about on purpose."""
        self.allowed += texts

    def close(self, addresses: set[str]) -> None:
        for context in self.contexts:
            context.close()
        unexpected = [c for c in self.complaints if not any(a in c for a in self.allowed)]
        assert not unexpected, unexpected
        assert {h for h in self.hosts if h} <= addresses


@pytest.fixture
def visits(browser: Any, open_site: Callable[..., Site]) -> Iterator[Visits]:
    found = Visits(browser)
    yield found
    servers = {h for h in found.hosts if h.startswith("127.0.0.1:")}
    found.close(servers)


def holds(page: Any, condition: str) -> None:
    """Wait until an expression of JavaScript is true (`wait_for_function` needs eval, which the page forbids)."""
    for _ in range(WAIT // 50):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"did not come true: {condition}")


def wall_has(page: Any, cells: int) -> None:
    """Wait until the wall has so many cells, and none that waits for the model."""
    page.locator("#shown", has_text=f"{cells} of {cells} cells").wait_for()
    holds(page, "!document.querySelector('.group[data-group=pending]')")


def saved(page: Any) -> None:
    """Wait until the page knows that the service has all changes: until then it would ask before it is left."""
    holds(page, "window.dispatchEvent(new Event('beforeunload', {cancelable: true}))")


def new_case(page: Any, name: str) -> str:
    """Start a case by the form; its id."""
    page.fill("#new-name", name)
    page.keyboard.press("Enter")
    page.locator(".wall").wait_for(state="attached")
    found: str = page.evaluate("location.hash.split('/').pop()")
    return found


def drop(page: Any, *paths: Path) -> None:
    """Drop files or folders of the disk on the drop zone, as a person does."""
    zone = page.locator(".drop")
    box = zone.bounding_box()
    place = {"x": box["x"] + box["width"] - 20, "y": box["y"] + box["height"] / 2}
    files = [str(p) for p in paths]
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": files, "dragOperationsMask": 1}
        session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    session.detach()


def answered(client: httpx.Client, case: str, cells: int, seconds: float = 120.0) -> None:
    """Wait until the case has so many cells and the model has answered for all."""

    def done() -> bool:
        body = client.get(f"/v1/cases/{case}").json()
        return (body["cells"], body["pending"]) == (cells, 0)

    until(done, seconds)


def filled(site: Site, page: Any, name: str, smear: Path, cells: int) -> str:
    """Start a case, drop a folder of so many cells on it, and wait until the wall shows the answers; its id."""
    case = new_case(page, name)
    drop(page, smear)
    answered(site.client(), case, cells)
    wall_has(page, cells)
    return case


def cells_of(client: httpx.Client, case: str) -> list[dict[str, Any]]:
    """All cells of a case, by number."""
    out: list[dict[str, Any]] = []
    while True:
        query = {"limit": 1000, "offset": len(out), "sort": "number"}
        some = client.get(f"/v1/cases/{case}/cells", params=query).json()["cells"]
        out += some
        if len(some) < 1000:
            return out


def chosen(page: Any) -> int:
    """Number of the chosen cell."""
    return int(page.locator(".tile[aria-current=true]").get_attribute("data-number"))


def key_of(page: Any, code: str) -> str:
    """The key that names a cell so, as the page shows it."""
    text: str = page.locator(f".counts .key[data-code={code}] kbd").inner_text()
    return text


def axe(page: Any) -> list[tuple[str, str]]:
    """What axe-core finds on the page at levels A and AA: rule and element."""
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    script = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(script)
    result = page.evaluate(f"axe.run(document, {{runOnly: {json.dumps(TAGS)}}})")
    assert result["passes"]
    return [(v["id"], n["html"][:200]) for v in result["violations"] for n in v["nodes"]]
