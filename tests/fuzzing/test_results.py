"""Files of an evaluation that somebody changed: refused with their name, or read to numbers that can be."""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.fuzzing import changed, examples, mutated, quick, texts
from tests.support.sample_results import BATCH, sample_results
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.evaluation.records import RecordStore, check_batch
from transformers_litelvlm.evaluation.tasks import IMAGES
from transformers_litelvlm.hub.measured import BEGIN, END, render_measured, replace_region
from transformers_litelvlm.hub.metadata import eval_results, replace_model_index
from transformers_litelvlm.hub.results import CardError, read_results
from transformers_litelvlm.utils.files import read_json


SAMPLE = sample_results()
SAMPLE["environment"]["command"] = "litelvlm evaluate --dataset refshapes"
PRUNING = PruningConfig(token_order="raster", position_ids="original")
DEEP = b"[" * 100_000 + b"]" * 100_000
CARD = "---\nlicense: mit\n---\n# A model\n"


def with_text(*path):
    """The sample with a hostile text in one place."""

    def at(text):
        content = json.loads(json.dumps(SAMPLE))
        owner = content
        for key in path[:-1]:
            owner = owner[key]
        owner[path[-1]] = text
        return json.dumps(content).encode()

    return at


def read(content: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "results.json")
        path.write_bytes(content)
        with quick("results.json"):
            try:
                return read_results(path)
            except CardError as error:
                assert isinstance(error, ValueError) and str(path) in str(error)
                assert "\n" not in str(error) and len(str(error)) < 600
                return None


def assert_plausible(results):
    for group in results.groups:
        numbers = [*group.metrics.values(), *(end for ends in group.intervals.values() for end in ends)]
        assert all(type(number) in (int, float) and 0 <= number <= 1 for number in numbers)
        assert all(math.isfinite(number) and number >= 0 for number in group.retention.values())
        assert group.num_seeds >= 1 and (group.budget is None or group.budget >= 1)
        assert group.retention_ratio is None or 0 <= group.retention_ratio <= 1


def assert_harmless(results):
    """Nothing of a results.json is markup in the card that shows it."""
    num_tokens = results.model.get("num_visual_tokens")
    with quick("card"):
        try:
            region = render_measured([results], PRUNING, num_tokens)
            card = replace_model_index(replace_region(CARD, region), "a", eval_results(results))
        except CardError:
            return
    assert region.count(BEGIN) == region.count(END) == region.count("-->") - 1 == 1
    outside_code = re.sub(r"(`+).*?\1", "", region.replace(BEGIN, "").replace(END, ""), flags=re.DOTALL)
    assert not re.search(r"<[a-zA-Z/!]", outside_code) and not re.search(r"(?<!\\)\]\(", outside_code)
    assert all(line.isprintable() for line in region.splitlines())
    lines = re.sub(r"^(`{3,})\w*\n.*\n\1$", "", region, flags=re.MULTILINE).splitlines()  # without blocks of code
    headings = [line for line in lines if line.startswith("#")]
    assert len(headings) == 2, headings
    for line in lines:
        if line.startswith("|"):  # cells that are not escaped; of both tables
            assert len(re.findall(r"(?<!\\)\|", line)) in (4, 5, 6, 7), line
    again = replace_model_index(replace_region(card, region), "a", eval_results(results))
    assert again == card and yaml.safe_load(card.split("---\n")[1])["license"] == "mit"


def check(content):
    """A file is refused, or what is read of it is plausible and its card harmless."""
    results = read(content)
    if results is not None:
        assert_plausible(results)
        assert_harmless(results)


@example(DEEP)
@example(json.dumps(SAMPLE).replace("0.767", "NaN").encode())
@example(json.dumps(SAMPLE).replace("0.767", "1e400").encode())
@example(json.dumps(SAMPLE).replace("0.767", "9" * 5000).encode())  # more digits than Python converts
@example(b"\xff\xfe{")
@given(mutated(json.dumps(SAMPLE).encode()))
@examples(300)
def test_bytes(content):
    check(content)


