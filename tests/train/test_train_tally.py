"""Sums of an epoch: looked at seldom on a GPU, finite or refused, each picture once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from marrowscope.errors import DivergedError
from marrowscope.train.tally import Tally

START = {"loss": 2.0, "correct": 1.0, "seen": 4.0, "seconds": 3.0}


class _Fabric:
    """What `Tally` asks of Fabric; the other process's sums are given."""

    def __init__(self, rank: int = 0, others: Mapping[str, float] | None = None) -> None:
        self.device = torch.device("cpu")
        self.global_rank, self.world_size = rank, 1 if others is None else 2
        self._others = others or {}

    def all_reduce(self, sums: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        return sums + torch.tensor([self._others[k] for k in ("loss", "correct", "seen")], dtype=torch.float64)


def _tally(every: int | None = None, **options: object) -> Tally:
    return Tally(_Fabric(**options), START, every)  # type: ignore[arg-type]


def _add(tally: Tally, loss: float = 0.5, norm: float = 1.0) -> None:
    tally.add(torch.tensor(loss), torch.tensor(3), 4, torch.tensor(norm))


def test_it_goes_on_from_the_sums_so_far() -> None:
    tally = _tally()
    _add(tally)
    got = tally.look(1)
    assert [got[k] for k in ("loss", "correct", "seen")] == [4.0, 4.0, 8.0]
    assert got["seconds"] >= 3.0
    assert tally.total(1)["loss"] == 4.0


def test_it_looks_now_and_then_alone_where_looking_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [0]
    tolist = torch.Tensor.tolist

    def counted(self: torch.Tensor) -> object:
        looks[0] += 1
        return tolist(self)

    tally = _tally(every=5)
    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("the program waited for the device"))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: pytest.fail("the program waited for the device"))
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("the program waited for the device"))
    for step in range(1, 15):
        _add(tally)
        seen = tally.look(step)["seen"]
        assert seen == 4.0 + 4 * (step - step % 5)
    assert looks[0] == 2
    assert tally.total(14)["seen"] == 4.0 + 4 * 14


@pytest.mark.parametrize(
    ("loss", "norm", "message"),
    [(float("nan"), 1.0, "loss is nan"), (float("inf"), 1.0, "loss is inf"), (0.5, float("inf"), "gradient")],
)
def test_what_is_not_finite_is_found_at_the_next_look_and_before_anything_is_saved(
    loss: float, norm: float, message: str
) -> None:
    tally = _tally(every=5)
    _add(tally, loss, norm)
    tally.look(1)  # not yet
    for step in range(2, 5):
        _add(tally)
        tally.look(step)
    _add(tally)
    with pytest.raises(DivergedError, match=rf"{message}.* at one of the steps 0 to 4; nothing of it was saved"):
        tally.look(5)
    early = _tally(every=5)
    _add(early, loss, norm)
    with pytest.raises(DivergedError, match=message):
        early.total(1)


def test_sums_so_far_count_once_over_the_processes() -> None:
    first = _tally(others={"loss": 1.0, "correct": 2.0, "seen": 4.0})
    _add(first)
    assert first.total(1)["seen"] == 4.0 + 4.0 + 4.0
    second = _tally(rank=1, others={"loss": 0.0, "correct": 0.0, "seen": 0.0})
    _add(second)
    assert second.total(1)["seen"] == 4.0


def test_shares_of_a_step_are_their_own_partners_and_each_picture_is_in_one() -> None:
    from marrowscope.train.loop import Learner

    for world in (1, 2, 3, 4):
        for n in (2 * world, 2 * world + 1, 32, 33, 48):
            shares = []
            for rank in range(world):
                fabric = type("F", (), {"world_size": world, "global_rank": rank})()
                learner = Learner.__new__(Learner)
                learner.fabric = fabric
                places = learner.own_places(n)
                assert len(places) > 0
                assert np.array_equal(places[::-1], n - 1 - places), "mixing would need another process's pictures"
                shares.append(places)
            assert sorted(np.concatenate(shares)) == list(range(n))
            if world == 1:
                assert np.array_equal(shares[0], np.arange(n)), "one process takes them in their order"
