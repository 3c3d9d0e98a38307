"""Archives that a server accepts: every frame of every expression, in the right place, or no file at all."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.data.samples import VideoExpression, VideoSample
from transformers_litelvlm.evaluation.submissions import video_submission, write_masks_json


VIDEOS = [
    VideoSample("a", ("00000", "00005"), ("", ""), (VideoExpression("0", "x"), VideoExpression("1", "y"))),
    VideoSample("b", ("00002",), ("",), (VideoExpression("0", "z"),)),
]


def masks(video: VideoSample, seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).random((len(video.frame_names), 5, 7)) < 0.5)


def fill(submission, videos=VIDEOS) -> None:
    for video in videos:
        for expression in video.expressions:
            submission.add(video.video_id, expression.expression_id, iter(masks(video, int(expression.expression_id))))


@pytest.mark.parametrize(("name", "folder"), [("refer-youtube-vos", "Annotations/"), ("mevis", "")])
def test_every_mask_is_where_the_server_looks(tmp_path, name, folder):
    with video_submission(tmp_path / "out" / "s.zip", name, VIDEOS) as submission:
        fill(submission)
    with zipfile.ZipFile(tmp_path / "out" / "s.zip") as archive:
        names = ["a/0/00000", "a/0/00005", "a/1/00000", "a/1/00005", "b/0/00002"]
        assert archive.namelist() == [f"{folder}{entry}.png" for entry in names]
        picture = Image.open(io.BytesIO(archive.read(f"{folder}a/1/00005.png")))
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.array(picture), masks(VIDEOS[0], 1)[1] * np.uint8(255))


def test_equal_predictions_are_equal_files(tmp_path):
    for name in ("one.zip", "two.zip"):
        with video_submission(tmp_path / name, "mevis", VIDEOS) as submission:
            fill(submission)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_an_incomplete_submission_is_not_written(tmp_path):
    (tmp_path / "s.zip").write_bytes(b"from before")
    with pytest.raises(ValueError, match="1 of 3 expressions have no masks, the first is 0 of video b"):
        with video_submission(tmp_path / "s.zip", "mevis", VIDEOS) as submission:
            fill(submission, VIDEOS[:1])
    with pytest.raises(KeyboardInterrupt):
        with video_submission(tmp_path / "s.zip", "mevis", VIDEOS) as submission:
            fill(submission)
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["s.zip"]
    assert (tmp_path / "s.zip").read_bytes() == b"from before"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "0", masks(VIDEOS[0], 0)[:1]), "Expression 0 of video a: zip"),
        (("a", "0", [*masks(VIDEOS[0], 0), *masks(VIDEOS[1], 0)]), "Expression 0 of video a: zip"),
        (("a", "7", masks(VIDEOS[0], 0)), "Expression 7 of video a is not in the split"),
        (("a", "0", [np.zeros((5, 7))] * 2), "must be boolean, got float64"),
    ],
)
def test_masks_that_do_not_fit(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        with video_submission(tmp_path / "s.zip", "mevis", VIDEOS) as submission:
            submission.add(*arguments)
    assert not list(tmp_path.iterdir())


def test_the_same_expression_twice(tmp_path):
    with pytest.raises(ValueError, match="Expression 0 of video b was added before"):
        with video_submission(tmp_path / "s.zip", "mevis", VIDEOS) as submission:
            fill(submission)
            submission.add("b", "0", masks(VIDEOS[1], 0))


def test_sets_without_a_server(tmp_path):
    with pytest.raises(ValueError, match="must be one of refer-youtube-vos, mevis, got 'ref-davis17'"):
        with video_submission(tmp_path / "s.zip", "ref-davis17", VIDEOS):
            pass
    with pytest.raises(ValueError, match=r"must end in \.zip"):
        with video_submission(tmp_path / "s.tar", "mevis", VIDEOS):
            pass


def test_masks_as_json(tmp_path):
    mask = masks(VIDEOS[1], 3)[0]
    write_masks_json(tmp_path / "masks.json", iter([("im", "s/0", mask)]))
    (record,) = json.loads((tmp_path / "masks.json").read_text())
    assert (record["image_id"], record["sentence_id"]) == ("im", "s/0")
    np.testing.assert_array_equal(decode_mask(record["segmentation"]), mask)
