"""Who is let in, what is refused, and what every response says to browsers."""

from __future__ import annotations

import pytest
from rooms import MakeRoom, Room, parts, picture

from marrowscope.errors import ServiceError
from marrowscope.serve.auth import revoke_token
from marrowscope.serve.settings import Limits, Settings

ROLES = {"rita": "reader", "rob": "reviewer", "root": "admin"}


def test_without_a_token_nobody_gets_in_where_one_is_needed(make_room: MakeRoom) -> None:
    room = make_room(tokens=ROLES)
    spec = room.client().get("/openapi.json").json()
    nobody = room.client()
    for path, operations in spec["paths"].items():
        url = path.replace("{case}", "3f2b8c1e-5d0a-4f6b-9c77-1b2a3c4d5e6f").replace("{number}", "1")
        url = url.replace("{kind}", "csv").replace("{sha256}", "0" * 64).replace("{place}", "0")
        for method in operations:
            if path in {"/healthz", "/readyz"} or (path, method) == ("/v1/session", "post"):
                continue
            answer = nobody.request(method, url)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised"), (method, path)
    for path in ("/", "/healthz", "/readyz", "/openapi.json"):
        assert nobody.get(path).status_code == 200


@pytest.mark.parametrize("text", ["", "x", "mrw_0_0", "mrw_" + "0" * 16 + "_" + "x" * 43, "mrw_é"])
def test_wrong_tokens_are_refused_and_soon_not_even_looked_at(make_room: MakeRoom, text: str) -> None:
    room = make_room(tokens=ROLES, limits=Limits(failed_logins=3))
    header = {"Authorization": b"Bearer " + text.encode()}
    statuses = [room.client().get("/v1/cases", headers=header).status_code for _ in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    statuses = [room.client().post("/v1/session", json={"token": text}).status_code for _ in range(2)]
    assert statuses == [429, 429]


def test_roles_may_what_they_may(make_room: MakeRoom) -> None:
    room = make_room(tokens=ROLES)
    rita, rob, root = (room.client(room.tokens[n]) for n in ROLES)
    assert rita.post("/v1/cases", json={"name": "x"}).status_code == 403
    case = room.case(rob, [picture(0)])
    url = f"/v1/cases/{case}"
    for path in ("", "/cells", "/cells/1", "/differential", "/history", "/export/csv"):
        assert rita.get(url + path).status_code == 200
    assert rita.post("/v1/predict", files=parts([picture(0)])).status_code == 200
    for method, path, body in (
        ("patch", "/cells/1", {"version": 1, "label": "BLA"}),
        ("post", "/changes", {"changes": [{"number": 1, "version": 1, "label": "BLA"}]}),
        ("post", "/undo", None),
        ("post", "/sign", {"version": 3}),
        ("post", "/reopen", {"reason": "x"}),
        ("delete", "", None),
    ):
        assert rita.request(method, url + path, json=body).status_code == 403
    assert rob.get("/v1/audit").status_code == 403
    assert root.get("/v1/audit").status_code == 200
    assert rob.get("/v1/session").json()["role"] == "reviewer"


def test_a_revoked_token_is_worth_nothing_at_once(make_room: MakeRoom) -> None:
    room = make_room(tokens=ROLES)
    rob, browser = room.client(room.tokens["rob"]), room.client()
    assert browser.post("/v1/session", json={"token": room.tokens["rob"]}).status_code == 200
    with room.service.database.write() as session:
        revoke_token(session, "rob")
    assert rob.get("/v1/cases").status_code == 401
    assert browser.get("/v1/cases").status_code == 401


def test_a_browser_gets_a_cookie_that_scripts_can_not_read_and_changes_need_its_secret(make_room: MakeRoom) -> None:
    room = make_room(tokens=ROLES)
    browser = room.client()
    answer = browser.post("/v1/session", json={"token": room.tokens["rob"]})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert room.tokens["rob"] not in cookie
    csrf = answer.json()["csrf"]
    assert browser.get("/v1/session").json()["csrf"] == csrf
    body = {"name": "x"}
    assert browser.post("/v1/cases", json=body).json()["code"] == "csrf"
    for wrong in (b"", csrf.swapcase().encode(), csrf[:-1].encode(), b"\xe9"):
        assert browser.post("/v1/cases", json=body, headers={"X-CSRF-Token": wrong}).json()["code"] == "csrf"
    assert browser.post("/v1/cases", json=body, headers={"X-CSRF-Token": csrf}).status_code == 201
    assert browser.delete("/v1/session", headers={"X-CSRF-Token": csrf}).status_code == 204
    old = answer.headers["set-cookie"].partition(";")[0]
    assert room.client().get("/v1/session", headers={"Cookie": old}).status_code == 401


def test_only_hashes_of_tokens_are_kept(make_room: MakeRoom) -> None:
    room = make_room(tokens=ROLES)
    room.client().post("/v1/session", json={"token": room.tokens["rob"]})
    kept = b"".join(p.read_bytes() for p in room.service.settings.data.rglob("*sqlite*"))
    for token in room.tokens.values():
        assert token.split("_", 2)[2].encode() not in kept
        assert token.encode() not in kept


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "wrong_host"),
        ({"Host": "localhost.evil.example:8321"}, "wrong_host"),
        ({"Host": "localhost@evil.example"}, "wrong_host"),
        ({"Host": "["}, "wrong_host"),
        ({"Origin": "https://evil.example"}, "cross_origin"),
        ({"Origin": "null"}, "cross_origin"),
        ({"Origin": "http://["}, "cross_origin"),
        ({"Origin": "http://localhost:81"}, "cross_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "cross_origin"),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"}, "cross_origin"),
    ],
)
def test_pages_of_other_sites_can_change_nothing(room: Room, headers: dict[str, str], code: str) -> None:
    answer = room.client().post("/v1/cases", json={"name": "x"}, headers=headers)
    assert answer.json()["code"] == code
    assert answer.status_code in {403, 421}
    assert room.client().get("/v1/cases").json()["total"] == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "127.0.0.1:8321"},
        {"Host": "[::1]:8321"},
        {"Host": "LOCALHOST"},
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_the_own_page_and_programs_can(room: Room, headers: dict[str, str]) -> None:
    assert room.client().post("/v1/cases", json={"name": "x"}, headers=headers).status_code == 201


