"""Files of an evaluation: whole or absent, of one configuration, and every record once."""

import json
from copy import deepcopy
from types import SimpleNamespace

import pytest

from tests.support.sample_results import BATCH, ROW
from transformers_litelvlm.data import DATASETS, ReferringSplit
from transformers_litelvlm.evaluation.records import OtherConfigurationError, RecordStore, check_batch, to_table
from transformers_litelvlm.evaluation.report import _describe_dataset
from transformers_litelvlm.evaluation.tasks import IMAGES, VIDEOS


def test_a_folder_has_one_configuration(tmp_path):
    store = RecordStore(tmp_path / "results")
    settings = {"budgets": [8], "versions": {"torch": "2.13"}, "methods": ["none"]}
    store.claim(settings)
    store.claim(dict(settings))
    with pytest.raises(OtherConfigurationError) as error:
        store.claim({"budgets": [8, 16], "versions": {"torch": "2.14"}, "methods": ["none"]})
    message = str(error.value)
    assert "budgets: there [8], now [8, 16]" in message
    assert "versions.torch: there '2.13', now '2.14'" in message
    assert "methods" not in message
    (tmp_path / "results" / "settings.json").write_text("{")
    with pytest.raises(OtherConfigurationError, match="not readable"):
        store.claim(settings)


def test_batches(tmp_path):
    store = RecordStore(tmp_path)
    assert store.done() == set()
    for batch in (2, 0):
        store.write(batch, {"rows": [], "number": batch})
    (tmp_path / "batches" / ".litelvlm-half").mkdir()  # what a kill leaves
    assert store.done() == {0, 2}
    with pytest.raises(ValueError, match=r"000001\.json is missing or damaged"):
        list(store.read(3))
    (tmp_path / "batches" / "000001.json").write_text('{"rows": [')
    with pytest.raises(ValueError, match=r"000001\.json is missing or damaged"):
        list(store.read(3))


def test_no_sentence_counts_twice():
    row = ["none", "7", "7/0", "a", 1, 2, 0.5, []]
    assert to_table([row, ["random@8#0", *row[1:]]], IMAGES.schema, IMAGES.key).num_rows == 2
    with pytest.raises(ValueError, match="7/0 has two records in the run none"):
        to_table([row, list(row)], IMAGES.schema, IMAGES.key)
    video = ["none", "v", "0", "a", 0.5, 0.5, 0.5, 3, []]
    assert to_table([video, ["none", "w", *video[2:]]], VIDEOS.schema, VIDEOS.key).num_rows == 2
    with pytest.raises(ValueError, match="0 of v has two records in the run none"):
        to_table([video, list(video)], VIDEOS.schema, VIDEOS.key)


def test_batches_of_other_settings_are_refused(tmp_path):
    """As it was: `settings.json` removed and another split asked, the records of the first were published as its."""
    store = RecordStore(tmp_path)
    store.claim({"split": "test"})
    store.write(0, {"rows": []})
    (tmp_path / "settings.json").unlink()
    with pytest.raises(OtherConfigurationError, match=r"holds batches, but no settings\.json"):
        RecordStore(tmp_path).claim({"split": "val"})
    (tmp_path / "settings.json").write_text('{"split": "val"}')  # and by hand
    other = RecordStore(tmp_path)
    other.claim({"split": "val"})
    with pytest.raises(ValueError, match=r"000000\.json is missing or damaged \(it was made with other settings"):
        list(other.read(1))


VIDEO = ["none", "v", "0", "a", 0.5, 0.25, 0.75, 3, []]


