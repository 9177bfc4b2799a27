from __future__ import annotations

import pytest

from iris_cli.dataset.sides import suggest_mirror_pairs, undeclared_mirror_pairs


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("kidney_left", "kidney_right"),
        ("LeftParotid", "RightParotid"),
        ("Left kidney", "right Kidney"),
        ("OpticNrv_L", "OpticNrv_R"),
        ("L-Lens", "R-Lens"),
        ("LParotid", "RParotid"),
        ("lung lt lower", "lung rt lower"),
        ("HUMERUS_LEFT", "HUMERUS_RIGHT"),
        ("Left-Lateral-Ventricle", "Right-Lateral-Ventricle"),
    ],
)
def test_two_sides_of_a_structure_are_found(left: str, right: str) -> None:
    assert suggest_mirror_pairs(["liver", right, left]) == ((left, right),)


@pytest.mark.parametrize(
    "names",
    [
        ["liver", "spleen"],
        ["kidney_left"],
        ["left", "light"],
        ["lung_left_1", "lung_right_2"],
        ["left_to_right", "right_to_left"],
        # Two names could be meant.
        ["kidney_left", "KidneyLeft", "kidney_right"],
        ["Larynx", "Rarynx"],
        ["left ventricle", "right ventricle"],
        ["heart_atrium_left", "heart_atrium_right"],
        ["LeftVentricle", "RightVentricle"],
    ],
)
def test_other_names_are_left_alone(names: list[str]) -> None:
    assert suggest_mirror_pairs(names) == ()


def test_declared_classes_are_not_suggested_again() -> None:
    names = ["eye_l", "eye_r", "ear_l", "ear_r"]
    assert undeclared_mirror_pairs(names, [("eye_l", "eye_r")]) == (("ear_l", "ear_r"),)
