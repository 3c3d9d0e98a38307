"""Rows in plain columns with values of the wrong type: a ValueError that names the row, or the image."""

import pytest
from PIL import Image

from transformers_litelvlm.data.loading import load_split
from transformers_litelvlm.data.samples import UnreadableImageError, VideoExpression


ROW = {"image": "x.png", "text": "a dog", "mask": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": ["a dog", None]}, "Row 0 of rows .*a sentence must be a text, got None"),
        ({"text": 7}, "Row 0 of rows"),
        ({"sentences": ["a cat"]}, "Row 0 of rows .*only one of the columns sentences and text may have a value"),
        ({"mask": "m.png", "segmentation": []}, "only one of the columns mask and segmentation"),
        ({"text": [], "image_id": "x" * 10**6}, r"Row 0 of rows .*image xxx.*\.\.\..* has no sentence"),
        ({"expressions": 7}, "Row 0 of rows"),
    ],
)
def test_rows_that_are_none(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        next(iter(load_split("rows", "x", [{**ROW, **change}])))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name, split", [("rows", "x"), ("refcoco", "val"), ("refcoco-m", "validation")])
def test_lists_of_something_else(name, split):
    with pytest.raises(ValueError, match="`source` must hold rows, a dict of columns each, got 7"):
        load_split(name, split, [7])
    with pytest.raises(ValueError, match=r"`source` has no column .*, only xxx.*\.\.\.") as caught:
        load_split(name, split, [{"x" * 10**6: 1}])
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("picture", [{"bytes": "text"}, {"bytes": 7}, {"bytes": [1, 2]}, {"path": 7}, {}])
def test_pictures_and_masks_that_are_none(picture):
    """As it was, a TypeError or KeyError that ended an evaluation."""
    whole = Image.new("L", (4, 4))
    [sample] = load_split("rows", "x", [{**ROW, "image": picture}])
    with pytest.raises(UnreadableImageError, match="The picture of image 0 cannot be read"):
        sample.load_image()
    [sample] = load_split("rows", "x", [{**ROW, "image": whole, "mask": picture}])
    with pytest.raises(ValueError, match="ask of image 0|A segmentation must be a list, got 7"):
        _ = sample.sentences[0].mask
    # Nothing is meant, as tables write it.
    [sample] = load_split("rows", "x", [{**ROW, "image": whole, "mask": {"bytes": None, "path": None}}])
    assert sample.sentences[0].mask.shape == (4, 4) and not sample.sentences[0].mask.any()


def test_rows_about_one_file_are_about_one_image(tmp_path):
    """Each row was an image of its own: intervals over images took sentences about one picture for independent."""
    images = ["a.png", "b.png", "a.png", {"path": "a.png", "bytes": None}, Image.new("L", (4, 4))]
    rows = [{**ROW, "image": image} for image in images] + [{**ROW, "image": "b.png", "image_id": 3}]
    samples = list(load_split("rows", "x", rows, image_root=tmp_path))
    assert [sample.image_id for sample in samples] == ["a.png", "b.png", "a.png", "a.png", "4", "3"]
    assert len({sample.sentences[0].sentence_id for sample in samples}) == 6


def test_a_name_of_a_file_that_is_too_long():
    [sample] = load_split("rows", "x", [{**ROW, "image": "x" * 10**6, "mask": "y" * 10**6}])
    for load in (sample.load_image, sample.sentences[0].load_mask):
        with pytest.raises(UnreadableImageError) as caught:
            load()
        assert len(str(caught.value)) < 1000


def test_expressions_about_videos_are_texts():
    with pytest.raises(ValueError, match=r"a sentence must be a text, got \['a'\]"):
        VideoExpression("0", ["a"])


@pytest.mark.parametrize(("name", "split"), [("refshapes", "test"), ("rows", "x"), ("mevis", "valid_u")])
def test_options_that_a_reader_does_not_have(name, split):
    with pytest.raises(ValueError, match=f"`options` of {name}: got an unexpected keyword argument 'nonsense'"):
        load_split(name, split, None if name == "refshapes" else [], nonsense=1)
