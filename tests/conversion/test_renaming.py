"""Every name on both sides is accounted for, or the error names it."""

import pytest
import torch

from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.renaming import Drop, Part, Rename, plan_renaming
from transformers_litelvlm.conversion.weight_files import TensorInfo


class Names:
    """A source of names and shapes alone."""

    def __init__(self, **shapes):
        self.infos = {
            name.replace("__", "."): TensorInfo(tuple(shape), torch.float32) for name, shape in shapes.items()
        }

    def tensors(self):
        return self.infos

    def __str__(self):
        return "there"


def plan(shapes, rules, targets, tied=None):
    return plan_renaming([Part("model", Names(**shapes), rules)], targets, tied)


def test_first_rule_that_matches_the_whole_name():
    rules = [
        Drop("a", "not needed"),
        Rename("a.*", "short"),
        Rename(r"(?P<x>b)\.(\d)", r"\g<x>_\2"),
        Rename(".*", "rest"),
    ]
    result = plan(
        {"a": [1], "ab": [2], "b__3": [3], "xb__3": [4]}, rules, {"rest": [4], "b_3": [3], "short": torch.Size([2])}
    )
    assert [(move.source, move.target) for move in result.moves] == [("xb.3", "rest"), ("b.3", "b_3"), ("ab", "short")]
    assert list(result.targets) == ["rest", "b_3", "short"] and result.targets["short"].shape == (2,)
    assert result.dropped == {"model": {"a": "not needed"}}


def test_two_parts_fill_one_model():
    first, second = Part("one", Names(a=[1]), [Rename("a", "x")]), Part("two", Names(a=[2]), [Rename("a", "y")])
    result = plan_renaming([first, second], {"x": [1], "y": [2]})
    assert [(move.part.label, move.target) for move in result.moves] == [("one", "x"), ("two", "y")]


@pytest.mark.parametrize(
    ("shapes", "rules", "targets", "says"),
    [
        ({"a": [1], "b": [1]}, [Rename("a", "a")], {"a": [1]}, "model checkpoint there: no rule for b:"),
        (dict.fromkeys("abcde", [1]), [], {}, r"no rule for a, b, c, \.\.\. \(5 in all\)"),
        ({"a": [1]}, [Rename("a", "z")], {"a": [1]}, r"no place for a \(to z\)"),
        ({"a": [1]}, [Rename("a", "a")], {"a": [1], "b": [1]}, "nothing in model checkpoint there fills b:"),
        ({"a": [1]}, [Rename("a", "t")], {"t": [1], "b": [1]}, "fills b:"),
        ({"a": [1], "b": [1]}, [Rename(".", "z")], {"z": [1]}, r"z is filled by a \(model\), b \(model\)"),
        ({"a": [1, 2]}, [Rename("a", "z")], {"z": [2, 1]}, r"`a` has the shape \[1, 2\], but z needs \[2, 1\]"),
        ({"a": []}, [Rename("a", "z")], {"z": [1]}, r"`a` has the shape \[\], but z needs \[1\]"),
    ],
)
def test_what_does_not_fit(shapes, rules, targets, says):
    with pytest.raises(ConversionError, match=says):
        plan(shapes, rules, targets)


def test_tied_names_are_not_stored():
    rules = [Rename("a", "x")]
    result = plan({"a": [1]}, rules, {"x": [1], "y": [1]}, {"y": "x"})
    assert result.tied == {"y": "x"} and list(result.targets) == ["x"]
    with pytest.raises(ConversionError, match=r"tied to a parameter that is not stored: y \(as z\)"):
        plan({"a": [1]}, rules, {"x": [1], "y": [1]}, {"y": "z"})
    with pytest.raises(ConversionError, match=r"no place for a \(to x\)"):
        plan({"a": [1]}, rules, {"x": [1], "y": [1]}, {"x": "y"})


ROWS = [Rename(r"p(\d)", "p", row=r"\1")]


def test_pieces():
    result = plan({"p1": [2, 3], "p0": [2, 3]}, ROWS, {"p": [4, 3]})
    assert {move.source: move.row for move in result.moves} == {"p0": 0, "p1": 1}
    assert result.targets["p"].shape == (4, 3)


@pytest.mark.parametrize(
    ("shapes", "target", "says"),
    [
        ({"p0": [2, 3], "p2": [2, 3]}, [4, 3], "p is filled by p0 .*, p2 "),
        (
            {"p0": [2, 3], "p1": [3, 3]},
            [5, 3],
            r"`p0` has the shape \[2, 3\] and is one of 2 pieces, but p needs \[5, 3",
        ),
        ({"p0": [2, 3], "p1": [2, 3]}, [5, 3], r"`p0` has the shape \[2, 3\]"),
        ({"p0": [2, 3], "p1": [2, 4]}, [4, 3], r"`p1` has the shape \[2, 4\] and is one of 2 pieces"),
        ({"p0": [2, 3]}, [4, 3], r"`p0` has the shape \[2, 3\] and is one of 1 pieces, but p needs \[4, 3\]"),
        ({"p0": [2, 3]}, [], r"`p0` has the shape \[2, 3\]"),
        ({"p0": [], "p1": []}, [2], r"`p0` has the shape \[\]"),
    ],
)
def test_pieces_that_do_not_fit(shapes, target, says):
    with pytest.raises(ConversionError, match=says):
        plan(shapes, ROWS, {"p": target})


def test_a_piece_and_a_whole():
    with pytest.raises(ConversionError, match="p is filled by"):
        plan({"p0": [2, 3], "whole": [4, 3]}, [*ROWS, Rename("whole", "p")], {"p": [4, 3]})
