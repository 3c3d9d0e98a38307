"""Whole calibrations of the embedded checkpoint: what comes out, and what it does not depend on."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from tests.support import warm_python
from tests.support.small_calibrations import content, copy_checkpoint, files, options
from transformers_litelvlm.calibration.report import _verdict
from transformers_litelvlm.calibration.runner import calibrate
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.data.refshapes import generate_scene
from transformers_litelvlm.evaluation.arguments import as_command_line
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation
from transformers_litelvlm.utils.files import read_json


ROOT = Path(__file__).parents[2]
CONTEXT = "litelvlm:context_share=1.0"


def test_what_is_said_follows_from_the_records(reference):
    found = content(reference)
    batches = [read_json(reference / "validation" / "batches" / f"{number:06d}.json") for number in range(4)]
    order = np.random.default_rng(0).permutation(500)[:4]
    asked = {row[3] for batch in batches for row in batch["rows"]}
    assert asked == {
        entry.sentence for index in order for entry in generate_scene("validation", int(index)).expressions
    }
    for preset in found["presets"].values():
        assert preset["num_tokens"] == preset["size"]
        for entry in preset["rounds"]:
            for name, score in entry["scores"].items():
                run_id = f"{name}@{preset['size']}" + ("#0" if name == "random" else "")
                rows = [row for batch in batches[: entry["num_images"]] for row in batch["rows"] if row[0] == run_id]
                assert score["value"] == pytest.approx(np.mean([row[6] for row in rows]), abs=1e-12)
        last = preset["rounds"][-1]["scores"]
        beats = last[CONTEXT]["value"] > last["random"]["value"]
        assert preset["choice"]["chosen"] in ((CONTEXT,) if beats else (None,)) or preset["choice"]["images_needed"]
    chosen = [name for name, preset in found["presets"].items() if preset["choice"]["chosen"]]
    assert "accurate" in chosen and set(found["test"]["presets"]) == set(chosen)


def test_the_test_split_is_that_of_an_evaluation(reference):
    found, results = content(reference), read_json(reference / "test" / "results.json")
    groups = {(group["name"], group["budget"]): group for group in results["groups"]}
    figures = found["test"]["presets"]["accurate"]
    assert figures["chosen"]["metrics"] == groups[CONTEXT, 48]["metrics"]
    assert figures["published"]["metrics"] == groups["litelvlm", 48]["metrics"]
    assert figures["baseline"]["intervals"] == groups["random", 48]["intervals"]
    assert figures["unpruned"]["metrics"] == groups["none", None]["metrics"]
    assert results["dataset"]["split"] == "test" and found["test"]["num_samples"] == 1
    page = (reference / "calibration.md").read_text()
    assert f"| accurate | 48 | {CONTEXT} | the " in page
    of_giou = [each for each in results["comparisons"] if (each["budget"], each["metric"]) == (48, "giou")]
    compared = {(each["method"], each["baseline"]): each for each in of_giou}
    over = compared[CONTEXT, "random"]
    assert f"random ({over['difference']:+.4f}, p = {over['p_value']:.4f}), " in figures["verdict"]
    assert f"default ({-compared['litelvlm', CONTEXT]['difference']:+.4f}, p = " in figures["verdict"]
    assert figures["verdict"] in page and "Confirmed" not in page and "Measured once on test: 1 images" in page
    value, (low, high) = figures["published"]["metrics"]["giou"], figures["published"]["intervals"]["giou"]
    assert f"{value:.4f} ({low:.4f} to {high:.4f})" in page


@pytest.mark.parametrize(
    ("difference", "interval", "p_value", "verdict"),
    [
        (0.1, [0.05, 0.15], 0.001, "better than random (+0.1000, p = 0.0010)"),
        (0.1, [-0.05, 0.25], 0.2, "NOT told apart from random (+0.1000, p = 0.2000)"),
        (-0.1, [-0.15, -0.05], 0.001, "WORSE than random (-0.1000, p = 0.0010)"),
    ],
)
def test_the_test_split_may_contradict_the_choice(difference, interval, p_value, verdict):
    compared = {"metric": "giou", "budget": 48, "retention_ratio": None, "interval": interval, "p_value": p_value}
    compared |= {"method": "mine", "baseline": "random", "difference": difference}
    published = compared | {"method": "litelvlm", "baseline": "mine"}
    others = [compared | {"budget": 16}, compared | {"metric": "ciou"}, compared | {"method": "other"}]
    assert _verdict({"comparisons": [*others, compared]}, "mine", 48, "giou") == verdict
    both = _verdict({"comparisons": [published, compared]}, "mine", 48, "giou")
    assert both.startswith(f"{verdict}, ") and both.endswith(
        f"the published default ({-difference:+.4f}, p = {p_value:.4f})"
    )
    assert ("WORSE than the published default" in both) == (verdict.startswith("better"))
    assert _verdict({"comparisons": others}, "mine", 48, "giou") == "not compared"


@pytest.mark.parametrize("missing", ["validation/batches/000003.json", "calibration.md"])
def test_stopped_and_started_again_it_gives_the_same(reference, checkpoint, tmp_path, missing):
    """As if it had been killed when the last batch was missing, and as if only the report was. The presets are written
    by now, which changes nothing either."""
    folder = tmp_path / "calibration"
    shutil.copytree(reference, folder)
    gone = ("calibration.json", "calibration.md", missing, *(("test",) if "batches" in missing else ()))
    for name in dict.fromkeys(gone):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = (folder / "validation" / "batches" / "000000.json").stat().st_mtime_ns
    calibrate(options(folder, checkpoint))
    assert files(folder) == [text.replace(str(reference).encode(), str(folder).encode()) for text in files(reference)]
    assert (folder / "validation" / "batches" / "000000.json").stat().st_mtime_ns == before


def test_the_presets_are_written_and_load(reference, checkpoint, tmp_path):
    original = copy_checkpoint(tmp_path)
    changed = [path.name for path in original.iterdir() if path.is_file() and not same(path, checkpoint / path.name)]
    assert sorted(changed) == ["README.md", "config.json"]
    assert sorted(path.name for path in checkpoint.iterdir()) == sorted(path.name for path in original.iterdir())
    pruning = AutoConfig.from_pretrained(original).pruning_config.apply_preset("accurate")
    assert pruning.method_options == {} and pruning.retention_ratio == 1 / 3
    model = AutoModelForReferringSegmentation.from_pretrained(checkpoint, pruning_preset="accurate")
    pruning = model.config.pruning_config
    assert (pruning.method, pruning.method_options, pruning.budget) == ("litelvlm", {"context_share": 1.0}, 48)
    assert (pruning.token_order, pruning.position_ids) == ("raster", "original")
    old, new = (read_json(folder / "config.json") for folder in (original, checkpoint))
    not_chosen = [name for name, found in content(reference)["presets"].items() if found["preset"] is None]
    for name in (*not_chosen, "faithful"):
        assert new["pruning_config"]["presets"][name] == old["pruning_config"]["presets"][name]
    assert {**old, "pruning_config": None} == {**new, "pruning_config": None}
    assert new["pruning_config"]["method_options"] == {} and new["pruning_config"]["retention_ratio"] is None


def test_the_command_says_what_was_chosen_and_errors_in_one_line(reference, checkpoint, tmp_path, capsys):
    folder = Path(shutil.copytree(reference, tmp_path / "calibration"))
    words = as_command_line(options(folder, checkpoint))
    assert main(["calibrate", *words, "--processes", "1"]) == 0
    assert capsys.readouterr().out == (folder / "calibration.md").read_text()
    assert content(folder)["environment"]["command"].startswith("litelvlm calibrate --output-dir")
    assert main(["calibrate", *words, "--confidence", "0.9", "--processes", "1"]) == 2
    assert "confidence: there 0.5, now 0.9" in capsys.readouterr().err


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_killed_half_way_it_goes_on(reference, checkpoint, tmp_path):
    folder = tmp_path / "calibration"
    words = ["-m", "transformers_litelvlm.calibration", *as_command_line(options(folder, checkpoint))]
    killed = warm_python.start(words, (tmp_path / "stdout", tmp_path / "stderr"))
    while not (folder / "validation" / "batches" / "000001.json").exists():
        assert killed.is_alive()
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert not (folder / "calibration.json").exists()
    calibrate(options(folder, checkpoint))
    assert files(folder) == [text.replace(str(reference).encode(), str(folder).encode()) for text in files(reference)]
    assert not [path for path in folder.rglob(".litelvlm-*") if path.name != ".litelvlm.json"]


def test_one_file_cannot_be_both_splits(tmp_path):
    """The name of a split is not used for a file, so settings were confirmed on the data that they were chosen on."""
    source = tmp_path / "rows.jsonl"
    source.write_text('{"image": "a.png", "text": "a dog", "mask": null}')
    args = options(tmp_path / "out", tmp_path, dataset="rows", source=str(source), split="a", test_split="b")
    with pytest.raises(ValueError, match="is one file, .* would be the same data"):
        calibrate(args)
