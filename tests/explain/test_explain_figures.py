"""The figures of the tests of explanations: against calculations by hand, scipy and scikit-image, and planted truth."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from planted_networks import Blind, Brightness, Peaks, blobs, columns, spec, subject
from scipy.integrate import trapezoid
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from marrowscope.data.phantom import draw
from marrowscope.explain.curves import area, curves
from marrowscope.explain.heat import CONTROLS, edge_maps, is_flat, random_maps, shown
from marrowscope.explain.judge import Settings, Trial, explainer
from marrowscope.explain.masks import MOST_SHIFT, energy_inside, masked_cells, moved, pointing_hits
from marrowscope.explain.sanity import cascade, layer_groups, sanity, similarity, spearman, ssim
from marrowscope.explain.subject import NetworkSubject
from marrowscope.images import Pixels
from marrowscope.models import CellClassifier
from marrowscope.schema import Preprocessing

Floats = npt.NDArray[np.float64]


# --------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("code", ["BLA", "LYT", "EBO"])
def test_moved_masks_stay_on_their_cell(code: str) -> None:
    phantom = draw(code, 3, 1)
    places = set()
    for seed in range(6):
        other = moved(phantom, np.random.default_rng(seed))
        assert other.cell.sum() == phantom.cell.sum()  # the cell is whole
        assert other.nucleus.sum() == phantom.nucleus.sum()
        np.testing.assert_array_equal(other.image[other.cell], phantom.image[phantom.cell])
        np.testing.assert_array_equal(other.image[other.nucleus], phantom.image[phantom.nucleus])
        shift = np.argwhere(other.cell)[0] - np.argwhere(phantom.cell)[0]
        assert abs(shift).max() <= MOST_SHIFT * 250
        places.add(tuple(shift))
    assert len(places) == 6


def test_prepared_masks_match_the_picture() -> None:
    cells = masked_cells(("BLA", "ART", "NIF", "LYT", "XXX"), Preprocessing(size=64, crop=0.9), 4, 5)
    assert cells.codes == ("BLA", "LYT", "BLA", "LYT")
    grey = cells.pictures_NHWC.mean(3)
    for picture, cell, nucleus in zip(grey, cells.cell_NHW, cells.nucleus_NHW, strict=True):
        assert (cell | ~nucleus).all()
        assert picture[nucleus].mean() < picture[cell & ~nucleus].mean() < picture[~cell].mean()
    assert len(masked_cells(("ART", "NIF"), spec(), 4, 5)) == 0


def test_pointing_and_energy_by_hand() -> None:
    mask = np.zeros((3, 4, 4), dtype=bool)
    mask[:, :2, :2] = True
    heat = np.zeros((3, 4, 4), dtype=np.float32)
    heat[0, 1, 1], heat[0, 3, 3] = 3, 1
    heat[1, 0, 0], heat[1, 2, 2] = 1, 2
    np.testing.assert_array_equal(pointing_hits(heat, mask), [True, False, False])  # the third is flat: its middle
    np.testing.assert_allclose(energy_inside(heat, mask), [0.75, 1 / 3, 0.25])


# -------------------------------------------------------------------------------------------------------------- curves


def test_area_is_the_trapezoid() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((5, 11))
    np.testing.assert_allclose(area(values), np.trapezoid(values, np.linspace(0, 1, 11), axis=1))


def test_curves_of_a_known_answer() -> None:
    """The answer is the share of the upper left quarter that is as it was; the best map is that quarter."""
    rng = np.random.default_rng(0)
    picture = rng.integers(100, 256, (1, 16, 16, 3), dtype=np.uint8)

    def answer(pictures_NHWC: Pixels) -> Floats:
        same = (pictures_NHWC == picture[0]).all(-1)[:, :8, :8].mean((1, 2))
        return np.stack([same, 1 - same], axis=1)

    best = np.zeros((1, 16, 16), dtype=np.float32)
    best[0, :8, :8] = 1
    found = curves(answer, picture, best, columns(0, 1), steps=4)
    np.testing.assert_allclose(found.deletion_NK, [[1, 0, 0, 0, 0]], atol=0.02)  # a blurred pixel may be the same
    np.testing.assert_allclose(found.insertion_NK, [[0, 1, 1, 1, 1]], atol=0.02)
    np.testing.assert_allclose(found.deletion_area, 0.125, atol=0.01)
    np.testing.assert_allclose(found.insertion_area, 0.875, atol=0.01)
    worst = curves(answer, picture, 1 - best, columns(0, 1), steps=4)
    np.testing.assert_allclose(worst.deletion_area, 0.875, atol=0.01)
    flat = curves(answer, picture, np.ones_like(best), columns(0, 1), steps=4)
    np.testing.assert_allclose(flat.deletion_area, 0.5, atol=0.06)  # pixels of equal heat go by chance


def test_controls_differ_from_each_other_and_are_reproducible() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for _, make in CONTROLS.values():
        heat = make(pictures)
        assert heat.shape == (3, 32, 32)
        assert heat.dtype == np.float32
        assert not any(is_flat(h) for h in heat)
        np.testing.assert_array_equal(heat, make(pictures))
    assert abs(spearman(*random_maps(pictures)[:2])) < 0.4
    assert not np.array_equal(random_maps(pictures, 0), random_maps(pictures, 1))


def test_flat_maps_are_told_from_faint_ones() -> None:
    heat = np.zeros((8, 8), dtype=np.float32)
    assert is_flat(heat)
    assert is_flat(heat + 7)
    heat[2, 2] = 1e-6
    assert not is_flat(heat)
    assert shown(heat).max() == 1
    assert is_flat(heat + 1)


# ---------------------------------------------------------------------------------------------------------- similarity


def test_similarities_are_those_of_scipy_and_scikit_image() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 40, 40)).astype(np.float32)
    b = (a + b) / 2
    a[:10], b[5:20] = 0, 0  # ties
    assert spearman(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-9)
    expected = structural_similarity(a.astype(float), b.astype(float), win_size=7, data_range=1.0)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)
    assert ssim(a, a) == pytest.approx(1)
    assert spearman(a, np.ones_like(a)) == 0


def _network() -> CellClassifier:
    torch.manual_seed(0)
    return CellClassifier(timm.create_model("test_resnet", num_classes=3), Preprocessing(size=64)).eval()


def _pictures(n: int = 4) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)


def test_the_cascade_forgets_from_the_answer_down() -> None:
    model = _network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    shares, changed = [], []
    for share, other in cascade(model, _pictures(), seed=0):
        state = other.state_dict()
        shares.append(share)
        changed.append({k for k, v in state.items() if not torch.equal(v, before[k])})
        for name, value in dict(other.named_parameters()).items():  # shuffled: the same numbers
            torch.testing.assert_close(value.flatten().sort().values, before[name].flatten().sort().values)
        assert np.isfinite(other(torch.zeros(1, 3, 64, 64)).detach().numpy()).all()
    assert changed[0] == {"backbone.fc.weight"} | ({"backbone.fc.bias"} & changed[0])
    assert all(a < b for a, b in pairwise(changed))
    assert {k for k in before if k.endswith(("weight", "running_var"))} - {
        k for k in before if before[k].flatten().unique().numel() == 1
    } <= changed[-1]
    assert shares[-1] == 1
    assert shares == sorted(shares)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the model itself is as it was


def test_layers_of_other_networks_are_their_children() -> None:
    assert layer_groups(Brightness()) == [["head.weight", "head.bias"], ["stem.conv.weight", "stem.conv.bias"]]
    groups = layer_groups(timm.create_model("test_vit", num_classes=2))
    assert any("head" in name for name in groups[0])
    assert any("pos_embed" in name for name in groups[-1])


def test_an_edge_detector_fails_the_sanity_check_and_a_map_of_the_weights_does_not() -> None:
    model, pictures = _network(), _pictures()

    def of_weights(network: CellClassifier) -> npt.NDArray[np.float32]:
        weight = network.backbone.conv1[0].weight.detach().numpy().ravel()
        return np.stack([np.resize(np.abs(weight), (64, 64))] * len(pictures)).astype(np.float32)

    edges = sanity(model, pictures, lambda network: edge_maps(pictures), seed=0)
    assert all(s.spearman_N == pytest.approx(1) and s.ssim_N == pytest.approx(1) for _, s in edges)
    learned = [s.spearman_N.mean() for _, s in sanity(model, pictures, of_weights, seed=0)]
    assert learned[:2] == pytest.approx([1, 1])  # the first layer is randomised last
    assert abs(learned[-1]) < 0.3


def test_similarity_is_pair_by_pair() -> None:
    a = np.random.default_rng(0).random((2, 16, 16)).astype(np.float32)
    found = similarity(a, a[::-1])
    assert similarity(a, a).spearman_N == pytest.approx(1)
    assert abs(found.spearman_N).max() < 0.3


# --------------------------------------------------------------------------------------------------------------- trial

QUICK = Settings(cells=8, phantoms=0, sanity_cells=4, steps=4, occlusion_steps=8)


def _trial(network: torch.nn.Module) -> Trial:
    return Trial(subject(network), blobs(8), masked_cells(("ART",), spec(), 0, 0), QUICK, synthetic=False)


def test_a_method_that_shows_what_is_read_is_faithful() -> None:
    found = _trial(Peaks()).judge("hirescam", "HiResCAM", explainer("hirescam"))
    checks = {c.name: c.passed for c in found.checks}
    assert checks["answers"]
    assert checks["faithful"]
    assert found.deletion[0] > found.deletion[1]
    assert found.insertion[-1] == pytest.approx(found.deletion[0])
    gain = found.figures["deletion_gain"]
    assert gain.low is not None
    assert gain.value is not None
    assert 0 < gain.low <= gain.value


def test_a_network_that_ignores_the_picture_is_reported() -> None:
    found = _trial(Blind()).judge("gradcam", "Grad-CAM", explainer("gradcam"))
    checks = {c.name: c for c in found.checks}
    assert not found.passed
    assert not checks["answers"].passed
    assert checks["answers"].reason.startswith("0% of the maps are not flat")
    assert not checks["faithful"].passed


@pytest.mark.parametrize("control", CONTROLS)
def test_no_control_passes(control: str) -> None:
    found = _trial(Brightness()).judge(control, control, explainer(control), control=True)
    assert not found.passed
    assert not {c.name: c.passed for c in found.checks}["sanity"]
    assert found.figures["spearman"].value == pytest.approx(1)


# -------------------------------------------------------------------------------------------- what must not matter


def test_the_scale_of_heat_the_order_of_cells_and_their_side_do_not_matter() -> None:
    cells = masked_cells(("BLA", "LYT", "EBO"), Preprocessing(size=32), 6, 3)
    heat, order = random_maps(cells.pictures_NHWC), np.array([3, 0, 5, 1, 4, 2])
    found = []
    for mask in (cells.cell_NHW, cells.nucleus_NHW):
        energy, hits = energy_inside(heat, mask), pointing_hits(heat, mask)
        for turned in (np.s_[order], np.s_[order, :, ::-1], np.s_[order, ::-1]):
            np.testing.assert_allclose(energy_inside(7 * heat[turned], mask[turned]), energy[order], rtol=1e-5)
            np.testing.assert_array_equal(pointing_hits(7 * heat[turned], mask[turned]), hits[order])
        found += [energy.mean(), hits.mean()]
    assert found == pytest.approx(STORED_INSIDE, abs=1e-3)
    assert spearman(7 * heat[0], heat[1]) == pytest.approx(spearman(heat[0], heat[1]), abs=1e-9)
    assert spearman(heat[1], heat[0]) == pytest.approx(spearman(heat[0], heat[1]), abs=1e-9)
    assert ssim(heat[1], heat[0]) == pytest.approx(ssim(heat[0], heat[1]), abs=1e-9)
    assert (spearman(heat[0], heat[1]), ssim(heat[0], heat[1])) == pytest.approx(STORED_ALIKE, abs=1e-3)


STORED_INSIDE = (0.231605, 1 / 6, 0.148540, 1 / 6)
STORED_ALIKE = (-0.050147, -0.031460)


def test_curves_depend_on_the_order_of_the_heat_alone() -> None:
    pictures = blobs(3)
    heat = random_maps(pictures)
    answer = subject(Brightness()).answer
    plain = curves(answer, pictures, heat, columns(1, 3), steps=4)
    changed = curves(answer, pictures, np.exp(5 * heat), columns(1, 3), steps=4)
    np.testing.assert_allclose(changed.deletion_NK, plain.deletion_NK, atol=1e-6)
    np.testing.assert_allclose(changed.insertion_NK, plain.insertion_NK, atol=1e-6)
    turned = curves(answer, pictures[::-1], heat[::-1], columns(1, 3), steps=4)
    np.testing.assert_allclose(turned.deletion_area[::-1], plain.deletion_area, atol=1e-6)
    np.testing.assert_allclose(area(plain.deletion_NK), trapezoid(plain.deletion_NK, dx=1 / 4, axis=1), atol=1e-9)
    stored = [*plain.deletion_area, *plain.insertion_area]
    assert stored == pytest.approx(STORED_AREAS, abs=1e-3)


STORED_AREAS = (0.478006, 0.519061, 0.631411, 0.866196, 0.892699, 0.884770)


def test_bf16_rounds_the_answers_and_not_the_maps() -> None:
    model = subject(Brightness())
    quick = NetworkSubject(model.model, model.card, window=0.25, steps=8, precision="bf16")
    exact, rounded = model.answer(blobs()), quick.answer(blobs())
    assert rounded == pytest.approx(exact, abs=0.05)
    assert not np.array_equal(rounded, exact)
    maps = [s.maps("hirescam", blobs(), columns(1, 4)) for s in (model, quick)]
    np.testing.assert_array_equal(*maps)
    assert quick.of(model.model).precision == "bf16"