# F14: newlines, HTML and the marks of a card in texts that it shows.
@example(with_text("dataset", "name")("x\n## Injected"))
@example(with_text("dataset", "name")(f"x {END} <script>alert(1)</script>"))
@example(with_text("dataset", "name")("x | y ](http://z) `code"))
@example(with_text("dataset", "name")("<img src=x onerror=alert(1)>"))
@example(with_text("environment", "command")("``` \u2028 ```"))
@example(with_text("environment", "command")("````` | -- > <b>"))
@example(with_text("groups", 1, "method")("a|b\\|c `"))
@example(with_text("groups", 1, "retention_ratio")(0))  # accepted, and an error of another file's reader afterwards
@example(with_text("dataset", "name")("a" * 30_000))
@example(with_text("groups", 1, "token_order")("<b>|"))
@example(with_text("groups", 1, "method_options")({"a|b": "<i>` |\u202e"}))
@example(with_text("model", "path_or_id")("---\nlicense: apache-2.0\n---"))
@example(with_text("settings")({"<script>": "`" * 70}))
@example(with_text("environment", "hardware")({"device": "<b>", "cpu": ["|"], "threads": {"a": "`"}}))
@given(changed(SAMPLE).map(lambda content: json.dumps(content).encode()))
@examples(300)
def test_values(content):
    check(content)


TEXTS = [
    ("dataset", "name"),
    ("dataset", "split"),
    ("dataset", "protocol"),
    ("dataset", "source"),
    ("model", "path_or_id"),
    ("model", "dtype"),
    ("environment", "command"),
    ("environment", "date"),
    ("environment", "torch"),
    ("environment", "hardware", "cpu"),
    ("settings", "budgets"),
    ("groups", 1, "method"),
    ("groups", 1, "token_order"),
    ("groups", 1, "method_options", "context_share"),
]
letters = st.sampled_from(["`", "``", "|", "\\", "<b>", "](http://x)", "#", "-", " ", "a", "--", "&lt;", "*", "!["])


@given(st.sampled_from(TEXTS), st.one_of(texts, st.lists(letters, max_size=9).map("".join)))
@examples(60)
def test_texts(place, text):
    results = read(with_text(*place)(text))
    if results is not None:
        assert_harmless(results)


def test_the_sample_is_read_and_shown():
    results = read(json.dumps(SAMPLE).encode())
    assert_plausible(results)
    assert_harmless(results)


# ---- batches of records ---------------------------------------------------------------------------------------------


def read_batch(change):
    """A batch in the folder of an evaluation, after `change` of its bytes; nothing if it was refused by name."""
    with tempfile.TemporaryDirectory() as folder:
        store = RecordStore(folder)
        store.claim({"split": "val"})
        store.write(0, BATCH)
        path = Path(folder, "batches", "000000.json")
        path.write_bytes(change(path.read_bytes()))
        with quick("batch of records"):
            try:
                [batch] = store.read(1, lambda batch: check_batch(batch, IMAGES.schema, {"none": 0, "x@8": 0}, True))
            except ValueError as error:
                assert str(path) in str(error) and len(str(error)) < 1000
                return None
    return batch


def assert_countable(batch):
    for run_id, *_, intersection, union, iou, flags in batch["rows"]:
        assert run_id in ("none", "x@8") and 0 <= intersection and 0 <= iou <= 1 and isinstance(flags, list)
        assert type(intersection) is type(union) is int
        assert "unreadable_image" in flags or intersection <= union
    assert len(batch["rows"]) == 4


@given(st.data())
@examples(300)
def test_values_of_records(data):
    def change(content: bytes) -> bytes:
        return json.dumps(json.loads(content) | data.draw(changed(BATCH))).encode()

    batch = read_batch(change)
    if batch is not None:
        assert_countable(batch)


@given(st.data())
@examples(200)
def test_bytes_of_records(data):
    batch = read_batch(lambda content: data.draw(mutated(content)))
    if batch is not None:
        assert_countable(batch)


def test_a_long_value_of_a_record():
    """As it was, the message had all of it."""
    counts = {**BATCH["counts"], "sentences": "x" * 10**5}
    assert read_batch(lambda content: json.dumps(json.loads(content) | {"counts": counts}).encode()) is None


@pytest.mark.parametrize("content", [DEEP, b"", b"\xff", b"9" * 5000, b"[]", b"null", b'{"settings": []}'])
def test_files_that_are_no_batches(content, tmp_path):
    assert read_batch(lambda _: content) is None
    path = tmp_path / "x.json"
    path.write_bytes(content)
    if content not in (b"[]", b"null", b'{"settings": []}'):
        with pytest.raises(ValueError, match=r"x\.json"):
            read_json(path)
    store = RecordStore(tmp_path)
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"settings\.json|another configuration"):
        store.claim({"split": "val"})


def test_the_batch_is_read():
    assert_countable(read_batch(lambda content: content))
