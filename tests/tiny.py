"""A recipe small enough for tests."""

from __future__ import annotations

from typing import Any

TINY_CODES = ("BLA", "LYT", "NGS")


def tiny_values(**changes: Any) -> dict[str, Any]:
    """A recipe that trains within seconds; `model__name="test_vit"` changes one value."""
    values: dict[str, Any] = {
        "name": "tiny",
        "classes": "BLA,LYT,NGS",
        "seed": 3,
        "model": {"name": "test_resnet", "weights": "none"},
        "image": {"size": 32},
        "augment": {"flip": True, "rotation": 180, "stain": 0.1, "mixup": 0.2, "cutmix": 1.0},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.05},
        "schedule": {"epochs": 2, "warmup_epochs": 0.5},
        "engine": {"batch_size": 4, "precision": "fp32", "ema": 0.9},
    }
    for key, value in changes.items():
        *tables, last = key.split("__")
        target = values
        for table in tables:
            target = target.setdefault(table, {})
        target[last] = value
    return values
