"""Files that are almost as a reader expects them: what is silently wrong if nobody looks."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.tiny_videos import SIZE, objects, write_mevis, write_referring
from transformers_litelvlm.data import decode_segmentation, load_split
from transformers_litelvlm.data.samples import ImageSample, UnreadableImageError, VideoExpression, VideoSample


def mask_of(height=40, width=60):
    mask = np.zeros((height, width), dtype=bool)
    mask[5:20, 10:30] = True
    return mask


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64])
def test_an_array_that_a_table_made_lists_of_is_no_polygon(tmp_path, kind):
    """Rows of 0 and 1 were taken for polygons of that many corners, all within one pixel: a mask of nothing."""
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    mask = mask_of()
    row = {"image": "a.png", "text": "a dog", "mask": mask.astype(kind).tolist()}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    for source in ([row], tmp_path / "rows.json", tmp_path / "rows.parquet"):
        [sample] = load_split("rows", "x", source, image_root=tmp_path)
        np.testing.assert_array_equal(sample.sentences[0].mask, mask)
    other = {**row, "mask": mask_of(30, 50).tolist()}
    with pytest.raises(ValueError, match=r"The mask has shape \(30, 50\), the image \(40, 60\)"):
        _ = load_split("rows", "x", [other], image_root=tmp_path)[0].sentences[0].mask


@pytest.mark.parametrize("count", [3, 4, 9])
def test_corners_in_pairs_are_an_error(count):
    """As LabelMe and others write polygons: each pair was a polygon without area, so the mask was empty."""
    corners = [[5, 5], [30, 5], [30, 30], *[[5, 30]] * (count - 3)]
    for polygons in (corners, [corners]):
        with pytest.raises(ValueError, match=r"A polygon must be numbers `\[x, y, x, y, ...\]`, got"):
            decode_segmentation(polygons, 40, 60)
    assert decode_segmentation([sum(corners, [])], 40, 60).sum() > 250


def test_a_mask_in_a_jpeg(tmp_path):
    """Its nonzero pixels are 8 % more than the mask that was saved: a perfect prediction had an IoU of 0.92."""
    y, x = np.mgrid[:240, :320]
    mask = (y - 120) ** 2 + (x - 160) ** 2 < 3600
    for name in ("mask.png", "mask.jpg"):
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / name)
    rows = [{"image": "mask.png", "text": "a dog", "mask": name} for name in ("mask.png", "mask.jpg")]
    png, jpeg = load_split("rows", "x", rows, image_root=tmp_path)
    assert png.sentences[0].mask.sum() == mask.sum()
    with pytest.raises(UnreadableImageError, match="The picture of the mask of image mask.png .* save it as PNG"):
        _ = jpeg.sentences[0].mask


def test_numbers_as_mask_of_reason_seg(tmp_path):
    row = {"image": {"bytes": b"", "path": None}, "image_id": 3, "ann_id": "3", "text": "a dog"}
    row |= {"mask": mask_of().astype(np.uint8).tolist(), "img_height": 40, "img_width": 60}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    [sample] = load_split("reasonseg", "val", tmp_path / "rows.parquet")
    assert sample.image_id == "3" and sample.sentences[0].mask.dtype == bool
    np.testing.assert_array_equal(sample.sentences[0].mask, mask_of())


def test_a_question_of_reason_seg_that_is_a_text_is_one_question(tmp_path):
    """Its first letter was asked."""
    folder = tmp_path / "val"
    folder.mkdir()
    Image.new("RGB", (60, 40)).save(folder / "a.jpg")
    record = {"text": "the dog", "is_sentence": False, "shapes": []}
    (folder / "a.json").write_text(json.dumps(record))
    assert [sentence.sentence for sentence in load_split("reasonseg", "val", tmp_path)[0].sentences] == ["the dog"]
    (folder / "a.json").write_text(json.dumps({**record, "text": []}))
    with pytest.raises(ValueError, match="Row 0 .* image a has no sentence"):
        load_split("reasonseg", "val", tmp_path)[0]


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_mevis_without_sizes(tmp_path):
    """Loaders of others read neither height nor width, so a file need not have them."""
    folder = write_mevis(tmp_path) / "valid_u"

    def change(content):
        for video in content["videos"].values():
            assert video.pop("height") and video.pop("width")

    edited(folder / "meta_expressions.json", change)
    cat = load_split("mevis", "valid_u", tmp_path)[2]
    first, second, both = cat.expressions
    assert second.mask(0).shape == SIZE and not second.mask(0).any()  # it is not there yet
    np.testing.assert_array_equal(both.mask(0), objects("cat", 0) == 1)
    np.testing.assert_array_equal(first.mask(3), objects("cat", 3) == 1)


def test_masks_of_fewer_frames_than_the_video_has(tmp_path):
    """An IndexError in the middle of an evaluation."""
    folder = write_mevis(tmp_path) / "valid_u"
    edited(folder / "mask_dict.json", lambda masks: masks["2"].pop())
    with pytest.raises(ValueError, match="expression 1 of video apple has masks of fewer frames than the video"):
        load_split("mevis", "valid_u", tmp_path)[0]


def test_only_ref_davis_numbers_its_expressions_by_object(tmp_path):
    """An expression of Refer-YouTube-VOS without an object was scored against the object that its number has there."""
    root = write_referring(tmp_path)

    def change(content):
        for video in content["videos"].values():
            for entry in video["expressions"].values():
                del entry["obj_id"]

    edited(root / "meta_expressions" / "valid" / "meta_expressions.json", change)
    assert load_split("ref-davis17", "valid", root)[0].expressions[5].object_ids == ("2",)
    with pytest.raises(ValueError, match="KeyError: 'obj_id'"):
        load_split("refer-youtube-vos", "valid", root)[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_with_references_of_two_splits(tmp_path, streaming):
    """From a single file, all sentences of such an image counted in both splits."""
    polygon = [[5.0, 5.0, 30.0, 5.0, 30.0, 30.0]]

    def reference(number, split):
        sentences = [{"sent": f"{split} {number}", "sent_id": number}]
        info = {"ref_id": number, "split": split, "sentences": sentences}
        return {"ref_info": info, "ann_info": {"segmentation": polygon}}

    row = {
        "image": {"bytes": b"", "path": None},
        "image_info": {"id": 1, "height": 40, "width": 60},
        "ref_list": [reference(1, "val"), reference(2, "train")],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "all.parquet")
    [sample] = load_split("refcoco", "val", tmp_path / "all.parquet", streaming=streaming)
    assert [sentence.sentence for sentence in sample.sentences] == ["val 1"]


def test_samples_without_a_sentence():
    with pytest.raises(ValueError, match="image a has no sentence"):
        ImageSample("a", "a.png", ())
    with pytest.raises(ValueError, match="video a has no expression"):
        VideoSample("a", ("0",), ("0.jpg",), ())
    with pytest.raises(ValueError, match="video a has no frame"):
        VideoSample("a", (), (), (VideoExpression("0", "x"),))
