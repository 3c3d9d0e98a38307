"""Data that are read one after the other: the same records, whoever reads them, and nothing is copied first."""

import dataclasses
import io
import os
from pathlib import Path

import datasets
import pytest
from PIL import Image

from tests.support.original_checkpoints import SHARED
from tests.support.small_evaluations import assert_same, evaluate_in_processes, options, records
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.data.loading import load_split
from transformers_litelvlm.data.masks import encode_mask
from transformers_litelvlm.data.refshapes import generate_scene
from transformers_litelvlm.data.splits import ReferringSplit
from transformers_litelvlm.evaluation import runner
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.runner import evaluate, open_split


def as_row(index: int) -> dict:
    scene, picture = generate_scene("test", index), io.BytesIO()
    Image.fromarray(scene.image).save(picture, "PNG")
    expressions = [{"text": e.sentence, "mask": encode_mask(scene.mask(e.target_id))} for e in scene.expressions]
    return {"image": {"bytes": picture.getvalue(), "path": None}, "expressions": expressions}


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> Path:
    """The six scenes of the reference run, in row groups of two."""
    path = tmp_path_factory.mktemp("parquet") / "scenes.parquet"
    rows = datasets.Dataset.from_list([as_row(index) for index in range(6)])
    rows.cast_column("image", datasets.Image()).to_parquet(path, batch_size=2)
    return path


def streamed(folder, parquet, **changes) -> EvaluationArguments:
    return options(folder, dataset="rows", split="train", source=str(parquet), max_images=None, **changes)


COLUMNS = ["run_id", "sentence", "intersection", "union", "iou"]


@pytest.mark.slow
def test_a_stream_gives_the_same_records(reference, parquet, tmp_path):
    cache = Path(os.environ["HF_HOME"], "datasets")
    before = set(cache.rglob("*.arrow"))
    args = streamed(tmp_path, parquet)
    assert open_split(args).is_streamed
    evaluate(args)
    assert records(tmp_path).to_pandas()[COLUMNS].equals(records(reference).to_pandas()[COLUMNS])
    assert set(cache.rglob("*.arrow")) == before  # read where it is
    evaluate(streamed(tmp_path / "four", parquet, batch_size=4))
    assert_same(tmp_path / "four", tmp_path)
    evaluate(dataclasses.replace(streamed(tmp_path / "cut", parquet), max_images=4))
    assert records(tmp_path / "cut").to_pandas()["image_id"].unique().tolist() == ["0", "1", "2", "3"]


def test_a_stream_goes_on_where_it_was_stopped(parquet, tmp_path, monkeypatch):
    evaluate(streamed(tmp_path / "whole", parquet))
    measured, measure = [], runner.measure_batch

    def stops_at_the_second(samples, *rest):
        measured.append([index for index, _ in samples])
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(samples, *rest)

    monkeypatch.setattr(runner, "measure_batch", stops_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(streamed(tmp_path / "stopped", parquet))
    evaluate(streamed(tmp_path / "stopped", parquet))
    assert measured == [[0, 1], [2, 3], [2, 3], [4, 5]]
    assert_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_processes_share_a_stream_exactly(parquet, tmp_path):
    evaluate(streamed(tmp_path / "1", parquet, batch_size=1))
    evaluate_in_processes(streamed(tmp_path / "2", parquet, batch_size=1), processes=2)
    assert_same(tmp_path / "2", tmp_path / "1")


def test_portions_are_the_same_for_every_reader():
    rows = list(range(11))

    def portions(source, processes, process, **kwargs):
        split = ReferringSplit("x", "y", "z", source, lambda index, row: (index, row))
        wanted = lambda number: number % processes == process  # noqa: E731
        return {number: batch for number, batch in split.batches(4, is_wanted=wanted, **kwargs) if batch is not None}

    class Stream:
        def __iter__(self):
            return iter(rows)

    for limit in (None, 8, 9, 30):
        whole = portions(rows, 1, 0, limit=limit)
        assert [sample for batch in whole.values() for _, sample in batch] == [(i, i) for i in rows[:limit]]
        for source in (rows, Stream()):
            for processes in (1, 2, 3, 5):
                parts = [portions(source, processes, process, limit=limit) for process in range(processes)]
                joined = {number: batch for part in parts for number, batch in part.items()}
                assert joined == whole and sum(map(len, parts)) == len(whole)


def test_what_is_streamed(monkeypatch, tmp_path, parquet):
    """Files here always, but for JSON; a set on the Hub where only its first images are wanted."""
    seen = []
    monkeypatch.setattr(runner, "load_split", lambda *args, **options: seen.append(options.get("streaming")))
    (tmp_path / "own.jsonl").write_text("{}")
    base = EvaluationArguments(output_dir="x", dataset="refcoco", split="val")
    for changes in (
        {"source": str(parquet)},
        {"source": str(parquet.parent)},
        {"dataset": "rows", "source": str(tmp_path / "own.jsonl"), "max_images": 3},
        {},
        {"max_images": 3},
        {"source": "somebody/else", "max_images": 3},
        {"dataset": "mevis", "max_images": 3},
    ):
        open_split(dataclasses.replace(base, **changes))
    assert seen == [True, True, False, False, True, True, None]


def test_a_damaged_parquet_file_stops_the_run_and_is_named(parquet, tmp_path, capsys):
    """Damaged behind the first rows: what is done is kept."""
    content = bytearray(parquet.read_bytes())
    middle = len(content) * 2 // 3
    content[middle - 3000 : middle] = bytes(3000)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(content)
    words = ["--dataset", "rows", "--split", "train", "--source", str(broken), "--methods", "none"]
    folder = tmp_path / "results"
    assert main(["evaluate", "--output-dir", str(folder), "--batch-size", "1", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("litelvlm: error: ") and ("broken.parquet" in error or "image " in error)
    assert not (folder / "results.json").exists()
    assert 1 <= len(list((folder / "batches").iterdir())) < 6


needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the miniature data sets are not part of the project")


@needs_data
@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        ("refcoco", "val", "refcoco_benchmark_schema.parquet"),
        ("refcoco-m", "validation", "refcoco_m_schema.parquet"),
        ("reasonseg", "val", "reasonseg_schema.parquet"),
    ],
)
def test_public_schemas_are_the_same_as_streams(name, split, file):
    source = SHARED / "data" / "hf" / file
    whole, stream = (load_split(name, split, source, streaming=streaming) for streaming in (False, True))
    assert stream.is_streamed and not whole.is_streamed
    for one, other in zip(whole, stream, strict=True):
        assert one.image_id == other.image_id and one.load_image().tobytes() == other.load_image().tobytes()
        for first, second in zip(one.sentences, other.sentences, strict=True):
            assert first.sentence_id == second.sentence_id and first.sentence == second.sentence
            assert (first.mask == second.mask).all()


def test_more_images_than_a_split_has_are_the_split(tmp_path):
    """RefShapes made as many scenes as were asked for."""
    assert len(open_split(options(tmp_path, max_images=2000))) == 1000
    assert len(open_split(options(tmp_path, max_images=2))) == 2
