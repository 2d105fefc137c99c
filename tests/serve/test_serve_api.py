"""The way of a case through the API: upload, answers, labels, undo, differential, signing, deleting."""

from __future__ import annotations

import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from rooms import MakeRoom, Room, parts, picture, until

from marrowscope import differential, images
from marrowscope.infer import Classifier
from marrowscope.schema import OK, Predictions


def _cells(client, case: str, **filters):
    body = client.get(f"/v1/cases/{case}/cells", params={"limit": 1000, **filters}).json()
    return body["cells"]


def test_predict_answers_as_the_model_does(room: Room, tiny_model) -> None:
    pictures = [picture(i) for i in range(5)]
    body = room.client().post("/v1/predict", files=parts([*pictures[:3], b"no picture", *pictures[3:]])).json()
    model = Classifier.load(tiny_model)
    answers = model.predict_answers([images.decode(p) for p in pictures])
    got = body["predictions"]
    assert [p["status"] == OK for p in got] == [True, True, True, False, True, True]
    assert got[3]["probabilities"] is None
    assert got[3]["status"].startswith("not a known picture format")
    for p, probs, inside, ood in zip(
        [p for p in got if p["status"] == OK], answers.probs_NC, answers.sets_NC, answers.ood_N, strict=True
    ):
        assert list(p["probabilities"]) == list(model.codes)
        np.testing.assert_allclose(list(p["probabilities"].values()), probs, atol=1e-6)
        assert p["predicted"] == model.codes[probs.argmax()]
        assert p["conformal_set"] == [c for c, i in zip(model.codes, inside, strict=True) if i]
        assert p["ood"] is bool(ood)
    assert re.fullmatch("[0-9a-f]{64}", body["sha256"])


def test_upload_is_idempotent_and_can_be_taken_up_again(room: Room) -> None:
    client = room.client()
    pictures = [picture(i) for i in range(6)]
    case = room.case(client, pictures[:4])
    again = client.post(f"/v1/cases/{case}/cells", files=parts([*pictures, pictures[5], b"<svg/>"])).json()["results"]
    assert [r["outcome"] for r in again] == ["present"] * 4 + ["added", "added", "present", "refused"]
    assert [r["number"] for r in again] == [1, 2, 3, 4, 5, 6, 6, None]
    digests = [r["sha256"] for r in again[:6]]
    missing = client.post(f"/v1/cases/{case}/cells/missing", json={"sha256": [*digests, "0" * 64, "0" * 64]}).json()
    assert missing == {"missing": ["0" * 64]}
    assert client.get(f"/v1/cases/{case}").json()["cells"] == 6


def test_the_cells_of_one_case_say_nothing_about_another(room: Room) -> None:
    client = room.client()
    room.case(client, [picture(0)])
    other = client.post("/v1/cases", json={"name": "other"}).json()["id"]
    digest = client.post("/v1/predict", files=parts([picture(0)])).json()["sha256"]
    assert client.post(f"/v1/cases/{other}/cells/missing", json={"sha256": [digest]}).json()["missing"] == [digest]


def test_cells_are_listed_least_certain_first_filtered_and_in_pages(room: Room) -> None:
    client = room.client()
    case = room.case(client, [picture(i) for i in range(30)])
    cells = _cells(client, case)
    assert len(cells) == 30
    unsure = [c["uncertainty"] for c in cells]
    assert unsure == sorted(unsure, reverse=True)
    assert [c["number"] for c in _cells(client, case, sort="number")] == list(range(1, 31))
    pages = [_cells(client, case, limit=7, offset=o) for o in range(0, 35, 7)]
    assert [c for page in pages for c in page] == cells
    by_class = Counter(c["code"] for c in cells)
    for code, n in by_class.items():
        assert len(_cells(client, case, **{"class": code})) == n
    grouped = [c["code"] for c in _cells(client, case, sort="class")]
    assert grouped == sorted(grouped)
    flagged = {c["number"] for c in cells if c["ood"]}
    assert 0 < len(flagged) < 30
    assert {c["number"] for c in _cells(client, case, ood=True)} == flagged
    assert len(_cells(client, case, ood=False)) == 30 - len(flagged)


