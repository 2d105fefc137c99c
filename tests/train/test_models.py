"""Networks and their start weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from marrowscope.config import ModelConfig
from marrowscope.errors import ModelError
from marrowscope.models import build_model, load_run_model
from marrowscope.schema import Preprocessing

SPEC = Preprocessing(size=64)


def _save(path: Path, name: str, **options: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    state = timm.create_model(name, **options).state_dict()
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save({"state_dict": state}, path)
    return state


def test_normalisation_is_inside() -> None:
    model = build_model(ModelConfig(name="test_resnet"), 4, SPEC).eval()
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor(SPEC.mean).view(1, 3, 1, 1), torch.tensor(SPEC.std).view(1, 3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(model(pictures), model.backbone((pictures / 255 - mean) / std), atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_are_loaded_and_a_head_for_other_classes_is_left_out(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    saved = _save(path, "test_resnet", num_classes=10)
    model = build_model(ModelConfig(name="test_resnet", weights=str(path)), 4, SPEC)
    ours = model.backbone.state_dict()
    assert torch.equal(ours["conv1.0.weight"], saved["conv1.0.weight"])
    assert ours["fc.weight"].shape[0] == 4


def test_position_embeddings_are_resized(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    saved = _save(path, "test_vit", num_classes=0, img_size=160)
    model = build_model(ModelConfig(name="test_vit", weights=str(path)), 3, SPEC)
    ours = model.backbone.state_dict()
    assert ours["pos_embed"].shape[1] < saved["pos_embed"].shape[1]
    assert ours["pos_embed"].std() > 0
    assert torch.equal(ours["blocks.0.attn.qkv.weight"], saved["blocks.0.attn.qkv.weight"])


def test_weights_of_another_network_are_refused_with_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    _save(path, "test_vit", img_size=64)
    with pytest.raises(ModelError, match=r"missing: conv1.*unknown: "):
        build_model(ModelConfig(name="test_resnet", weights=str(path)), 3, SPEC)
    state = timm.create_model("test_resnet").state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(3, 3, 3, 3)
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    with pytest.raises(ModelError, match=r"of another shape: layer1\.0\.conv1\.weight is \(3, 3, 3, 3\), not"):
        build_model(ModelConfig(name="test_resnet", weights=str(path)), 3, SPEC)


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "run"
    for name, content in (
        ("a.pth", pickle.dumps(_Evil(mark))),
        ("b.pth", b"not a model"),
        ("c.safetensors", b"x" * 99),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ModelError, match=name):
            build_model(ModelConfig(name="test_resnet", weights=str(path)), 3, SPEC)
    torch.save({"state_dict": _Evil(mark)}, tmp_path / "d.pth")
    with pytest.raises(ModelError, match=r"d\.pth"):
        build_model(ModelConfig(name="test_resnet", weights=str(tmp_path / "d.pth")), 3, SPEC)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (ModelConfig(name="resnet5"), 64, "no model 'resnet5'. Near it: "),
        (ModelConfig(name="test_resnet", weights="missing.pth"), 64, r"No weights file missing\.pth"),
        (ModelConfig(name="test_vit"), 50, "50 px"),
    ],
)
def test_what_cant_be_made_is_explained(config: ModelConfig, size: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model(config, 3, Preprocessing(size=size))


def test_a_hub_out_of_reach_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(ModelError, match=r"from the hub: offline.*--set model\.weights=PATH"):
        build_model(ModelConfig(name="resnet18", weights="hub"), 3, SPEC)


def test_a_folder_that_is_no_run_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no run folder.*marrowscope train"):
        load_run_model(tmp_path)
