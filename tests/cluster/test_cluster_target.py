"""The folder of results: whose it is, which parts are done, and the check; and what a worker says of trouble."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from marrowscope.errors import FileFormatError, ImageError, OutputError
from marrowscope.infer import load_predictor, predict_files

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet")

from marrowscope.cluster import MANIFEST, Manifest, listing, worker  # noqa: E402
from marrowscope.cluster.listing import LISTING, list_sources  # noqa: E402
from marrowscope.cluster.stores import DENIED, Folder  # noqa: E402
from marrowscope.cluster.target import check, open_target, summary_of  # noqa: E402
from marrowscope.cluster.worker import Attempts, Job, PartPredictor  # noqa: E402

Begin = Callable[..., tuple[Manifest, set[int]]]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def begin(model_path: Path, pictures: Path, target: Path, tmp_path: Path) -> Begin:
    """Opens the target for `pictures`, four to a part."""

    def open_it(model: Path = model_path, resume: bool = False, size: int | None = 4) -> tuple[Manifest, set[int]]:
        found = list_sources([str(pictures)], tmp_path / "listing.parquet")
        digests = [hashlib.sha256(model.read_bytes()).hexdigest()]
        identity = load_predictor([model], threads=1).identity
        return open_target(Folder(str(target)), found, identity, digests, part_images=size, resume=resume)

    return open_it


class Store:
    """Stands for Ray: its references are the things themselves."""

    @staticmethod
    def get(thing: Any) -> Any:
        return thing


@pytest.fixture
def actor(model_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PartPredictor]:
    """Makes the actor of a job, in this process."""
    monkeypatch.setattr(worker, "ray", Store)

    def make(manifest: Manifest, **changes: Any) -> PartPredictor:
        attempts = Attempts()
        job = Job(
            target=str(target), manifest=manifest, blobs=(model_path.read_bytes(),), views=1, alpha=None, accuracy=None,
            device="cpu", threads=1, readers=1, batch_size=3, here="/", witness="",
            attempts=SimpleNamespace(begin=SimpleNamespace(remote=attempts.begin)),
        )  # fmt: skip
        return PartPredictor(dataclasses.replace(job, **changes))

    return make


def test_the_parts_are_what_predict_writes(
    begin: Begin, actor: Callable[..., PartPredictor], target: Path, pictures: Path, model_path: Path, tmp_path: Path
) -> None:
    manifest, done = begin()
    assert (manifest.images, manifest.parts, done, manifest.finished) == (11, 3, set(), False)
    predict = actor(manifest)
    answers = [predict({"part": part}) for part in (2, 0, 1, 0)]
    assert [(a["part"], a["rows"], a["ok"], a["trouble"]) for a in answers] == [
        (2, 3, 3, ""), (0, 4, 3, ""), (1, 4, 4, ""), (0, 4, 3, ""),
    ]  # fmt: skip
    predict_files(load_predictor([model_path], threads=1), [pictures], tmp_path / "one.parquet")
    assert pq.read_table(target).equals(pq.read_table(tmp_path / "one.parquet"))
    counts = check(Folder(str(target)), manifest)
    assert summary_of(counts) == (10, {"not a known picture format": 1})
    assert begin(resume=True)[1] == {0, 1, 2}


def test_names_depend_on_content_alone(begin: Begin, target: Path, model_path: Path, tmp_path: Path) -> None:
    manifest = begin()[0]
    assert Manifest.read(target / MANIFEST) == manifest
    assert len(set(manifest.part_names().values())) == 3
    again = begin(resume=True)[0]
    assert again.part_names() == manifest.part_names()
    for changes in ({"predictor": "x"}, {"listing_sha256": "x"}, {"part_images": 5}, {"program": "x"}):
        other = manifest.model_copy(update=changes)
        assert not set(other.part_names().values()) & set(manifest.part_names().values())


# -------------------------------------------------------------------------------------------------------- going on


def test_a_target_is_not_begun_twice(begin: Begin, target: Path) -> None:
    begin()
    with pytest.raises(OutputError, match=r"holds the results of a job already. Go on with it with --resume"):
        begin()
    assert begin(resume=True, size=None)[0].part_images == 4


def test_a_target_of_another_job_is_refused(begin: Begin, target: Path, pictures: Path, tmp_path: Path) -> None:
    from tiny_onnx import write_model

    begin()
    with pytest.raises(OutputError, match="of another model or other options"):
        begin(model=write_model(tmp_path / "other.onnx", seed=3), resume=True)
    (pictures / "broken.jpg").unlink()
    with pytest.raises(OutputError, match=r"of other images \(11; the sources now stand for 10"):
        begin(resume=True)
    manifest = json.loads((target / MANIFEST).read_text())
    (target / MANIFEST).write_text(json.dumps(manifest | {"program": "marrowscope 0.0.1"}))
    with pytest.raises(OutputError, match=r"made by marrowscope 0\.0\.1"):
        begin(resume=True)
    (target / MANIFEST).write_text("{")
    with pytest.raises(FileFormatError, match=r"_manifest.json is not a valid manifest"):
        begin(resume=True)


def test_a_folder_with_other_files_is_left_alone(begin: Begin, target: Path) -> None:
    target.mkdir()
    (target / "thesis.txt").write_text("x")
    for resume in (False, True):
        with pytest.raises(OutputError, match=r"holds other files \(thesis.txt\)"):
            begin(resume=resume)
    (target / "thesis.txt").rename(target / LISTING)  # of a job that was stopped while it was listing
    assert begin()[0].parts == 3


def test_a_target_that_is_a_file(begin: Begin, target: Path) -> None:
    target.write_text("x")
    with pytest.raises(OutputError, match="it is a file"):
        begin()


# -------------------------------------------------------------------------------------------------------------- check


@pytest.fixture
def finished(begin: Begin, actor: Callable[..., PartPredictor]) -> Manifest:
    manifest, _ = begin()
    predict = actor(manifest)
    for part in range(manifest.parts):
        assert predict({"part": part})["trouble"] == ""
    return manifest


def _change(file: Path, change: Callable[[Any], Any]) -> None:
    pq.write_table(change(pq.read_table(file)), file)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.slice(1),
        lambda t: pa.concat_tables([t, t.slice(0, 1)]),
        lambda t: pa.concat_tables([t.slice(0, 3), t.slice(0, 1)]),
        lambda t: t.take([1, 0, 2, 3]),
    ],
    ids=["lost", "doubled", "replaced", "swapped"],
)
def test_the_check_sees_each_row(finished: Manifest, target: Path, change: Callable[[Any], Any]) -> None:
    _change(target / finished.part_name(1), change)
    with pytest.raises(OutputError, match=r"part-000001-\w+.parquet has not one row for each of its images"):
        check(Folder(str(target)), finished)


def test_the_check_sees_each_part(finished: Manifest, target: Path) -> None:
    part = target / finished.part_name(1)
    part.rename(target / "part-000009-0123456789abcdef.parquet")
    with pytest.raises(OutputError, match="2 are missing or too many, the first is part-000001"):
        check(Folder(str(target)), finished)
    (target / "part-000009-0123456789abcdef.parquet").rename(part)
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(OutputError, match=r"Can't read .*part-000001.* remove it and go on with --resume"):
        check(Folder(str(target)), finished)
    (target / finished.part_name(0)).write_bytes((target / finished.part_name(2)).read_bytes())
    with pytest.raises(OutputError, match="part-000000"):
        check(Folder(str(target)), finished)


def test_the_check_sees_other_columns(finished: Manifest, target: Path) -> None:
    _change(target / finished.part_name(2), lambda t: t.drop_columns(["confidence"]))
    with pytest.raises(OutputError, match="different columns"):
        check(Folder(str(target)), finished)


def test_the_check_sees_another_listing(finished: Manifest, target: Path) -> None:
    _change(target / LISTING, lambda t: t.slice(1))
    with pytest.raises(OutputError, match=r"_listing.parquet is not the one"):
        check(Folder(str(target)), finished)


# ------------------------------------------------------------------------------------------------------------ trouble


def trouble(predict: PartPredictor) -> str:
    return str(predict({"part": 0})["trouble"])


def test_what_a_machine_can_lack(begin: Begin, actor: Callable[..., PartPredictor], tmp_path: Path) -> None:
    manifest, _ = begin()
    old = manifest.model_copy(update={"program": "marrowscope 0.0.1"})
    assert "the job is of marrowscope 0.0.1" in trouble(actor(old))
    assert "it does not see /no/such/cell.png" in trouble(actor(manifest, witness="/no/such/cell.png"))
    assert "target must be a folder that all machines share" in trouble(actor(manifest, target=str(tmp_path / "gone")))
    assert "the model that arrived is not the one" in trouble(actor(manifest, blobs=(b"half",)))
    assert "the model that was loaded is not the one" in trouble(
        actor(manifest.model_copy(update={"predictor": "another"}))
    )


def test_a_part_that_ends_its_workers_is_given_up(begin: Begin, actor: Callable[..., PartPredictor]) -> None:
    predict = actor(begin()[0])
    assert [trouble(predict) for _ in range(worker.MOST_ATTEMPTS)] == [""] * worker.MOST_ATTEMPTS
    assert "5 workers ended in the middle of part 0" in trouble(predict)


def test_one_denied_image_is_a_row_and_many_are_trouble(
    begin: Begin,
    actor: Callable[..., PartPredictor],
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"s3://bucket/{i}.png" for i in range(16)]
    (tmp_path / "list").write_text("\n".join(names))
    found = list_sources([f"@{tmp_path / 'list'}"], tmp_path / "names.parquet")
    (reference, _) = begin()
    allowed: set[str] = set(names[1:])

    def read(name: str) -> bytes:
        if name not in allowed:
            raise ImageError(DENIED)
        return b"text"

    monkeypatch.setattr(listing, "read_bytes", read)
    folder = Folder(str(tmp_path / "remote"))
    manifest, _ = open_target(folder, found, reference.predictor, reference.models, part_images=None, resume=False)
    predict = actor(manifest, target=folder.name)
    assert trouble(predict) == ""
    assert check(folder, manifest) == {"unreadable": 1, "not a known picture format": 15}
    allowed.clear()
    assert "the store denies access to all 16 images of a part, the first is s3://bucket/0.png" in trouble(predict)
