"""The OpenAPI document is complete, and no request that schemathesis makes of it ends in a 500."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from live import Live
from rooms import parts, picture
from schemathesis.checks import CHECKS

from marrowscope.serve.settings import Limits, Settings

EXAMPLES = 25


@pytest.fixture(scope="module")
def live(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    limits = Limits(rate=1e6, burst=10**6)
    data = tmp_path_factory.mktemp("schema")
    with Live(Settings(data=data, models=(str(tiny_model),), port=0, threads=1, limits=limits)) as live:
        yield live


@pytest.fixture(scope="module")
def document(live: Live) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{live.address}/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def api(document: dict[str, Any]) -> Any:
    return schemathesis.openapi.from_dict(document)


@pytest.fixture(scope="module")
def existing(live: Live) -> str:
    """A case with cells, so that not all that is asked for is missing."""
    case = httpx.post(f"{live.address}/v1/cases", json={"name": "existing"}).json()["id"]
    httpx.post(f"{live.address}/v1/cases/{case}/cells", files=parts([picture(i) for i in range(5)]))
    return str(case)


CONFORMING = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
)  # fmt: skip


def test_no_request_ends_in_a_500_and_answers_are_as_described(api: Any, live: Live, existing: str) -> None:
    checks = [CHECKS.get_one(name) for name in CONFORMING]
    tried = 0

    def send(case: Any) -> None:
        nonlocal tried
        tried += 1
        if case.method != "DELETE" and "case" in case.path_parameters and tried % 2:
            case.path_parameters["case"] = existing
            if isinstance(case.path_parameters.get("number"), int):
                case.path_parameters["number"] = 1 + case.path_parameters["number"] % 5
        case.validate_response(case.call(base_url=live.address), checks=checks)

    for found in api.get_all_operations():
        strategy = found.ok().as_strategy()
        settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(given(strategy)(send))()
    assert tried > 200


def test_every_operation_is_described_with_its_errors(document: dict[str, Any]) -> None:
    error = {"$ref": "#/components/schemas/ErrorBody"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["description"] or operation["summary"], where
            responses = operation["responses"]
            assert {"400", "401", "403", "413", "421", "422", "429", "500"} <= responses.keys(), where
            for status, response in responses.items():
                if int(status) < 400 or (path, status) == ("/readyz", "503"):
                    continue
                assert response["content"]["application/json"]["schema"] == error, f"{where} {status}"
    assert document["components"]["schemas"]["ErrorBody"]["examples"]
    bodies = [s for name, s in document["components"]["schemas"].items() if name.endswith("In")]
    assert len(bodies) > 6
    assert all(s.get("examples") for s in bodies), "every body that one sends has an example"
    assert not any(name.startswith("HTTPValidation") for name in document["components"]["schemas"])
    assert "Not a medical device" in document["info"]["description"]
