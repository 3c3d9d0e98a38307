"""Rows of data sets with missing, wrong and enormous values, through every reader: read, or refused by row."""

from __future__ import annotations

import json
import pickle
import pickletools
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tests.support.fuzzing import changed, examples, json_values, mutated, quick, texts
from transformers_litelvlm.data.loading import load_split
from transformers_litelvlm.data.masks import encode_mask
from transformers_litelvlm.data.restricted_pickle import load_plain_pickle
from transformers_litelvlm.data.samples import UnreadableImageError


HEIGHT, WIDTH = 6, 8
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[1:5, :4] = True
POLYGON = [[0, 1, 4, 1, 4, 5, 0, 5]]


def picture_file(folder: Path) -> str:
    path = folder / "COCO_train2014_000000000007.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(path)
    return str(path)


FOLDER = tempfile.TemporaryDirectory()
PICTURE = picture_file(Path(FOLDER.name, "train2014"))
# A row in each layout; all mean the same mask.
PLAIN = {"image": PICTURE, "image_id": 7, "sentences": ["a dog", "the dog"], "mask": encode_mask(MASK)}
NESTED = {"image": {"path": PICTURE}, "expressions": [{"text": "a dog", "segmentation": POLYGON, "ignore": None}]}
REF = {"ref_id": 1, "ann_id": 3, "split": "val", "image_id": 7, "sentences": [{"sent": "a dog", "sent_id": 5}]}
IMAGE = {"id": 7, "file_name": Path(PICTURE).name, "height": HEIGHT, "width": WIDTH}
BENCHMARK = {
    "image": PICTURE,
    "image_info": IMAGE,
    "ref_list": [{"ref_info": REF, "ann_info": {"segmentation": POLYGON}}],
}
REFCOCO_M = {
    "image": PICTURE,
    "image_id": 7,
    "samples": [{"id": 1, "mask": encode_mask(MASK), "sentences": ["a dog"]}],
}
LAYOUTS = {
    "plain": ("rows", PLAIN),
    "nested": ("rows", NESTED),
    "benchmark": ("refcoco", BENCHMARK),
    "refcoco_m": ("refcoco-m", REFCOCO_M),
}
SPLITS = {"rows": "val", "refcoco": "val", "refcoco-m": "validation"}


def read_all(split, wanted: int | None = None):
    """Everything of every sample that an evaluation reads."""
    number = 0
    for sample in split:
        try:
            size = sample.load_image().size[::-1]
        except UnreadableImageError as error:
            assert f"image {sample.image_id}"[:40] in str(error)
            size = None
        for entry in sample.sentences:
            assert isinstance(entry.sentence, str) and isinstance(entry.sentence_id, str)
            for mask in (entry.mask, entry.ignore):
                assert mask is None or (mask.dtype == bool and mask.ndim == 2)
            if size == entry.mask.shape == (HEIGHT, WIDTH) and wanted is not None:
                assert entry.mask.sum() == wanted
            number += 1
    return number


def refused(name, load):
    """Whether it was refused as it may be."""
    with quick(name):
        try:
            load()
        except (ValueError, FileNotFoundError) as error:
            assert len(str(error)) < 1500, f"{len(str(error))} letters: {error!s:.300}"
            return True
    return False


@st.composite
def rows(draw):
    name, row = draw(st.sampled_from(list(LAYOUTS.values())))
    return name, draw(st.one_of(changed(row), changed(row), st.dictionaries(st.sampled_from(list(row)), json_values)))


def with_(row, **changes):
    return {**row, **changes}


@example(("rows", with_(PLAIN, sentences=[""])))  # W11
@example(("rows", with_(PLAIN, sentences=["a dog", None])))
@example(("rows", with_(PLAIN, sentences="x" * 10**6, mask="y" * 10**6)))
@example(("rows", with_(PLAIN, mask={"size": [6, 8], "counts": ""})))  # F2
@example(("rows", with_(PLAIN, mask=[[0, 0, 1e9, 0, 1e9, 1e9]])))  # F1
@example(("rows", with_(PLAIN, mask={"path": "/dev/zero"})))  # F11
@example(("rows", with_(PLAIN, mask={"bytes": "text"})))
@example(("rows", with_(PLAIN, mask={})))
@example(("rows", with_(PLAIN, image="http://127.0.0.1:9/a.png")))  # F21
@example(("rows", with_(NESTED, expressions="text")))
@example(("rows", with_(NESTED, expressions={})))
@example(("rows", {"image": PICTURE, "sentences": None, "mask": None, "image_id": ["x" * 5000]}))
@example(("rows", 7))
@example(("refcoco", 7))
@example(("refcoco", with_(BENCHMARK, image_info={"id": 7, "height": 10**6, "width": 10**6})))
@example(("refcoco", with_(BENCHMARK, image_info={"id": 7, "height": "6", "width": 8})))
@given(rows())
@examples(500)
def test_rows(case):
    name, row = case
    refused(f"row of {name}", lambda: read_all(load_split(name, SPLITS[name], [row])))


