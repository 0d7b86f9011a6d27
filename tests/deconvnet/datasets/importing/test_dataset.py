"""The classes of a data set: which are chosen, which is the background, and names that differ by case alone; names of images."""

import pytest

from deconvnet.datasets.importing.dataset import AnnotatedDataset, ImportOptions
from infra.errors import UserError


def choose(annotated, must_exist=True, **rules):
    """The data set after the choice, and the ids of the names."""
    dataset = AnnotatedDataset()
    ids = dataset.choose_classes(annotated, ImportOptions(**rules), must_exist)
    return dataset, ids


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["Car", "tree", "car", "CAR"], ["Car, car, CAR"]),
        (["Straße", "STRASSE", "cat", "Cat"], ["Straße, STRASSE", "cat, Cat"]),
        (["Caf\u00e9", "Cafe\u0301"], ["Caf\u00e9, Cafe\u0301"]),
    ],
)
def test_names_that_differ_by_case_alone_are_told_and_can_be_joined(names, groups):
    dataset, ids = choose(names)
    assert dataset.classes == ("background", *names) and len(set(ids.values())) == len(names)
    assert [note.split(" differ only in case")[0] for note in dataset.notes] == groups and "--fold_case" in dataset.notes[0]
    dataset, ids = choose(names, fold_case=True)
    joined = [group.split(", ") for group in groups]
    assert all(len({ids[name] for name in group}) == 1 for group in joined)
    assert len(dataset.classes) == 1 + len(names) - sum(len(group) - 1 for group in joined)
    assert [note.split(" were merged")[0] for note in dataset.notes] == groups


def test_a_class_that_is_asked_for_in_another_case_is_found_if_cases_are_joined():
    with pytest.raises(UserError, match="--classes: car is not in the annotations, which have Car, tree"):
        choose(["Car", "tree"], classes=("car",))
    dataset, ids = choose(["Car", "tree", "CAR"], classes=("car",), fold_case=True)
    assert dataset.classes == ("background", "car") and ids == {"Car": 1, "tree": 0, "CAR": 1}


@pytest.mark.parametrize("name", ["background", "Background", "_background_", "__background__"])
def test_names_of_background_are_no_class(name):
    dataset, ids = choose([name, "cat"])
    assert dataset.classes == ("background", "cat") and ids == {name: 0, "cat": 1}
    assert dataset.notes == ([] if name.lower() == "background" else [f"{name} is the background"])


def test_any_class_can_be_the_background():
    dataset, ids = choose(["null", "shirt", "hat"], background="null", classes=("hat", "null"))
    assert dataset.classes == ("background", "hat") and ids == {"null": 0, "shirt": 0, "hat": 1}
    with pytest.raises(UserError, match="--background sky is not in the annotations, which have shirt"):
        choose(["shirt"], background="sky")


def test_classes_that_are_missing_are_told_or_refused():
    dataset, _ = choose(["cat"], must_exist=False, classes=("cat", "dog"))
    assert dataset.classes == ("background", "cat", "dog") and dataset.notes == ["no annotation has the class dog"]
    with pytest.raises(UserError, match="--classes: dog is not in the annotations"):
        choose(["cat"], classes=("cat", "dog"))
    with pytest.raises(UserError, match="the annotations have 0 classes"):
        choose(["background"])
    with pytest.raises(UserError, match="a class named"):
        choose(["a\nb"])


def test_names_that_differ_in_blanks_or_unicode_form_are_told_and_joined():
    names = ["K\u00e4se", "Ka\u0308se", "a crate", "a  crate"]
    dataset = AnnotatedDataset()
    assert len(set(dataset.choose_classes(names, ImportOptions()).values())) == 4
    assert [" differ only in case, blanks or Unicode form" in note for note in dataset.notes] == [True, True]
    assert list(AnnotatedDataset().choose_classes(names, ImportOptions(fold_case=True)).values()) == [1, 1, 2, 2]


@pytest.mark.parametrize("name", [" a.jpg", "a\n.jpg", "a .jpg"])
def test_names_that_a_list_of_ids_can_not_hold_are_rejected(name):
    dataset = AnnotatedDataset(("background", "cat"))
    dataset.add(name, "f", None, lambda: None)
    assert not dataset.entries and len(dataset.rejects) == 1


def test_ids_of_classes_leave_255_to_void():
    names = [f"c{i}" for i in range(255)]
    dataset, ids = choose(names[:254])
    assert dataset.classes[-1] == "c253" and ids["c253"] == 254
    with pytest.raises(UserError, match="the annotations have 255 classes"):
        choose(names)
