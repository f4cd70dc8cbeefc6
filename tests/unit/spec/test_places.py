"""Places of a tree, and the order of a report."""

from __future__ import annotations

from moekit.spec.places import Place, Report, show


def test_a_path_is_shown_with_dots_and_indices() -> None:
    assert show(("model", "moe", "layers", 2, "use")) == "model.moe.layers[2].use"
    assert show(()) == ""


def test_a_problem_has_the_place_of_its_nearest_written_parent_and_is_in_order_of_lines() -> None:
    report = Report({("a",): Place("one.yaml", 7), ("b",): Place("two.yaml", 1), ("a", "x"): Place("one.yaml", 3)})
    for path in (("a", "y", 0), ("b", "z"), ("a", "x"), ("c",)):
        report.add(path, "wrong")
    found = [(problem.at, problem.source) for problem in report.problems()]
    assert found == [
        ("a.x", "one.yaml, line 3"),
        ("a.y[0]", "one.yaml, line 7"),
        ("b.z", "two.yaml, line 1"),
        ("c", ""),
    ]