def test_rows_that_are_whole():
    for name, row in LAYOUTS.values():
        assert read_all(load_split(name, SPLITS[name], [row]), wanted=16) in (1, 2)


# ---- the folder of the `refer` toolbox ------------------------------------------------------------------------------

INSTANCES = {"images": [IMAGE], "annotations": [{"id": 3, "segmentation": POLYGON}]}


def read_refer(refs: bytes, instances: bytes, wanted=None):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "refcoco").mkdir()
        (Path(folder) / "refcoco" / "refs(unc).p").write_bytes(refs)
        (Path(folder) / "refcoco" / "instances.json").write_bytes(instances)
        split = load_split("refcoco", "val", folder, image_root=Path(PICTURE).parent)
        return read_all(split, wanted)


WHOLE = pickle.dumps([REF], 2), json.dumps(INSTANCES).encode()


@example(pickle.dumps([REF], 2), b"[" * 100_000)
@example(pickle.dumps(7), WHOLE[1])
@example(pickle.dumps([{**REF, "split": []}]), WHOLE[1])
@example(pickle.dumps([{**REF, "image_id": []}]), WHOLE[1])
@given(
    st.one_of(st.just(WHOLE[0]), changed([REF]).map(lambda refs: pickle.dumps(refs, 2))),
    st.one_of(
        st.just(WHOLE[1]),
        changed(INSTANCES).map(lambda value: json.dumps(value).encode()),
        mutated(WHOLE[1], most=3),
    ),
)
@examples(300)
def test_refer(refs, instances):
    refused("folder of refer", lambda: read_refer(refs, instances))


def test_a_refer_folder_that_is_whole():
    assert read_refer(*WHOLE, wanted=16) == 1


@given(mutated(WHOLE[0]))
@examples(400)
def test_pickles(content):
    """Nothing but data comes out, whatever the bytes are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "refs(unc).p")
        path.write_bytes(content)
        if largest_memo(content) > 10**6:
            return  # Python makes room for as many values as the number says, gigabytes of it: SECURITY.md
        with quick("pickle"):
            try:
                value = load_plain_pickle(path)
            except ValueError as error:
                assert str(path) in str(error)
                return
        assert type(value).__module__ == "builtins"


def largest_memo(content: bytes) -> int:
    """The largest number of a place in the memo, as far as the pickle can be read."""
    largest = 0
    with suppress(Exception):
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name.endswith("PUT"):
                largest = max(largest, argument)
    return largest


# ---- ReasonSeg ------------------------------------------------------------------------------------------------------

REASON = {
    "text": ["which dog?"],
    "is_sentence": True,
    "shapes": [{"label": "target", "points": [[0, 1], [3, 1], [3, 4], [0, 4]]}],
}


def read_reason(content: bytes, wanted=None):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "val", "a.json")
        path.parent.mkdir()
        path.write_bytes(content)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path.with_suffix(".jpg"))
        return read_all(load_split("reasonseg", "val", folder), wanted)


@example(b"[" * 100_000)
@example(json.dumps({**REASON, "shapes": [{"label": "target", "points": [[0, 0], [1e9, 0], [1e9, 1e9]]}]}).encode())
@example(json.dumps({**REASON, "text": 7}).encode())
@example(json.dumps({**REASON, "text": [7]}).encode())
@given(st.one_of(changed(REASON).map(lambda value: json.dumps(value).encode()), mutated(json.dumps(REASON).encode())))
@examples(300)
def test_reason_seg(content):
    refused("file of ReasonSeg", lambda: read_reason(content))


def test_a_file_of_reason_seg_that_is_whole():
    assert read_reason(json.dumps(REASON).encode(), wanted=16) == 1


@given(st.lists(texts, max_size=3), st.one_of(texts, json_values))
@examples(100)
def test_sentences_stay_as_they_are(sentences, image_id):
    row = {"image": PICTURE, "sentences": sentences, "mask": encode_mask(MASK), "image_id": image_id}
    if refused("sentences", lambda: list(load_split("rows", "val", [row]))):
        assert not sentences
        return
    [sample] = load_split("rows", "val", [row])
    assert [entry.sentence for entry in sample.sentences] == sentences
