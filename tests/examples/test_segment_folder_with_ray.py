"""Many pictures with Ray Data: what is refused, and a run that is killed and started again, against a plain loop."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import pipeline

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.data import generate_scene
from transformers_litelvlm.data.masks import encode_mask


pytest.importorskip("ray")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SENTENCES = ["the star", "the largest object"]


@pytest.fixture
def start(tmp_path):
    """Start the script in an empty home folder, as Ray writes there; whatever runs at the end is killed."""
    started = []

    def run(*arguments):
        words = [sys.executable, str(ROOT / "examples" / "segment_folder_with_ray.py"), *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HOME": str(tmp_path)}
        started.append(
            subprocess.Popen(
                words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def finish(process):
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err


def rows_of(output):
    return [row for part in sorted(output.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def plain_loop(pictures):
    """Run lengths and scores by name."""
    torch.set_num_threads(1)  # as Ray has it for a worker with one core
    segmenter = pipeline("referring-segmentation", model=DEFAULT_CHECKPOINT, pruning_preset="balanced", device="cpu")
    return {
        name: [(encode_mask(np.asarray(each["mask"]) > 0)["counts"], each["score"]) for each in segmenter(*asked)]
        for name, asked in pictures.items()
    }


def check(rows, expected):
    assert sorted(row["image"] for row in rows) == sorted(expected)
    for row in rows:
        assert row["error"] is None
        assert list(zip(row["counts"], row["scores"], strict=True)) == expected[row["image"]]


@pytest.mark.timeout(900)
def test_200_pictures_killed_and_resumed_are_those_of_a_plain_loop(start, tmp_path):
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    pictures = {}
    for index in range(200):
        name, picture = (
            f"{'sub/' if index % 2 else ''}{index}.png",
            Image.fromarray(generate_scene("test", index).image),
        )
        picture.save(tmp_path / "pictures" / name)
        pictures[name] = (picture, SENTENCES)
    (tmp_path / "pictures" / "damaged.png").write_bytes(b"no picture")
    arguments = ["pictures", *SENTENCES, "--output", "out", "--preset", "balanced", "--rows-per-part", 16]
    first, output = start(*arguments), tmp_path / "out"
    while len(list(output.glob("part-*.parquet"))) < 3:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.kill()
    first.wait()
    before = rows_of(output)
    assert 48 <= len(before) < 201
    (output / "part-cut.litelvlm-unfinished").write_bytes(b"PAR1")
    code, out, err = finish(start(*arguments))
    assert code == 0, err
    assert f"{201 - len(before)} pictures done, {len(before)} were there before" in out
    rows = rows_of(output)
    [damaged] = [row for row in rows if row["image"] == "damaged.png"]
    assert "damaged.png cannot be read as a picture" in damaged["error"] and damaged["counts"] is None
    check([row for row in rows if row is not damaged], plain_loop(pictures))
    assert {path.suffix for path in output.iterdir()} == {".parquet", ".json"}
    code, out, _ = finish(start(*arguments))
    assert code == 0 and "0 pictures done, 201 were there before" in out
    code, _, err = finish(start(*arguments[:-4], "--output", "out", "--preset", "fast"))
    assert code == 2 and "settings.json there has other settings" in err


@pytest.mark.timeout(300)
def test_a_parquet_file_with_bytes_and_paths(start, tmp_path):
    rows, pictures = [], {}
    for index in range(3):
        picture, file = Image.fromarray(generate_scene("test", index).image), io.BytesIO()
        picture.save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": f"{index}"}, "sentences": SENTENCES[:1]})
        pictures[str(index)] = (picture, SENTENCES[:1])
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows" / "rows.parquet")
    code, _, err = finish(start("rows/rows.parquet", "--output", "out", "--preset", "balanced"))
    assert code == 0, err
    check(rows_of(tmp_path / "out"), plain_loop(pictures))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent: there is no such folder"),
        (["empty", "the star"], "there are no pictures"),
        (["pictures"], "needs sentences"),
        (["text.parquet"], "cannot be read as parquet"),
        (["other.parquet"], "it has no column image and no column sentences, but a"),
        (["other.parquet", "the star"], "give none"),
        (["pictures", "the star", "--preset", "slow"], "Unknown `pruning_preset` 'slow'"),
        (["pictures", "the star", "--model", "absent/model"], "--model absent/model"),
        (["pictures", "the star", "--workers", "0"], "must be 1 or more"),
        (["pictures", "the star", "--output", "pictures"], "it is no folder that this script made"),
    ],
)
def test_what_is_refused(start, tmp_path, arguments, message):
    for folder in ("empty", "pictures"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    code, _, err = finish(start("--output", "out", *arguments))
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()
