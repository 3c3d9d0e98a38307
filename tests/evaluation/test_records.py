"""Files of an evaluation: whole or absent, of one configuration, and every record once."""

import pytest

from transformers_litelvlm.evaluation.records import OtherConfigurationError, RecordStore, to_table
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