def test_labels_accept_exclude_and_undo_leave_a_history(room: Room) -> None:
    client = room.client()
    case = room.case(client, [picture(i) for i in range(3)])
    url = f"/v1/cases/{case}"
    first = client.get(f"{url}/cells/1").json()
    other = next(c for c in ("BLA", "EOS") if c != first["predicted"])
    one = client.patch(f"{url}/cells/1", json={"version": 1, "label": other}).json()["cells"][0]
    assert (one["code"], one["label"], one["label_by"], one["version"]) == (other, other, "local", 2)
    two = client.patch(f"{url}/cells/2", json={"version": 1, "accept": True}).json()["cells"][0]
    assert two["label"] == two["predicted"]
    assert client.patch(f"{url}/cells/2", json={"version": 2, "excluded": True}).json()["cells"][0]["excluded"]
    assert {c["number"] for c in _cells(client, case, reviewed=True)} == {1, 2}
    assert {c["number"] for c in _cells(client, case, excluded=True)} == {2}
    undone = [client.post(f"{url}/undo").json()["cells"][0] for _ in range(3)]
    assert [(c["number"], c["label"], c["excluded"]) for c in undone] == [
        (2, two["label"], False),
        (2, None, False),
        (1, None, False),
    ]
    assert client.post(f"{url}/undo").json()["code"] == "nothing_to_undo"
    events = client.get(f"{url}/history").json()["events"]
    assert [e["action"] for e in events] == "create upload label accept exclude undo undo undo".split()
    assert events[2]["before"]["label"] is None
    assert events[2]["after"]["label"] == other
    assert [e["undoes"] for e in events[5:]] == [events[4]["id"], events[3]["id"], events[2]["id"]]
    assert [e["cell"] for e in client.get(f"{url}/history", params={"cell": 1}).json()["events"]] == [1, 1]
    last = client.get(f"{url}/cells/1").json()
    assert {k: v for k, v in last.items() if k not in {"version", "changed"}} == {
        k: v for k, v in first.items() if k not in {"version", "changed"}
    }


def test_who_has_not_seen_the_present_state_is_told_it(make_room: MakeRoom) -> None:
    room = make_room(tokens={"anna": "reviewer", "ben": "reviewer"})
    anna, ben = (room.client(room.tokens[n]) for n in ("anna", "ben"))
    case = room.case(anna, [picture(i) for i in range(3)])
    url = f"/v1/cases/{case}"
    assert anna.patch(f"{url}/cells/1", json={"version": 1, "label": "BLA"}).status_code == 200
    late = ben.patch(f"{url}/cells/1", json={"version": 1, "label": "LYT"})
    assert late.status_code == 409
    present = late.json()["detail"][0]
    assert (present["label"], present["label_by"], present["version"]) == ("BLA", "anna", 2)
    many = [{"number": 2, "version": 1, "label": "LYT"}, {"number": 1, "version": 1, "label": "LYT"}]
    assert ben.post(f"{url}/changes", json={"changes": many}).status_code == 409
    assert ben.get(f"{url}/cells/2").json()["label"] is None, "all of them or none"
    many[1]["version"] = 2
    assert ben.post(f"{url}/changes", json={"changes": many}).status_code == 200
    taken = anna.post(f"{url}/undo")
    assert (taken.status_code, taken.json()["code"]) == (409, "conflict")
    assert taken.json()["detail"][0]["label_by"] == "ben"
    changed = anna.get(f"{url}/cells", params={"changed_since": 4}).json()
    assert {c["number"] for c in changed["cells"]} == {1, 2}