def checked(batch, schema=IMAGES.schema, asks_all=True):
    check_batch(batch, schema, dict.fromkeys(dict.fromkeys(row[0] for row in BATCH["rows"])), asks_all)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b["rows"][0].__setitem__(6, 7), "`iou` of record 0 is 7"),
        (lambda b: b["rows"][0].__setitem__(6, 0.75), "the numbers of record 0 contradict each other"),
        (lambda b: b["rows"][0].__setitem__(4, 3), "the numbers of record 0 contradict each other"),
        (lambda b: b["rows"][1].__setitem__(6, float("nan")), "`iou` of record 1 is nan"),
        (lambda b: b["rows"][3].__setitem__(6, 1.0), "the numbers of record 3 contradict each other"),
        (lambda b: b["rows"][0].__setitem__(4, -1), "`intersection` of record 0 is -1"),
        (lambda b: b["rows"][0].__setitem__(5, 2.5), "`union` of record 0 is 2.5"),
        (lambda b: b["rows"][0].__setitem__(2, 7), "`expression_id` of record 0 is 7"),
        (lambda b: b["rows"][0].__setitem__(7, "flag"), "`flags` of record 0 is 'flag'"),
        (lambda b: b["rows"][0].append(1), "longer"),
        (lambda b: b["rows"][0].__setitem__(0, "y@8"), "y@8"),
        (lambda b: b["rows"].pop(), "none and x@8 have records of different sentences"),
        (lambda b: b["rows"][3].__setitem__(2, "7/2"), "none and x@8 have records of different sentences"),
        (lambda b: b.__setitem__("rows", []), "0 records of none, of 2 sentences"),
        (lambda b: b["costs"][0].update(prefill=float("inf")), "the costs .* cannot be"),
        (lambda b: b["costs"][0].update(run_id="y"), "the costs .* cannot be"),
        (lambda b: b.pop("costs"), "costs"),
    ],
)
def test_batches_that_measuring_did_not_give(tmp_path, change, message):
    checked(BATCH)
    batch = deepcopy(BATCH)
    change(batch)
    store = RecordStore(tmp_path)
    store.claim({})
    store.write(0, {})
    path = tmp_path / "batches" / "000000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | batch))
    with pytest.raises(ValueError, match=f"000000.json is missing or damaged .*{message}.* Delete it"):
        list(store.read(1, checked))


def test_records_of_videos_and_of_drawn_sentences():
    video = {"rows": [VIDEO], "costs": [], "counts": {"sentences": 1}}
    check_batch(video, VIDEOS.schema, {"none": None}, True)
    with pytest.raises(ValueError, match="`f` of record 0 is 1.5"):
        check_batch({**video, "rows": [[*VIDEO[:6], 1.5, 3, []]]}, VIDEOS.schema, {"none": None}, True)
    # Seeds ask different sentences of an image, but as many.
    drawn = {"rows": [ROW, ["none#1", *ROW[1:2], "7/5", *ROW[3:]]], "costs": [], "counts": {"sentences": 9}}
    check_batch(drawn, IMAGES.schema, {"none": 0, "none#1": 1}, False)
    with pytest.raises(ValueError, match="different sentences"):
        check_batch(drawn, IMAGES.schema, {"none": 0, "none#1": 0}, False)
    with pytest.raises(ValueError, match="different sentences"):
        check_batch({**drawn, "rows": [ROW]}, IMAGES.schema, {"none": 0, "none#1": 1}, False)


def test_the_official_size_is_that_of_the_version_that_was_read():
    """MeViS has two: results of the second named the size of the first beside "matches"."""
    official = DATASETS["mevis"].splits["valid_u"]
    split = ReferringSplit("mevis", "valid_u", "", [], None, official)
    sweep = SimpleNamespace(split=split, task=VIDEOS, args=SimpleNamespace(protocol="all"))
    table = to_table([["none", "a", "0", "the cat", 1.0, 1.0, 1.0, 3, []]], VIDEOS.schema, VIDEOS.key)
    for sentences, named in ((907, 907), (793, 793), (5, 793)):
        found = _describe_dataset(sweep, [{"samples": 50, "objects": None, "sentences": sentences}], table)
        assert (found["official_counts"]["sentences"], found["counts_match"]) == (named, sentences > 5)
