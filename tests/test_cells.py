from __future__ import annotations

import re

import pytest

from marrowscope.cells import BY_CODE, CLASS_SETS, CLASSES, cell_class, class_set, clinical_order
from marrowscope.errors import DataError


def test_there_are_the_21_classes_of_the_collection() -> None:
    expected = "ABE ART BAS BLA EBO EOS FGC HAC KSC LYI LYT MMZ MON MYB NGB NGS NIF OTH PEB PLM PMO".split()
    assert sorted(BY_CODE) == expected
    assert [c.order for c in CLASSES] == list(range(21))
    assert len({c.colour for c in CLASSES}) == 21
    assert all(re.fullmatch(r"#[0-9a-f]{6}", c.colour) for c in CLASSES)


def test_the_fourteen_are_those_with_2700_images_in_the_full_collection() -> None:
    full = dict(
        NGS=29424, EBO=27395, LYT=26242, ART=19630, PMO=11994, BLA=11973, NGB=9968, PLM=7629, MYB=6557, EOS=5883,
        MON=4040, NIF=3538, MMZ=3055, PEB=2740, BAS=441, HAC=409, OTH=294, LYI=65, FGC=47, KSC=42, ABE=8,
    )  # fmt: skip
    assert CLASS_SETS["marrow-14"].codes == tuple(sorted(c for c, n in full.items() if n >= 2700))
    assert CLASS_SETS["marrow-21"].codes == tuple(sorted(full))
    assert set(CLASS_SETS["marrow-8"].codes) < set(CLASS_SETS["marrow-14"].codes)


def test_what_is_no_marrow_cell_does_not_count() -> None:
    assert {c.code for c in CLASSES if not c.nucleated} == {"ART", "NIF", "KSC", "OTH"}


def test_granulocytes_mature_in_the_known_order() -> None:
    stages = [cell_class(c).maturation for c in ("BLA", "PMO", "MYB", "MMZ", "NGB", "NGS")]
    assert stages == [0, 1, 2, 3, 4, 5]
    assert clinical_order(["NGS", "LYT", "BLA", "ART", "PMO"]) == ["BLA", "PMO", "NGS", "LYT", "ART"]


def test_a_list_of_codes_is_a_class_set() -> None:
    chosen = class_set("NGS, BLA")
    assert chosen.codes == ("BLA", "NGS")
    assert class_set(chosen.name).codes == chosen.codes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("marrow-15", "marrow-14"),
        ("BLA,XYZ", "'XYZ'"),
        ("BLA", "at least two"),
        ("BLA,LYT,BLA", "twice"),
        ("", "Class sets"),
    ],
)
def test_a_wrong_class_set_is_explained(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        class_set(name)


def test_an_unknown_code_is_explained() -> None:
    with pytest.raises(DataError, match="Unknown class code 'ABC'"):
        cell_class("ABC")
