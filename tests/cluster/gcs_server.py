"""As much of Google Cloud Storage's JSON API as its client library needs for reading, writing and listing objects.

Source: https://cloud.google.com/storage/docs/json_api/v1. Like the store, it gives prefixes, and no folders.
"""

from __future__ import annotations

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit


class Handler(BaseHTTPRequestHandler):
    """One bucket, ``cells``. Objects called ``*locked*`` may not be read, and for ``*failing*`` it does not
    answer; the content of ``*slow*`` takes a second."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        path, query = self._asked()
        bucket, _, name = path.removeprefix("/download").removeprefix("/storage/v1/b/").partition("/o")
        name = unquote(name.removeprefix("/"))
        if "failing" in name:
            self._error(503)
        elif bucket != "cells":
            self._error(404)
        elif not name:
            prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
            names = [n for n in sorted(self.objects) if n.startswith(prefix)]
            flat = [n for n in names if not delimiter or delimiter not in n[len(prefix) :]]
            self._json({"kind": "storage#objects", "items": [self._metadata(n) for n in flat]})
        elif name not in self.objects:
            self._error(404)
        elif "locked" in name:
            self._error(403)
        elif query.get("alt") == "media":
            time.sleep(1 if "slow" in name else 0)
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self._send(206 if start else 200, self.objects[name][start:], {"x-goog-generation": "1"})
        else:
            self._json(self._metadata(name))

    def do_POST(self) -> None:
        path, query = self._asked()
        self.rfile.read(int(self.headers["Content-Length"]))
        if not path.startswith("/upload/storage/v1/b/cells/o"):
            self._error(404)
            return
        self._send(200, b"", {"Location": f"http://{self.headers['Host']}/session?name={quote(query['name'])}"})

    def do_PUT(self) -> None:
        """The whole object in one piece, as small ones come."""
        _, query = self._asked()
        self.objects[query["name"]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._json(self._metadata(query["name"]))

    def _asked(self) -> tuple[str, dict[str, str]]:
        url = urlsplit(self.path)
        return url.path, {k: v[0] for k, v in parse_qs(url.query).items()}

    def _metadata(self, name: str) -> dict[str, Any]:
        size = str(len(self.objects[name]))
        return {
            "kind": "storage#object", "bucket": "cells", "name": name, "size": size, "generation": "1",
            "metageneration": "1", "updated": "2021-01-01T00:00:00Z", "timeCreated": "2021-01-01T00:00:00Z",
        }  # fmt: skip

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, code: int) -> None:
        body = json.dumps({"error": {"code": code, "message": f"status {code}"}}).encode()
        self._send(code, body, {"Content-Type": "application/json"})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
