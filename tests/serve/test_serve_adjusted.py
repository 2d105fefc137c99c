"""Adjusted counts of a case: those of the library for the model's answers, whatever people have said of the cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rooms import MakeRoom, Room, picture

from marrowscope.differential import count
from marrowscope.infer import read_card
from marrowscope.schema import OK, Predictions


@pytest.fixture
def full_room(make_room: MakeRoom, full_model: Path) -> Room:
    return make_room(models=(str(full_model),))


def _expected(cells: list[dict], model: Path, ratio: str = "granulocytic-monocytic"):
    """The same from the API's own cells, by the library alone."""
    kept = [c for c in cells if c["status"] == "ready" and not c["excluded"] and not c["ood"]]
    probs = np.array([c["probabilities"] for c in kept])
    probs /= probs.sum(1, keepdims=True)
    card = read_card(model)
    predictions = Predictions(("",) * len(kept), (OK,) * len(kept), card.codes, probs)
    return count(predictions, ratio=ratio, card=card, review=False).model_dump(mode="json")


def test_they_are_the_librarys_for_the_models_answers(full_room: Room, full_model: Path) -> None:
    client = full_room.client()
    case = full_room.case(client, [picture(i) for i in range(60)])
    url = f"/v1/cases/{case}"
    before = client.get(f"{url}/differential").json()
    cells = client.get(f"{url}/cells", params={"limit": 100, "sort": "number"}).json()["cells"]
    assert any(c["ood"] for c in cells)
    expected = _expected(cells, full_model)
    got = before["differential"]
    assert got["adjustment"] == expected["adjustment"]
    assert got["adjustment"]["cells"] == sum(not c["ood"] for c in cells)
    for row, wanted in zip(got["rows"], expected["rows"], strict=True):
        assert (row["adjusted"], row["corrected"]) == (wanted["adjusted"], wanted["corrected"])
        assert row["adjusted"]["value"] is not None
    for name in ("myeloid_erythroid", "blast_percent"):
        assert got[name]["adjusted"] == expected[name]["adjusted"]
    assert sum(r["adjusted"]["value"] for r in got["rows"]) == pytest.approx(100)
    assert any("whatever people have named them" in n for n in before["notes"])

    # A label moves the raw count and not these; excluding a cell moves these.
    one = next(c for c in cells if not c["ood"])
    client.patch(f"{url}/cells/{one['number']}", json={"version": 1, "label": "PMO"})
    labelled = client.get(f"{url}/differential").json()["differential"]
    assert {r["code"]: r["count"] for r in labelled["rows"]}["PMO"] == 1
    assert labelled["rows"][1]["adjusted"] is None, "promyelocytes are none of the model's classes"
    kept = {r["code"]: r["adjusted"] for r in got["rows"]}
    assert {r["code"]: r["adjusted"] for r in labelled["rows"] if r["code"] != "PMO"} == kept
    client.patch(f"{url}/cells/{one['number']}", json={"version": 2, "excluded": True})
    after = client.get(f"{url}/differential").json()["differential"]
    assert after["adjustment"]["cells"] == got["adjustment"]["cells"] - 1
    cells = client.get(f"{url}/cells", params={"limit": 100, "sort": "number"}).json()["cells"]
    assert after["rows"][0]["adjusted"] == _expected(cells, full_model)["rows"][0]["adjusted"]


def test_who_is_in_a_hurry_gets_the_raw_count_alone(full_room: Room) -> None:
    client = full_room.client()
    case = full_room.case(client, [picture(i) for i in range(9)])
    quick = client.get(f"/v1/cases/{case}/differential", params={"adjusted": False}).json()
    assert quick["differential"]["adjustment"] is None
    assert quick["unadjusted"] is None
    whole = client.get(f"/v1/cases/{case}/differential").json()
    assert whole["differential"]["adjustment"] is not None
    assert [r["percent"] for r in whole["differential"]["rows"]] == [
        r["percent"] for r in quick["differential"]["rows"]
    ]


def test_why_there_are_none_is_said(full_room: Room, make_room: MakeRoom, tmp_path: Path) -> None:
    client = full_room.client()
    case = full_room.case(client, [picture(i) for i in range(5)])
    for number in range(1, 6):
        client.patch(f"/v1/cases/{case}/cells/{number}", json={"version": 1, "label": "BLA"})
    assert "nothing to adjust" in client.get(f"/v1/cases/{case}/differential").json()["unadjusted"]
    empty = client.post("/v1/cases", json={"name": "empty"}).json()["id"]
    assert "No nucleated cell" in client.get(f"/v1/cases/{empty}/differential").json()["unadjusted"]
    other = make_room(data=tmp_path / "other")
    client = other.client()
    case = other.case(client, [picture(i) for i in range(5)])
    got = client.get(f"/v1/cases/{case}/differential").json()
    assert "does not tell its confusions" in got["unadjusted"]
    assert got["differential"]["adjustment"] is None


def test_a_case_of_a_model_that_is_gone_is_still_counted(
    make_room: MakeRoom, full_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    first = make_room(models=(str(full_model),), data=tmp_path / "same")
    case = first.case(first.client(), [picture(i) for i in range(9)])
    first.service.close()
    client = make_room(models=(str(tiny_model),), data=tmp_path / "same").client()
    got = client.get(f"/v1/cases/{case}/differential").json()
    assert got["differential"]["counted"] > 0
    assert "not loaded" in got["unadjusted"]


def test_signed_cases_keep_them(full_room: Room) -> None:
    client = full_room.client()
    case = full_room.case(client, [picture(i) for i in range(20)])
    seen = client.get(f"/v1/cases/{case}/differential").json()
    signed = client.post(f"/v1/cases/{case}/sign", json={"version": seen["case_version"]}).json()
    assert signed["signatures"][0]["summary"] == seen
    assert seen["differential"]["adjustment"]["model"] == "full"
