"""The data commands, with good and bad input to their options."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from marrowscope.cli import app
from marrowscope.errors import MarrowscopeError
from marrowscope.schema import OK, IndexRow, Split, write_index

CODES = ("BLA", "EOS", "LYT")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def done(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.exception or result.output
    return result.output


def refused(text: str, *arguments: object) -> None:
    error = call(*arguments).exception
    assert isinstance(error, MarrowscopeError), error
    assert text in str(error)


def rows_of(n: int, **columns: list[str]) -> list[IndexRow]:
    return [
        IndexRow(f"{c}/{i:03}.jpg", c, 1, 1, 1, f"{c}{i:061}", OK, **{k: v[i % len(v)] for k, v in columns.items()})
        for c in CODES
        for i in range(n)
    ]


# Few enough names that chains of belonging arise, and enough that not all images hang together.
names = st.lists(st.sampled_from(["", "", "", *"abcdefghijklmnop"]), min_size=40, max_size=40)


@given(slide=names, patient=names, group=names, folds=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_slides_patients_and_groups_of_the_index_stay_whole(
    tmp_path: Path, slide: list[str], patient: list[str], group: list[str], folds: bool, seed: int
) -> None:
    """Whatever an index says belongs together, directly or by a chain, a split of the command keeps on one side."""
    rows = rows_of(40, slide=slide, patient=patient, group=group)
    # Enough images that belong to nobody, so that every part gets some of each class.
    rows += [r._replace(path=f"x/{r.path}", sha256=f"x{r.sha256}", slide="", patient="", group="") for r in rows]
    write_index(tmp_path / "i.csv", rows)
    how = ("--folds", 4) if folds else ("--ratios", "60/20/20")
    done("split", tmp_path / "i.csv", "--classes", ",".join(CODES), *how, "--seed", seed, "-o", tmp_path / "s.csv")
    split = Split.read(tmp_path / "s.csv")
    assert sorted(r.path for r in split.rows) == sorted(r.path for r in rows)
    side = {r.path: r.fold if folds else r.part for r in split.rows}
    for column in ("slide", "patient", "group"):
        sides = defaultdict(set)
        for r in rows:
            if getattr(r, column):
                sides[getattr(r, column)].add(side[r.path])
        assert all(len(s) == 1 for s in sides.values()), column


def test_repeated_folds_are_written_one_a_file(tmp_path: Path) -> None:
    write_index(tmp_path / "i.csv", rows_of(20))
    split = ("split", tmp_path / "i.csv", "--classes", ",".join(CODES))
    done(*split, "--folds", 4, "--repeats", 3, "--seed", 5, "-o", tmp_path / "f.csv")
    drawn = [Split.read(tmp_path / f"f-{i}.csv") for i in (1, 2, 3)]
    assert [s.info.seed for s in drawn] == [5, 6, 7]
    assert len({s.rows for s in drawn}) == 3
    done(*split, "--folds", 4, "--seed", 6, "-o", tmp_path / "f.csv")
    assert Split.read(tmp_path / "f.csv").rows == drawn[1].rows
    refused("1 or more", *split, "--folds", 4, "--repeats", 0)
    refused("goes with --folds", *split, "--repeats", 2)
    refused("one repetition", *split, "--folds", 4, "--repeats", 2, "--keep", tmp_path / "f.csv")


def test_the_rule_is_chosen_and_recorded(tmp_path: Path) -> None:
    write_index(tmp_path / "i.csv", rows_of(60))
    split = ("split", tmp_path / "i.csv", "--classes", ",".join(CODES), "-o", tmp_path / "s.csv")
    done(*split, "--rule", "hash")
    first = Split.read(tmp_path / "s.csv")
    assert "alone names its part" in first.info.rule
    write_index(tmp_path / "i.csv", rows_of(90))
    done(*split, "--rule", "hash")
    assert set(first.rows) <= set(Split.read(tmp_path / "s.csv").rows)
    refused("Unknown rule 'shuffle'; allowed: quota, hash", *split, "--rule", "shuffle")
    refused("--folds goes with neither", *split, "--rule", "hash", "--folds", 3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("index", "none"), "Can't open the data none"),
        (("index", "cells", "--class-map", "none.toml"), "Can't read the class map none.toml"),
        (("index", "cells", "-o", "cells"), "Can't write cells: it is a folder"),
        (("audit", "none.csv", "--data", "cells"), "Can't read the index none.csv"),
        (("audit", "i.csv", "--data", "none"), "Can't open the data none"),
        (("audit", "i.csv", "--data", "cells", "--predictions", "none.csv"), "none.csv: No such file"),
        (("audit", "i.csv", "--data", "cells", "--predictions", "i.csv"), "i.csv is not a table of predictions"),
        (("audit", "i.csv", "--data", "cells", "-o", "i.csv"), "Can't write in the folder i.csv"),
        (("show", "i.csv", "--data", "none"), "Can't open the data none"),
        (("show", "i.csv", "--data", "cells", "--seed", "-1"), "seed is -1; allowed: 0 to"),
        (("show", "i.csv", "--data", "cells", "--augmented", "none.toml"), "Can't read the recipe none.toml"),
        (("split", "i.csv", "--classes", "XXX"), "Unknown class set or class code: 'XXX'"),
        (("split", "i.csv", "--classes", "BLA,LYT", "--ratios", "1/2"), "give three numbers as train/val/test"),
        (("split", "i.csv", "--classes", "BLA,LYT", "--seed", "-1"), "seed must be a whole number"),
        (("split", "i.csv", "--classes", "BLA,LYT", "--cap", "0"), "cap must be 1 or more"),
        (("split", "i.csv", "--classes", "BLA,LYT", "--keep", "i.csv"), "i.csv is not a split"),
        (("split", "i.csv", "--classes", "BLA,LYT", "--folds", "2"), "3 folds or more"),
        (("import-split", "i.csv", "--classes", "BLA,LYT", "--train", "no", "--test", "no"), "list of paths no"),
    ],
    ids=lambda a: " ".join(a[:1]) if isinstance(a, tuple) else "",
)
def test_bad_input_is_one_clear_error(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells").symlink_to(cells)
    write_index(tmp_path / "i.csv", [r._replace(path=f"{r.label}/{r.label}_00001.jpg") for r in rows_of(1)[::2]])
    before = sorted(p.name for p in tmp_path.iterdir())
    refused(text, *arguments)
    assert not set(before) - {p.name for p in tmp_path.iterdir()}
