"""Real miniature data in every public layout: the same objects must come out as the same masks."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.original_checkpoints import SHARED
from transformers_litelvlm.data.loading import DATASETS, load_split
from transformers_litelvlm.data.masks import decode_mask, encode_mask
from transformers_litelvlm.data.samples import UnreadableImageError
from transformers_litelvlm.data.splits import SplitCounts, count_samples


DATA = SHARED / "data"
HUB = DATA / "hf"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the miniature data sets are not part of the project")


@pytest.fixture(scope="module")
def known() -> dict[int, np.ndarray]:
    """The masks of the annotated objects by annotation, from `res/annotations.json`."""
    samples = json.loads((DATA / "res" / "annotations.json").read_text())["samples"]
    return {item["ann_id"]: decode_mask(item["mask"]) for item in samples if item["ann_id"] is not None}


def by_sentence(split) -> dict[tuple[str, str], np.ndarray]:
    return {(sample.image_id, entry.sentence): entry.mask for sample in split for entry in sample.sentences}


def same_masks(first: dict, second: dict) -> None:
    assert first.keys() == second.keys() and first
    for key, mask in first.items():
        np.testing.assert_array_equal(mask, second[key], err_msg=str(key))


@pytest.mark.parametrize(("name", "split", "split_by"), [("refcoco", "testB", None), ("refcocog", "val", "google")])
def test_the_refer_folder(name, split, split_by, known):
    opened = load_split(name, split, DATA / "refer", split_by=split_by)
    refs = json.loads(next((DATA / "refer" / name).glob("refs(*).json")).read_text())
    expected = [
        (f"{ref['ref_id']}/{entry['sent_id']}", entry["sent"], ref["ann_id"])
        for ref in refs
        for entry in ref["sentences"]
    ]
    read = {entry.sentence_id: (sample, entry) for sample in opened for entry in sample.sentences}
    assert len(read) == len(expected) == {"refcoco": 14, "refcocog": 3}[name]
    for sentence_id, sentence, annotation in expected:
        sample, entry = read[sentence_id]
        assert entry.sentence == sentence
        assert entry.mask.shape == sample.load_image().size[::-1]
        np.testing.assert_array_equal(entry.mask, known[annotation])
    assert ("division `google`" in "".join(opened.notes)) == (split_by == "google")


@pytest.mark.parametrize("streaming", [False, True])
def test_the_hub_schemas_agree_with_each_other_and_with_the_annotations(streaming, known):
    benchmark = load_split("refcoco", "val", HUB / "refcoco_benchmark_schema.parquet", streaming=streaming)
    one_per_object = load_split(
        "refcoco", "val", HUB / "jxu124_refcoco_schema.parquet", image_root=DATA / "res" / "images"
    )
    redrawn = load_split("refcoco-m", "validation", HUB / "refcoco_m_schema.parquet", streaming=streaming)
    masks = by_sentence(benchmark)
    same_masks(masks, by_sentence(one_per_object))
    same_masks(masks, by_sentence(redrawn))  # the miniature has the same masks, the real set has better ones
    assert len(masks) == 8
    for sample in benchmark:
        for entry in sample.sentences:
            assert any(np.array_equal(entry.mask, mask) for mask in known.values())
            assert entry.mask.shape == sample.load_image().size[::-1]
    assert "cannot be compared" in redrawn.notes[0]


def test_a_folder_laid_out_like_a_hub_repository(tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("refcoco_unc_val", "refcoco_plus_unc_val", "refcoco_unc_testA"):
        shutil.copy(HUB / "refcoco_benchmark_schema.parquet", tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    same_masks(
        by_sentence(load_split("refcoco+", "val", tmp_path)),
        by_sentence(load_split("refcoco", "val", HUB / "refcoco_benchmark_schema.parquet")),
    )
    with pytest.raises(ValueError, match=r"refcoco_unc_testB.*refcoco_unc_val"):
        load_split("refcoco", "testB", tmp_path)


def test_a_repository_of_one_set_without_pictures(tmp_path):
    """It was asked for splits by the names that the benchmark of three sets has."""
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test", "testB"):
        shutil.copy(HUB / "jxu124_refcoco_schema.parquet", tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    pictures = {"image_root": DATA / "res" / "images"}
    same_masks(
        by_sentence(load_split("refcoco", "val", tmp_path, **pictures)),
        by_sentence(load_split("refcoco", "val", HUB / "jxu124_refcoco_schema.parquet", **pictures)),
    )
    with pytest.raises(ValueError, match="no reference of split 'testA'. It has: val"):
        load_split("refcoco", "testA", tmp_path, **pictures)


def test_reason_seg_keeps_ignore_regions_and_the_hub_copy_says_it_lost_them(caplog):
    original = load_split("reasonseg", "val", DATA / "reason_seg")
    copied = load_split("reasonseg", "val", HUB / "reasonseg_schema.parquet")
    masks = by_sentence(original)
    same_masks({key: mask for key, mask in masks.items() if not key[0].startswith("voc")}, by_sentence(copied))
    assert "ignore regions" in copied.notes[0] and original.notes == ()
    (voc,) = [sample for sample in original if sample.image_id == "voc_2011_000006"]
    (sentence,) = voc.sentences
    assert sentence.details["is_sentence"] is False
    # Areas as LISA's own function draws them with OpenCV.
    assert (sentence.mask.sum(), sentence.ignore.sum()) == (14230, 919)
    assert not (sentence.mask & sentence.ignore).any()
    assert all(sample.sentences[0].ignore is None for sample in original if sample.image_id != voc.image_id)


def test_video_layouts_agree():
    vos = load_split("refer-youtube-vos", "valid", DATA / "rvos")
    mevis = load_split("mevis", "valid_u", DATA / "rvos")
    assert [video.video_id for video in vos] == [video.video_id for video in mevis] == ["car-shadow", "labelme-truck"]
    for first, second in zip(vos, mevis, strict=True):
        assert first.frame_names == second.frame_names
        assert first.frame_paths[0].endswith(f"{first.frame_names[0]}.jpg")
        for frame in (0, len(first.frame_names) - 1):
            size = first.load_frame(frame).size[::-1]
            for one, other in zip(first.expressions, second.expressions):
                assert one.sentence == other.sentence and one.mask(frame).any() and one.mask(frame).shape == size
                np.testing.assert_array_equal(one.mask(frame), other.mask(frame))
    # An expression of MeViS can mean several objects.
    truck, car, both = mevis[1].expressions
    assert both.object_ids == ("1", "2")
    np.testing.assert_array_equal(both.mask(2), truck.mask(2) | car.mask(2))
    assert both.mask(2).sum() > max(truck.mask(2).sum(), car.mask(2).sum())


def test_a_split_whose_masks_are_hidden_has_frames_and_no_masks(tmp_path):
    shutil.copytree(DATA / "rvos", tmp_path / "vos", copy_function=lambda a, b: Path(b).symlink_to(a))
    shutil.rmtree(tmp_path / "vos" / "valid" / "Annotations")
    hidden = tmp_path / "vos" / "meta_expressions" / "test"
    hidden.mkdir()
    (hidden / "meta_expressions.json").write_text(json.dumps({"videos": {"labelme-truck": {}}}))
    split = load_split("refer-youtube-vos", "valid", tmp_path / "vos")
    assert "not scored" in split.notes[0]
    (video,) = split  # `valid` lists the videos of `test` as well
    assert video.expressions[0].object_ids == ()
    with pytest.raises(ValueError, match="not public"):
        video.expressions[0].mask(0)


def test_own_rows_in_every_form(tmp_path, known):
    annotations = json.loads((DATA / "res" / "annotations.json").read_text())["samples"]
    sample = next(item for item in annotations if item["polygons"] and len(item["sentences"]) > 1)
    mask = decode_mask(sample["mask"])
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    picture = DATA / "res" / "images" / sample["file_name"]
    forms = [sample["mask"], sample["polygons"], mask, str(tmp_path / "mask.png"), Image.fromarray(mask)]
    rows = [{"image": str(picture), "image_id": 7, "sentences": sample["sentences"], "mask": form} for form in forms]
    rows.append({"image": picture, "text": "nothing", "segmentation": None, "ignore": sample["mask"]})
    split = load_split("rows", "any", rows)
    *images, last = split
    for image in images:
        assert image.image_id == "7" and [entry.sentence for entry in image.sentences] == sample["sentences"]
        for entry in image.sentences:
            np.testing.assert_array_equal(entry.mask, mask)
    assert last.sentences[0].mask.sum() == 0
    np.testing.assert_array_equal(last.sentences[0].ignore, mask)
    ids = [entry.sentence_id for image in split for entry in image.sentences]
    assert len(set(ids)) == len(ids)

    lines = [json.dumps({"image": sample["file_name"], "text": "x", "mask": sample["mask"]})]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    (read,) = load_split("rows", "train", tmp_path / "own.jsonl", image_root=picture.parent)
    np.testing.assert_array_equal(read.sentences[0].mask, mask)
    assert read.load_image().size[::-1] == mask.shape


def test_relative_paths_of_own_rows_start_at_the_folder_of_their_file(tmp_path, monkeypatch):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[1, 2:5] = 255
    Image.new("RGB", (6, 4), "red").save(tmp_path / "data" / "images" / "red.png")
    Image.fromarray(mask).save(tmp_path / "data" / "mask.png")
    encoded = base64.b64encode((tmp_path / "data" / "images" / "red.png").read_bytes()).decode("ascii")
    rows = [
        {"image": "images/red.png", "text": "x", "mask": "mask.png", "ignore": "mask.png"},
        {"image": str(tmp_path / "data" / "images" / "red.png"), "text": "x", "mask": str(tmp_path / "data/mask.png")},
        {"image": encoded, "text": "x", "mask": "mask.png"},
        {"image": "https://x.org/red.png", "text": "x", "mask": None},
    ]
    (tmp_path / "data" / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    *read, address = load_split("rows", "mine", "../data/own.jsonl")
    assert [sample.load_image().size for sample in read] == [(6, 4)] * 3
    assert [sample.sentences[0].mask.sum() for sample in read] == [3] * 3
    assert read[0].sentences[0].ignore.sum() == 3
    with pytest.raises(UnreadableImageError, match="https://x.org/red.png is an address"):
        address.load_image()
    # Rows without a file start where Python was started; `image_root` is for all of them.
    (read,) = load_split("rows", "mine", rows[:1], image_root=tmp_path / "data")
    assert read.load_image().size == (6, 4) and read.sentences[0].mask.sum() == 3


def test_own_rows_from_a_table_whose_columns_are_not_all_filled(tmp_path):
    picture = {"bytes": (DATA / "res" / "images" / "000000000025.jpg").read_bytes(), "path": "25.jpg"}
    mask = np.zeros((426, 640), dtype=np.uint8)
    mask[3:5, 7:9] = 1
    palette = Image.fromarray(mask).convert("P")
    palette.putpalette([0, 0, 0, 0, 0, 1])  # as good as black
    palette.save(tmp_path / "mask.png")
    common = {"mask": None, "segmentation": None, "text": None, "sentence": "x", "image_id": None, "image": picture}
    rows = [common | {"segmentation": encode_mask(mask)}, common | {"mask": str(tmp_path / "mask.png")}, common]
    split = load_split("rows", "x", rows, image_root=tmp_path)
    assert [sample.image_id for sample in split] == ["0", "1", "2"]
    assert [sample.sentences[0].mask.sum() for sample in split] == [4, 4, 0]
    assert split[0].load_image().size == (640, 426)  # from the bytes, not from a file of that name
    with pytest.raises(ValueError, match="a sentence of image 0 is missing"):
        load_split("rows", "x", [common | {"sentence": None}])[0]
    with pytest.raises(UnreadableImageError, match="the mask of image 0 .*none.png"):
        load_split("rows", "x", [common | {"mask": "none.png"}])[0].sentences[0].mask  # noqa: B018


def test_refshapes_reads_like_the_others():
    split = load_split("refshapes", "test", num_scenes=3)
    assert len(split) == 3 and split[0].sentences[0].mask.any() and split[0].load_image().size == (144, 144)
    assert count_samples(split).samples == 3 and not split.check_counts().matches


def test_sizes_are_compared_with_the_official_ones():
    split = load_split("refcoco", "testB", DATA / "refer")
    report = split.check_counts()
    assert report.counted == SplitCounts(2, 4, 14)
    assert report.matches is False
    assert "2 samples, 4 objects, 14 sentences; NOT the official size, which is 750 samples, 1810 objects" in str(
        report
    )
    with pytest.raises(ValueError, match="5095 sentences"):
        load_split("refcoco", "testB", DATA / "refer", require_official_counts=True)
    assert load_split("mevis", "valid_u", DATA / "rvos").check_counts().counted == SplitCounts(2, None, 5)
    assert load_split("rows", "x", [{"image": "a", "text": "b", "mask": None}]).check_counts().matches is None


def test_two_versions_of_a_set_are_both_official():
    official = DATASETS["mevis"].splits["valid_u"]
    assert [entry.agrees_with(SplitCounts(50, None, 907)) for entry in official] == [False, True]


# --- bad input ---


def test_a_wrong_name_or_split_lists_what_there_is():
    with pytest.raises(ValueError, match=r"`name` must be one of mevis, .*got 'refcoc'"):
        load_split("refcoc", "val")
    with pytest.raises(ValueError, match="`split` of refcoco must be one of train, val, testA, testB, got 'test'"):
        load_split("refcoco", "test")
    with pytest.raises(ValueError, match=r"no reference of split 'val'. It has: testB"):
        load_split("refcoco", "val", DATA / "refer")
    with pytest.raises(ValueError, match=r"no row of split 'testA'. It has: val"):
        load_split("refcoco", "testA", HUB / "refcoco_benchmark_schema.parquet")
    with pytest.raises(ValueError, match=r"no row of split 'testA'. It has: val"):
        load_split("refcoco", "testA", HUB / "refcoco_benchmark_schema.parquet", streaming=True)
    with pytest.raises(FileNotFoundError, match=r"no `refs\(umd\).p`, only `refs\(google\).p`"):
        load_split("refcocog", "val", DATA / "refer")
    with pytest.raises(ValueError, match="Give `source`"):
        load_split("mevis", "valid_u")


def test_a_missing_picture_is_named_and_the_next_one_is_read(tmp_path):
    shutil.copytree(DATA / "refer", tmp_path / "refer")
    pictures = tmp_path / "refer" / "images" / "mscoco" / "images" / "train2014"
    for path in pictures.iterdir():
        path.chmod(0o644)
    pictures.chmod(0o755)
    (pictures / "COCO_train2014_000000000605.jpg").unlink()
    first, second = load_split("refcoco", "testB", tmp_path / "refer")
    missing, other = (first, second) if first.image_id == "605" else (second, first)
    with pytest.raises(UnreadableImageError, match=r"image 605 .*COCO_train2014_000000000605.jpg does not exist"):
        missing.load_image()
    assert missing.sentences[0].mask.any() and other.load_image()
    (pictures / "COCO_train2014_000000000154.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(UnreadableImageError, match="image 154"):
        other.load_image()
    assert pickle.loads(pickle.dumps(UnreadableImageError("image 1", "x"))).name == "image 1"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_parquet_file_is_named(tmp_path, streaming):
    content = (HUB / "refcoco_benchmark_schema.parquet").read_bytes()
    broken = tmp_path / "broken.parquet"
    for damage in (b"", content[: len(content) // 2], content[:4] + bytes(400) + content[404:]):
        broken.write_bytes(damage)
        with pytest.raises(ValueError, match=r"broken\.parquet"):
            split = load_split("refcoco", "val", broken, streaming=streaming)
            for sample in split:
                sample.load_image()


def test_another_schema_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"no column image_info, ref_list.*mixes two protocols"):
        load_split("refcoco", "val", HUB / "lmms_lab_refcoco_schema.parquet")
    with pytest.raises(ValueError, match="Give `image_root`"):
        load_split("refcoco", "val", HUB / "jxu124_refcoco_schema.parquet")
    with pytest.raises(ValueError, match=r"Row 0 .*no column mask or segmentation"):
        next(iter(load_split("rows", "x", [{"image": "a.png", "text": "b"}])))


def test_malicious_references_are_refused(tmp_path):
    shutil.copytree(DATA / "refer", tmp_path / "refer")
    folder = tmp_path / "refer" / "refcoco"
    folder.chmod(0o755)
    path = folder / "refs(unc).p"
    path.chmod(0o644)
    path.write_bytes(b"cbuiltins\neval\n(S'open(\"" + str(tmp_path / "ran").encode() + b'", "w")\'\ntR.')
    with pytest.raises(ValueError, match=r"refused: it asks for `builtins\.eval`"):
        load_split("refcoco", "testB", tmp_path / "refer")
    assert not (tmp_path / "ran").exists()


def test_no_file_and_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.parquet does not exist"):
        load_split("refcoco-m", "validation", "nowhere.parquet")
    with pytest.raises(FileNotFoundError, match=r"meta_expressions\.json does not exist"):
        load_split("mevis", "valid_u", tmp_path)


def test_a_sample_travels_to_another_process():
    for split in (
        load_split("refcoco", "testB", DATA / "refer"),
        load_split("refcoco-m", "validation", HUB / "refcoco_m_schema.parquet"),
        load_split("reasonseg", "val", DATA / "reason_seg"),
    ):
        sample = pickle.loads(pickle.dumps(split[0]))
        np.testing.assert_array_equal(sample.sentences[0].mask, split[0].sentences[0].mask)
        assert encode_mask(sample.sentences[0].mask)["counts"]
