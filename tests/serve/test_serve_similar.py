"""The reference set: made from labelled cells, read back or refused, and what is nearest to a new cell."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rooms import MakeRoom, picture, write_trusting_model
from sklearn.neighbors import NearestNeighbors

from marrowscope.errors import DataError, FileFormatError, ModelError
from marrowscope.infer import Classifier
from marrowscope.serve.reference import ReferenceInfo, ReferenceSet, make_reference, reference_path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of each of two classes, with metadata, and one that is broken."""
    data = tmp_path_factory.mktemp("labelled")
    exif = Image.Exif()
    exif[0x010E] = "Patient Jane Doe"
    for k, code in enumerate(("BLA", "LYT")):
        for i in range(12):
            path = data / code / f"{code}_{i:05}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(picture(1000 * (k + 1) + i, 64, "JPEG", exif=exif, quality=95))
    (data / "LYT" / "LYT_00005.jpg").write_bytes(b"\xff\xd8broken")
    (data / "notes.txt").write_text("no picture")
    return data


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    return write_trusting_model(tmp_path / "m" / "full.onnx", "full", full=True)


def test_the_nearest_cells_are_those_of_scikit_learn(model: Path, labelled: Path) -> None:
    path, made, refused = make_reference(model, labelled)
    assert path == reference_path(model) == model.with_name("full.reference.npz")
    assert (len(made), refused) == (23, 1)
    back = ReferenceSet.read(path)
    assert back.codes == made.codes == ("BLA",) * 12 + ("LYT",) * 11
    names = [p for p in sorted(labelled.rglob("*.jpg")) if p.name != "LYT_00005.jpg"]
    features = Classifier.load(model).predict_features(names)
    oracle = NearestNeighbors(n_neighbors=5, metric="cosine").fit(features)
    asked = Classifier.load(model).predict_features([picture(7), picture(8)])
    distance, places = oracle.kneighbors(asked)
    for one, d, p in zip(asked, distance, places, strict=True):
        found = back.nearest(one, 5)
        assert [n.place for n in found] == p.tolist()
        np.testing.assert_allclose([n.similarity for n in found], 1 - d, atol=2e-3)  # kept as float16
        assert [n.code for n in found] == [back.codes[i] for i in p]


def test_its_pictures_are_small_and_without_metadata(model: Path, labelled: Path) -> None:
    path, made, _ = make_reference(model, labelled)
    assert b"Jane" not in path.read_bytes()
    first = made.thumbnail(0)
    assert first is not None
    image = Image.open(io.BytesIO(first))
    assert (image.format, max(image.size), dict(image.getexif())) == ("WEBP", 64, {})
    original = np.asarray(Image.open(labelled / "BLA" / "BLA_00000.jpg"), float).mean((0, 1))
    np.testing.assert_allclose(np.asarray(image.convert("RGB"), float).mean((0, 1)), original, atol=6)
    assert made.thumbnail(len(made)) is None
    assert made.thumbnail(-1) is None


def test_few_cells_of_each_class_are_spread_over_it(model: Path, labelled: Path, tmp_path: Path) -> None:
    _, made, _ = make_reference(model, labelled, tmp_path / "few.npz", per_class=3)
    assert made.codes == ("BLA",) * 3 + ("LYT",) * 3
    wanted = [f"{c}/{c}_{i:05}.jpg" for c in ("BLA", "LYT") for i in (0, 6, 11)]  # numpy rounds 5.5 to the even 6
    features = Classifier.load(model).predict_features([labelled / n for n in wanted])
    for i, f in enumerate(features):
        assert made.nearest(f, 1)[0].similarity == pytest.approx(1, abs=1e-3)
        assert made.nearest(f, 1)[0].place == i