def test_the_differential_follows_every_change_and_is_the_librarys(room: Room) -> None:
    client = room.client()
    case = room.case(client, [picture(i) for i in range(40)])
    url = f"/v1/cases/{case}"
    cells = _cells(client, case, sort="number")
    waiting = [c for c in cells if c["ood"]]
    client.patch(f"{url}/cells/{waiting[0]['number']}", json={"version": 1, "label": "PMO"})
    counted = [c for c in cells if not c["ood"]]
    client.patch(f"{url}/cells/{counted[0]['number']}", json={"version": 1, "excluded": True})
    client.patch(f"{url}/cells/{counted[1]['number']}", json={"version": 1, "label": "EOS"})
    got = client.get(f"{url}/differential").json()
    codes = Counter(c["code"] for c in counted[2:])
    codes.update(["EOS", "PMO"])
    order = ("BLA", "EOS", "LYT", "NGS", "PMO")
    labels = [c for c in order for _ in range(codes[c])]
    rows = np.array([[float(c == label) for c in order] for label in labels])
    expected = differential.count(Predictions(("",) * len(labels), (OK,) * len(labels), order, rows))
    assert got["differential"] == expected.model_dump(mode="json")
    assert (got["cells"], got["excluded"], got["ood_waiting"], got["reviewed"]) == (40, 1, len(waiting) - 1, 2)
    assert any("PMO" in note for note in got["notes"])
    assert got["notes"][0].startswith(f"{len(labels) - 2} of {len(labels)} named cells"), "two have a person's label"
    odds = client.get(f"{url}/differential", params={"ratio": "granulocytic"}).json()["differential"]
    assert odds["myeloid_erythroid"]["definition"] == "granulocytic"
    assert client.get(f"{url}/differential", params={"ratio": "x"}).status_code == 422


def test_a_signed_case_is_locked_and_keeps_what_was_signed(make_room: MakeRoom) -> None:
    room = make_room(tokens={"anna": "reviewer", "root": "admin"})
    anna, root = (room.client(room.tokens[n]) for n in ("anna", "root"))
    case = room.case(anna, [picture(i) for i in range(4)])
    url = f"/v1/cases/{case}"
    seen = anna.get(f"{url}/differential").json()
    anna.patch(f"{url}/cells/1", json={"version": 1, "label": "BLA"})
    assert anna.post(f"{url}/sign", json={"version": seen["case_version"]}).status_code == 409
    seen = anna.get(f"{url}/differential").json()
    signed = anna.post(f"{url}/sign", json={"version": seen["case_version"], "comment": "fine"}).json()
    assert signed["state"] == "signed"
    signature = signed["signatures"][0]
    assert signature["summary"] == seen
    assert (signature["by"], signature["comment"], signature["revision"]) == ("anna", "fine", 1)
    assert signature["model_sha256"] == signed["model_sha256"]
    assert signature["program"].startswith("marrowscope ")
    for answer in (
        anna.patch(f"{url}/cells/1", json={"version": 2, "label": "LYT"}),
        anna.post(f"{url}/undo"),
        anna.post(f"{url}/cells", files=parts([picture(9)])),
        anna.post(f"{url}/sign", json={"version": seen["case_version"] + 1}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "signed")
    assert anna.post(f"{url}/reopen", json={"reason": "no"}).status_code == 403
    assert anna.delete(url).status_code == 403
    again = root.post(f"{url}/reopen", json={"reason": "two slides"}).json()
    assert (again["state"], again["revision"], again["signatures"]) == ("open", 2, [signature])
    assert anna.patch(f"{url}/cells/1", json={"version": 2, "label": "LYT"}).status_code == 200
    seen = anna.get(f"{url}/differential").json()
    both = anna.post(f"{url}/sign", json={"version": seen["case_version"]}).json()["signatures"]
    assert both[0] == signature
    assert both[1]["summary"] == seen != signature["summary"]
    assert root.delete(url).status_code == 204


def test_deleting_leaves_nothing_but_the_log(room: Room) -> None:
    client = room.client()
    case = room.case(client, [picture(i) for i in range(3)])
    client.get(f"/v1/cases/{case}/cells/1/thumbnail")
    kept = client.post("/v1/cases", json={"name": "kept"}).json()["id"]
    assert client.delete(f"/v1/cases/{case}").status_code == 204
    for path in ("", "/cells", "/cells/1", "/cells/1/picture", "/differential", "/history"):
        assert client.get(f"/v1/cases/{case}{path}").status_code == 404
    assert client.post(f"/v1/cases/{case}/cells", files=parts([picture(0)])).status_code == 404
    assert not list(room.service.settings.data.rglob(f"*{case}*"))
    assert [c["id"] for c in client.get("/v1/cases").json()["cases"]] == [kept]
    audit = client.get("/v1/audit").json()["events"]
    assert [e["action"] for e in audit if e["case_id"] == case] == ["create", "upload", "delete"]


def test_pictures_go_out_without_metadata(room: Room) -> None:
    exif = Image.Exif()
    exif[0x010E] = "Patient Jane Doe"
    data = picture(1, kind="JPEG", exif=exif, comment=b"Jane Doe")
    assert b"Jane Doe" in data
    client = room.client()
    case = room.case(client, [data])
    whole = client.get(f"/v1/cases/{case}/cells/1/picture").content
    small = client.get(f"/v1/cases/{case}/cells/1/thumbnail").content
    heat = client.get(f"/v1/cases/{case}/cells/1/explanation").content
    for answer in (whole, small, heat):
        assert b"Jane" not in answer
        assert not Image.open(io.BytesIO(answer)).getexif()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(whole)).convert("RGB")), images.decode(data))
    assert client.get(f"/v1/cases/{case}/cells/1/explanation", params={"class": "PMO"}).status_code == 422


