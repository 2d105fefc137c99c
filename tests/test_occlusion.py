"""Occlusion against truth by calculation, on plain functions and on an ONNX file without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from marrowscope.errors import ModelError
from marrowscope.images import Pixels
from marrowscope.infer import Classifier
from marrowscope.occlusion import FILLS, filled, occlude, occlude_with
from tiny_onnx import CODES, SIZE, write_model

Floats = npt.NDArray[np.float64]


def corner_reader(pictures_NHWC: Pixels) -> Floats:
    """Column 1 is the brightness of the upper left quarter, 0..1."""
    side = pictures_NHWC.shape[1] // 2
    p = pictures_NHWC[:, :side, :side].mean((1, 2, 3)) / 255
    return np.stack([1 - p, p], axis=1)


def picture(size: int = 40) -> Pixels:
    """White upper left quarter, else black: rim black."""
    out = np.zeros((size, size, 3), dtype=np.uint8)
    out[: size // 2, : size // 2] = 255
    out[: size // 16, :], out[:, : size // 16] = 0, 0
    return out


def test_the_fall_is_what_the_window_took() -> None:
    found = occlude(corner_reader, picture(), 1, window=0.25, steps=4)
    base = 18 * 18 / 400
    assert found.base == pytest.approx(base)
    expected = np.zeros((4, 4))
    expected[:2, :2] = [[64, 80], [80, 100]]  # bright pixels under each window of 10 x 10
    np.testing.assert_allclose(found.drop_GG, expected / 400, atol=1e-6)
    np.testing.assert_allclose(found.drop_HW, np.kron(expected / 400, np.ones((10, 10))), atol=1e-6)
    other = occlude(corner_reader, picture(), 0, window=0.25, steps=4)
    np.testing.assert_allclose(other.drop_HW, -found.drop_HW, atol=1e-6)


def test_overlapping_windows_are_averaged_and_nothing_is_left_out() -> None:
    found = occlude(corner_reader, picture(), 1, window=0.25, steps=7)
    assert found.drop_GG.shape == (7, 7)
    # Pixel (7, 7) lies under the windows that begin at 0 and 5, in both directions.
    assert found.drop_HW[7, 7] == pytest.approx(found.drop_GG[:2, :2].mean(), abs=1e-6)
    assert found.drop_HW[39, 39] == pytest.approx(found.drop_GG[6, 6], abs=1e-6)
    assert np.isfinite(found.drop_HW).all()


def test_batches_and_target_do_not_change_the_map() -> None:
    asked: list[int] = []

    def counted(pictures_NHWC: Pixels) -> Floats:
        asked.append(len(pictures_NHWC))
        return corner_reader(pictures_NHWC)

    whole = occlude(corner_reader, picture(), window=0.3, steps=6)
    parts = occlude(counted, picture(), window=0.3, steps=6, batch_size=5)
    np.testing.assert_array_equal(whole.drop_HW, parts.drop_HW)
    assert whole.target == 1 if whole.base > 0.5 else whole.target == 0
    assert max(asked) == 5
    assert sum(asked) == 37


def test_what_ignores_the_picture_has_no_heat() -> None:
    found = occlude(lambda p: np.full((len(p), 2), 0.5), picture(), window=0.3, steps=6)
    assert not found.drop_HW.any()


def test_fillings_are_what_they_say() -> None:
    p = picture()
    assert (filled(p, "background") == 0).all()
    assert (filled(p, "mean") == np.round(p.mean((0, 1)))).all()
    blurred = filled(p, "blur")
    assert blurred.shape == p.shape
    assert abs(blurred.mean() - p.mean()) < 12
    assert np.abs(np.diff(blurred.astype(int), axis=0)).max() < 60 < np.abs(np.diff(p.astype(int), axis=0)).max()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 0.0}, "above 0 and below 1"),
        ({"window": 1.0}, "above 0 and below 1"),
        ({"steps": 1}, "allowed are 2"),
        ({"window": 0.1, "steps": 5}, "leave gaps"),
        ({"target": 2}, "allowed: 0 to 1"),
        ({"fill": "noise"}, "allowed: background, mean, blur"),
    ],
)
def test_options_that_are_not_allowed_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        occlude(corner_reader, picture(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("fill", FILLS)
def test_an_onnx_file_is_explained_at_the_size_of_the_picture(tmp_path: Path, fill: str) -> None:
    model = Classifier.load(write_model(tmp_path / "m.onnx"), threads=1)
    cell = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    found = occlude_with(model, cell, "EOS", steps=6, fill=fill)
    assert found.drop_HW.shape == (50, 50)
    assert found.target == CODES.index("EOS")
    assert found.base == pytest.approx(model.predict_proba(cell)[0, 1])
    with pytest.raises(ModelError, match="no class 'XXX'"):
        occlude_with(model, cell, "XXX")


def test_occlusion_needs_no_torch(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from marrowscope.explain import open_subject\n"
        f"s = open_subject(Path({str(path)!r}), steps=6)\n"
        f"s.maps('occlusion', np.zeros((1, {SIZE}, {SIZE}, 3), np.uint8), np.zeros(1, np.int64))\n"
        "print(*{'torch', 'timm', 'pytorch_grad_cam', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
