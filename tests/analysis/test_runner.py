"""A whole analysis of a tiny model: its files, interruptions, several processes, and what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.tiny_llava import save_tiny_checkpoint
from transformers_litelvlm.analysis import figures
from transformers_litelvlm.analysis.arguments import AnalysisArguments
from transformers_litelvlm.analysis.figures import FIGURE_NAMES
from transformers_litelvlm.analysis.runner import analyze
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.runner import evaluate


FILES = ("measurements.parquet", "analysis.json", "report.md", *FIGURE_NAMES)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def options(folder, model, **changes):
    settings = {
        "budgets": [6, 0.25],
        "max_images": 3,
        "batch_size": 1,
        "examples": 1,
        "seeds": [0, 1],
        "leave_one_out": 9,
    }
    settings |= changes
    return AnalysisArguments(output_dir=str(folder), model=str(model), **settings)


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "analysis"
    return folder, analyze(options(folder, model), "the command")


def without_launch(folder):
    """The results in a folder, without dates, hardware and commands, which are those of a launch."""
    results = json.loads((folder / "analysis.json").read_text())
    del results["environment"], results["settings"]["output_dir"]
    return results | {"measurements": pq.read_table(folder / "measurements.parquet").to_pylist()}


def split_numbers(results):
    """The results with None for each float, and the floats."""
    numbers = []
    return json.loads(json.dumps(results), parse_float=lambda text: numbers.append(float(text))), numbers


def test_files_and_statements(finished, model):
    folder, results = finished
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "batches", "settings.json"])
    for name in FIGURE_NAMES:
        with Image.open(folder / name) as figure:
            assert min(figure.size) > 100 and len(np.unique(np.asarray(figure.convert("L")))) > 20
    table = pq.read_table(folder / "measurements.parquet").to_pylist()
    assert len({row["image_id"] for row in table}) == results["dataset"]["num_images"] == 3
    assert {row["budget"] for row in results["verdicts"]} == {"6", "0.25"}
    scores = {row["score"] for row in results["where"] if row["control"] == "own"}
    assert {"dot", "cosine", "context", "norm", "class_attention", "attention_seg", "attention_words"} <= scores
    assert {"gradient", "leave_one_out_logits", "leave_one_out_iou"} <= scores
    controls = {row["control"] for row in results["where"] if row["score"] == "dot"}
    assert controls == {"own", "other object", "other image", "empty", "moved mask"}
    # The mean in the report is the mean of the rows.
    values = [r["value"] for r in table if (r["quantity"], r["of"], r["against"]) == ("auroc", "dot", "own")]
    [row] = [row for row in results["where"] if (row["score"], row["control"]) == ("dot", "own")]
    assert row["auroc"]["value"] == pytest.approx(np.mean(values)) and len(values) > 1
    page = (folder / "report.md").read_text()
    # As an evaluation has it: a budget, and a ratio of 16 tokens.
    assert {line.split(" | ")[0] for line in page.splitlines() if "| random |" in line} == {"| 6", "| 4 (1/4)"}
    assert "| 16 | unpruned |" in page
    assert page.index("## Does the reversed ranking hold?") < page.index("## 1.") and "the command" in page
    assert "nan" not in page and "None" not in page


def test_unpruned_masks_are_those_of_an_evaluation(finished, model, tmp_path):
    args = EvaluationArguments(output_dir=str(tmp_path / "out"), model=str(model), methods=["none"], max_images=3)
    [group] = evaluate(args)["groups"]
    [ours] = [row for row in finished[1]["ablation"] if row["selection"] == "unpruned"]
    for metric in ("giou", "ciou"):
        assert ours[metric]["value"] == pytest.approx(group["metrics"][metric], abs=1e-12)


@pytest.mark.slow
def test_going_on_after_an_interruption(finished, model, tmp_path, monkeypatch):
    from transformers_litelvlm.analysis import runner

    measure, calls = runner.Analyst.measure, []

    def interrupted(self, index, sample):
        calls.append(index)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(self, index, sample)

    monkeypatch.setattr(runner.Analyst, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyze(options(tmp_path / "analysis", model))
    assert not (tmp_path / "analysis" / "analysis.json").exists()
    analyze(options(tmp_path / "analysis", model))
    assert calls == [0, 1, 1, 2]  # the first image is not measured again
    assert without_launch(finished[0]) == without_launch(tmp_path / "analysis")
    with pytest.raises(ValueError, match="coverage: there 0.3, now 0.5"):
        analyze(options(tmp_path / "analysis", model, coverage=0.5))


@pytest.mark.slow
def test_two_processes_give_the_same(finished, model, tmp_path):
    words = ["--output-dir", str(tmp_path / "analysis"), "--model", str(model), "--budgets", "6", "0.25"]
    words += [
        "--max-images",
        "3",
        "--batch-size",
        "1",
        "--examples",
        "1",
        "--seeds",
        "0",
        "1",
        "--leave-one-out",
        "9",
        "--processes",
        "2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "transformers_litelvlm_command", "analyze", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "analysis" / "report.md").read_text()
    # On some processors, another process adds numbers in another order: correlations differed by 1e-7.
    contents, numbers = split_numbers(without_launch(tmp_path / "analysis"))
    expected, expected_numbers = split_numbers(without_launch(finished[0]))
    assert contents == expected and numbers == pytest.approx(expected_numbers, rel=1e-6, abs=1e-6)


def test_masks_of_nothing_are_left_out(model, tmp_path):
    """A sentence without a referent, and one whose referent is cropped away, say nothing about its tokens."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    masks = {"nothing": np.zeros((32, 96), np.uint8), "cropped": np.zeros((32, 96), np.uint8)}
    masks["cropped"][:, :10] = 255
    rows = []
    for name, mask in masks.items():
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
        paths = {"image": str(tmp_path / "wide.png"), "mask": str(tmp_path / f"{name}.png")}
        rows.append({**paths, "sentence": "a dog"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    args = options(tmp_path / "out", model, dataset="rows", split="train", source=str(tmp_path / "rows.jsonl"))
    results = analyze(args)
    assert results["dataset"]["num_sentences"] == 1
    assert not [row for row in results["where"] if row["control"] == "own"]
    assert results["ablation"][0]["num_sentences"] == 1


def test_a_target_that_is_ignored_as_a_whole_is_none(model, tmp_path):
    """Nothing of it counts, and the report ended in a division by 0."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    whole = {"size": [32, 32], "counts": [0, 1024]}
    row = {"image": "image.png", "mask": whole, "ignore": whole, "sentence": "a dog"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="has no sentence with a mask"):
        analyze(options(tmp_path / "out", model, dataset="rows", source=str(tmp_path / "rows.jsonl")))


def test_budgets_that_leave_no_choice(model, tmp_path):
    """All choices were all tokens, and the report called them choices of so many tokens as were asked for."""
    with pytest.raises(ValueError, match=r"`budgets` \[999\] leave no choice: the model has \d+ visual tokens"):
        analyze(options(tmp_path / "out", model, budgets=[6, 999]))
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_used_is_named(model, tmp_path):
    """By the means of an evaluation."""
    Image.new("RGB", (32, 32)).save(tmp_path / "square.png")
    row = {"image": str(tmp_path / "square.png"), "mask": {"size": [2, 2], "counts": [4]}, "sentence": "a dog"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    args = options(tmp_path / "out", model, dataset="rows", split="train", source=str(tmp_path / "rows.jsonl"))
    with pytest.raises(
        ValueError, match=r"^Image .*square\.png: a mask has shape \(2, 2\), the picture \(32, 32\)\.$"
    ):
        analyze(args)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coverage": 0.0}, "`coverage` must be above 0 and at most 1, got 0.0"),
        ({"leave_one_out": -1}, "`leave_one_out` must be an integer of at least 0, got -1"),
        ({"budgets": []}, "`budgets` is empty"),
        ({"budgets": [0]}, "`budgets` must be integers of at least 1 or fractions below 1, got 0"),
        ({"seeds": []}, "`seeds` must be one or more"),
        ({"max_images": 0}, "`max_images` must be an integer of at least 1, got 0"),
    ],
)
def test_bad_options(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        AnalysisArguments(output_dir=str(tmp_path), **changes)


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    assert main(["analyze", "--output-dir", str(tmp_path / "out"), "--coverage", "2"]) == 2
    assert "litelvlm: error: `coverage` must be above 0 and at most 1, got 2.0." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sentences_may_have_dollars_and_every_line_is_explained(tmp_path):
    """Two dollars were read as a formula, of which the figure could not be drawn after all was measured."""
    where = [{"score": "dot", "control": "own", "auroc": {"value": 0.5, "low": 0.4, "high": 0.6}}]
    found = {"value": 0.5, "low": 0.4, "high": 0.6}
    ablation = [
        {"selection": name, "budget": None if name == "unpruned" else "6", "giou": found}
        for name in ("unpruned", "random")
    ]
    results = {"where": where, "agreement": [], "ablation": ablation, "settings": {"coverage": 0.3}}
    mask = np.zeros((8, 8), bool)
    mask[2:5, 2:5] = True
    example = {"image": Image.new("RGB", (8, 8)), "sentence": r"the $\frac$ sign", "mask": mask, "grid": [2, 2]}
    example |= {"region": [0, 0, 8, 8], "maps": {"dot": [0.0, 1.0, 2.0, 3.0]}, "kept": [1]}
    figures.draw_figures(results, [example], {None: "16", "6": "6"}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FIGURE_NAMES)
    [axes] = figures._selections(ablation, {"6": "6"}).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["unpruned"]