def test_names_of_files_are_shown_to_their_owner_alone(make_room: MakeRoom) -> None:
    room = make_room(tokens={"anna": "reviewer", "ben": "reviewer"})
    anna, ben = (room.client(room.tokens[n]) for n in ("anna", "ben"))
    case = anna.post("/v1/cases", json={"name": "x"}).json()["id"]
    strange = "C:\\Users\\..\\..\\etc/passwd\x07 Müller.png"
    anna.post(f"/v1/cases/{case}/cells", files=[("files", (strange, picture(0), "text/html"))])
    assert _cells(anna, case)[0]["file_name"] in {"passwd Müller.png", "passwd%07 Müller.png"}
    assert _cells(ben, case)[0]["file_name"] is None
    assert "Müller" not in anna.get(f"/v1/cases/{case}/history").text


def test_cells_that_the_model_can_not_answer_for_are_said_so(room: Room) -> None:
    """A picture that vanished from the disk: the case goes on, and says so."""
    client = room.client()
    room.service.annotator.close()
    case = room.case(client, [picture(i) for i in range(2)], wait=False)
    digest = client.get(f"/v1/cases/{case}/cells/1").json()["sha256"]
    room.service.blobs.path(case, digest).unlink()
    seen = client.get(f"/v1/cases/{case}/differential").json()
    refused = client.post(f"/v1/cases/{case}/sign", json={"version": seen["case_version"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "pending")
    from marrowscope.serve.annotator import Annotator

    batchers = {k: m.batcher for k, m in room.service.models.items()}
    room.service.annotator = Annotator(room.service.database, room.service.blobs, batchers, 10**6)
    until(lambda: client.get(f"/v1/cases/{case}").json()["pending"] == 0)
    cells = _cells(client, case, sort="number")
    assert [c["status"] for c in cells] == ["failed", "ready"]
    assert "not in the store" in cells[0]["reason"]
    assert client.get(f"/v1/cases/{case}/cells/1/picture").status_code == 404
    refused = client.patch(f"/v1/cases/{case}/cells/1", json={"version": 1, "accept": True})
    assert (refused.status_code, refused.json()["code"]) == (409, "pending")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"version": 1},
        {"version": 0, "label": "BLA"},
        {"version": 1, "label": "XXX"},
        {"version": 1, "label": "bla"},
        {"version": 1, "label": "BLA", "accept": True},
        {"version": 1, "label": "BLA", "further": 1},
    ],
)
def test_changes_that_make_no_sense_are_refused(room: Room, body: dict[str, object]) -> None:
    client = room.client()
    case = room.case(client, [picture(0)])
    answer = client.patch(f"/v1/cases/{case}/cells/1", json=body)
    assert answer.status_code == 422
    assert set(answer.json()) == {"code", "message", "detail"}
    assert client.get(f"/v1/cases/{case}/cells/1").json()["version"] == 1