def test_what_can_not_be_made_is_said(model: Path, labelled: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no output 'features'"):
        make_reference(tiny_model, labelled, tmp_path / "r.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="folder per class"):
        make_reference(model, tmp_path / "empty", tmp_path / "r.npz")
    with pytest.raises(DataError, match="1 and more"):
        make_reference(model, labelled, tmp_path / "r.npz", per_class=0)
    assert not (tmp_path / "r.npz").exists()


def _set(**changes: object) -> dict[str, np.ndarray]:
    info = ReferenceInfo(program="p", model="m", model_sha256="0" * 64, cells=2)
    arrays: dict[str, np.ndarray] = {
        "about": np.array(info.model_dump_json()),
        "codes": np.array(["BLA", "LYT"]),
        "features": np.eye(2, 3, dtype=np.float16),
        "thumbnails": np.arange(10, dtype=np.uint8),
        "ends": np.array([4, 10]),
    }
    return {**arrays, **{k: np.array(v) for k, v in changes.items()}}


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"codes": ["BLA", "XXX"]}, "damaged: XXX"),
        ({"codes": ["BLA"]}, "lengths differ"),
        ({"features": [[np.nan, 0, 0], [0, 0, 1]]}, "numbers do not fit"),
        ({"features": [1.0, 2.0]}, "lengths differ"),
        ({"ends": [4, 11]}, "numbers do not fit"),
        ({"ends": [10, 4]}, "numbers do not fit"),
        ({"ends": [0.5, 10]}, "ends"),
        ({"about": "{}"}, "not a valid reference set"),
        ({"codes": [{}, {}]}, "can't be read"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, changes: dict[str, object], hint: str) -> None:
    path = tmp_path / "r.npz"
    np.savez(path, **_set())
    assert len(ReferenceSet.read(path)) == 2
    np.savez(path, **_set(**changes))
    with pytest.raises(FileFormatError, match=hint):
        ReferenceSet.read(path)


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04"])
def test_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "r.npz").write_bytes(data)
    with pytest.raises(FileFormatError, match="can't be read as a reference set"):
        ReferenceSet.read(tmp_path / "r.npz")
    with pytest.raises(FileFormatError, match="can't be read as a reference set"):
        ReferenceSet.read(tmp_path / "missing.npz")


def test_the_service_shows_similar_cells_where_the_model_has_them(
    make_room: MakeRoom, model: Path, labelled: Path
) -> None:
    _, made, _ = make_reference(model, labelled)
    room = make_room(models=(str(model),))
    client = room.client()
    case = room.case(client, [picture(5), (labelled / "LYT" / "LYT_00003.jpg").read_bytes()])
    assert client.get("/v1/models").json()["models"][0]["reference_cells"] == 23
    near = client.get(f"/v1/cases/{case}/cells/2/similar").json()["cells"]
    assert len(near) == 8
    assert near[0]["code"] == "LYT"
    assert near[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert [n["similarity"] for n in near] == sorted((n["similarity"] for n in near), reverse=True)
    shown = client.get(near[0]["thumbnail"])
    assert shown.headers["content-type"] == "image/webp"
    assert shown.content == made.thumbnail(near[0]["place"])
    sha256 = made.info.model_sha256
    for wrong in (f"/v1/models/{sha256}/reference/23", f"/v1/models/{'0' * 64}/reference/0"):
        assert client.get(wrong).status_code == 404
    assert client.get(f"/v1/models/{sha256}/reference/-1").status_code == 422


def test_a_model_without_a_reference_set_says_so(make_room: MakeRoom, tiny_model: Path) -> None:
    room = make_room()
    client = room.client()
    case = room.case(client, [picture(5)])
    assert client.get("/v1/models").json()["models"][0]["reference_cells"] is None
    answer = client.get(f"/v1/cases/{case}/cells/1/similar")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "reference set" in answer.json()["message"]


def test_the_set_of_another_model_file_is_refused(make_room: MakeRoom, model: Path, labelled: Path) -> None:
    path, _, _ = make_reference(model, labelled)
    with pytest.raises(FileFormatError, match="another file of the model 'full'"):
        make_room(references=(path,))