def test_every_response_tells_browsers_to_be_strict(room: Room) -> None:
    client = room.client()
    case = room.case(client, [picture(0)])
    urls = [
        "/",
        "/healthz",
        "/nothing",
        "/v1/cases",
        f"/v1/cases/{case}/cells/1/picture",
        f"/v1/cases/{case}/export/json",
    ]
    for url in urls:
        headers = client.get(url).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        assert "cache-control" in headers
    assert client.get(urls[-1]).headers["content-disposition"].startswith("attachment")


def test_bodies_have_a_limit_whatever_their_header_says(make_room: MakeRoom) -> None:
    room = make_room(limits=Limits(request_bytes=50_000, file_bytes=30_000, files=5))
    client = room.client()

    def chunks():
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        yield head
        for _ in range(20):
            yield b"x" * 10_000

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    for url in ("/v1/predict",):
        large = client.post(url, files=parts([b"x" * 60_000]))
        assert (large.status_code, large.json()["code"]) == (413, "too_large")
        chunked = client.post(url, content=chunks(), headers=kind)
        assert (chunked.status_code, chunked.json()["code"]) == (413, "too_large")
        many = client.post(url, files=parts([picture(i) for i in range(6)]))
        assert (many.status_code, many.json()["code"]) == (413, "too_many_files")
        one = client.post(url, files=parts([b"x" * 40_000]))
        assert one.json()["detail"][0].startswith("file too large")
    long = client.post(
        "/v1/cases", content=b'{"name": "' + b"x" * 2_000_000, headers={"Content-Type": "application/json"}
    )
    assert long.status_code == 413

    def endless():
        for _ in range(30):
            yield b" " * 100_000

    long = client.post("/v1/cases", content=endless(), headers=kind)
    assert (long.status_code, long.json()["code"]) == (413, "too_large")


def test_who_asks_too_often_has_to_wait(make_room: MakeRoom) -> None:
    room = make_room(limits=Limits(rate=0.5, burst=5))
    client = room.client()
    answers = [client.get("/healthz") for _ in range(7)]
    assert [a.status_code for a in answers] == [200] * 5 + [429] * 2
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 3


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"host": "0.0.0.0"}, "--tls-certificate"),
        ({"host": "192.0.2.1", "behind_proxy": True}, "--host-name"),
        ({"tls_key": "k.pem"}, "both"),
        ({"port": 70000}, "65535"),
    ],
)
def test_unsafe_or_senseless_settings_are_refused(tmp_path, values, hint: str) -> None:
    with pytest.raises(ServiceError, match=hint):
        Settings(data=tmp_path, models=("m",), **values)


@pytest.mark.parametrize(("values", "hint"), [({"files": 0}, "above 0"), ({"queue": 3}, "queue")])
def test_limits_out_of_range_are_refused(values, hint: str) -> None:
    with pytest.raises(ServiceError, match=hint):
        Limits(**values)


def test_other_machines_need_a_token_and_there_must_be_one(make_room: MakeRoom) -> None:
    open_to_all = {"host": "0.0.0.0", "behind_proxy": True, "host_names": ("room.example",)}
    with pytest.raises(ServiceError, match="token add"):
        make_room(**open_to_all)
    room = make_room(tokens=ROLES, **open_to_all)
    client = room.client(room.tokens["rob"])
    assert client.get("/v1/cases").status_code == 421
    assert client.get("/v1/cases", headers={"Host": "room.example"}).status_code == 200
    assert room.client().get("/v1/cases", headers={"Host": "room.example"}).status_code == 401
    answer = room.client().post("/v1/session", json={"token": room.tokens["rob"]}, headers={"Host": "room.example"})
    assert "secure" in answer.headers["set-cookie"].lower()


def test_two_services_do_not_share_a_folder(make_room: MakeRoom) -> None:
    make_room()
    with pytest.raises(ServiceError, match="Another service"):
        make_room()


def test_the_page_is_served_from_memory_by_name_alone(room: Room) -> None:
    client = room.client()
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert client.get("/", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    for name in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "index.html%00", "__init__.py", ".", ""):
        assert client.get(f"/page/{name}").status_code == 404
