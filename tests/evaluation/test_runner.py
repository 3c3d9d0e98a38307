"""Whole evaluations of the embedded checkpoint: what comes out, and what it does not depend on."""

import dataclasses
import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from tests.support.small_evaluations import assert_same, options, records, results
from tests.support.third_party import method_code
from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.data.masks import encode_mask
from transformers_litelvlm.data.refshapes import generate_scene
from transformers_litelvlm.data.samples import UnreadableImageError
from transformers_litelvlm.evaluation import runner
from transformers_litelvlm.evaluation.provenance import typed_command, without_secrets
from transformers_litelvlm.evaluation.records import OtherConfigurationError
from transformers_litelvlm.evaluation.report import FLAGS
from transformers_litelvlm.evaluation.runner import evaluate
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation
from transformers_litelvlm.pruning import registry


SENTENCES = [expression.sentence for index in range(6) for expression in generate_scene("test", index).expressions]


def test_results_follow_from_the_records(reference):
    content, table = results(reference), records(reference).to_pandas()
    assert [run["run_id"] for run in content["runs"]] == [
        "none", "litelvlm@16", "random@16#0", "random@16#1", "random@16#2",
    ]  # fmt: skip
    for run in content["runs"]:
        rows = table[table["run_id"] == run["run_id"]]
        assert run["metrics"]["giou"] == pytest.approx(rows["iou"].mean(), abs=1e-12)
        assert run["metrics"]["ciou"] == pytest.approx(rows["intersection"].sum() / rows["union"].sum(), abs=1e-12)
        assert run["metrics"]["precision@0.7"] == pytest.approx((rows["iou"] >= 0.7).mean(), abs=1e-12)
        assert run["num_kept_mean"] == (144 if run["method"] == "none" else 16)
        assert run["retention"]["giou"] == run["metrics"]["giou"] / content["runs"][0]["metrics"]["giou"]
        assert run["timings_ms"]["prefill"] > 0
    random = content["groups"][2]
    assert random["num_seeds"] == 3
    assert random["metrics"]["giou"] == pytest.approx(
        np.mean([run["metrics"]["giou"] for run in content["runs"][2:]]), abs=1e-12
    )
    assert content["dataset"]["num_images"] == 6
    assert content["dataset"]["num_expressions"] == len(table) / 5 == len(SENTENCES)
    assert content["dataset"]["counts_match"] is False  # six of a thousand
    assert [(entry["method"], entry["baseline"], entry["metric"]) for entry in content["comparisons"]] == [
        ("litelvlm", "random", "giou"),
        ("litelvlm", "random", "ciou"),
    ]


def test_the_table_says_what_was_kept_where_the_image_decides_that(tmp_path):
    evaluate(options(tmp_path, methods=["trim:adaptive=true", "random"], budgets=[16], max_images=1))
    page = (tmp_path / "results.md").read_text()
    [kept] = re.findall(r"^\| 16, kept ([\d.]+) \| trim:adaptive=true \|", page, re.MULTILINE)
    assert float(kept) != 16 and "| 16 | random |" in page


def test_the_table_says_how_many_tokens_a_fraction_is(tmp_path):
    """Also that an unpruned model selects nothing, and what a flag means."""
    evaluate(options(tmp_path, methods=["none", "litelvlm", "random"], budgets=[0.3333, 0.16, 20], max_images=2))
    text = (tmp_path / "results.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    scores, differences = [row for row in rows if len(row) == 11], [row for row in rows if len(row) == 6]
    assert [row[0] for row in scores] == ["| tokens", "| ---", "| 144", *["| 48 (1/3)", "| 23 (0.16)", "| 20"] * 2]
    assert {row[0] for row in differences[1:]} == {"| 48 (1/3)", "| 23 (0.16)", "| 20"}
    assert scores[2][-2] == "-" and all(float(row[-2]) > 0 for row in scores[3:])
    flagged = sum("empty_prediction" in flags for flags in records(tmp_path)["flags"].to_pylist())
    assert flagged > 0
    assert "retained |" in text and "no run of `none`" not in text
    ours = (Path(__file__).parents[2] / "docs" / "results_methods.md").read_text()  # laid out alike
    for head in (line for line in text.splitlines() if line.startswith("| tokens |")):
        assert head in ours
    assert "| 100.0% | - |" in ours
    assert FLAGS["empty_prediction"] in " ".join(ours.split())
    assert (
        f"{flagged} records (a record is one sentence in one of 13 runs) are flagged `empty_prediction`: the predicted"
        " mask is empty, which counts as IoU 0" in text
    )


def test_the_progress_bar_has_a_mean_of_all_seeds(tmp_path, capsys):
    """So that there is room for other methods."""
    evaluate(options(tmp_path, methods=["random", "litelvlm"], budgets=[16], seeds=[0, 1, 2], max_images=1))
    content = results(tmp_path)
    random, litelvlm = (group["metrics"]["giou"] for group in content["groups"])
    assert f"gIoU random@16 {random:.3f}, litelvlm@16 {litelvlm:.3f}]" in capsys.readouterr().err


def test_the_table_says_that_the_unpruned_model_is_missing(tmp_path):
    evaluate(options(tmp_path, methods=["uniform"], budgets=[20], max_images=1))
    text = (tmp_path / "results.md").read_text()
    assert "retained |" not in text and "unpruned gIoU is not known: there was no run of `none`." in text
    head, line, *rows = (line.count("|") for line in text.splitlines() if line.startswith("|"))
    assert {head, line, *rows} == {head}


def test_every_sentence_of_every_scene_is_asked_once_per_run(reference):
    table = records(reference).to_pandas()
    for _, rows in table.groupby("run_id"):
        assert rows["sentence"].tolist() == SENTENCES
        assert rows["expression_id"].is_unique


def test_the_batch_size_changes_nothing(reference, tmp_path):
    evaluate(options(tmp_path, batch_size=5))
    assert_same(tmp_path, reference)


def test_a_method_of_a_file_is_recorded_with_its_file(tmp_path, monkeypatch):
    """The printed command runs, and records of another version of the file are not mixed with new ones."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(method_code("of_mine"))
    words = ["evaluate", "--output-dir", "out", "--import", "mine.py", "--max-images", "2", "--budgets", "16"]
    words += ["--methods", "of_mine:start=2", "litelvlm", "--processes", "1"]
    assert main(words) == 0
    content, page = results(tmp_path / "out"), (tmp_path / "out" / "results.md").read_text()
    assert content["settings"]["imports"] == ["mine.py"]
    assert shlex.split(content["environment"]["command"])[1:] == words and content["environment"]["command"] in page
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert content["environment"]["third_party_methods"] == {
        "of_mine": {"provided_by": "--import mine.py", "sha256": digest}
    }
    assert f"Not bundled: `of_mine`, from `--import mine.py`, SHA-256 of its file {digest[:16]}." in page
    assert {run["method"] for run in content["runs"]} == {"of_mine", "litelvlm"}
    again = options(tmp_path / "out", max_images=2, batch_size=8, methods=["of_mine:start=2", "litelvlm"])
    evaluate(dataclasses.replace(again, imports=[str(file)]))  # nothing but the path has changed
    file.write_text(file.read_text() + "# edited")
    with pytest.raises(OtherConfigurationError, match="third_party_methods"):
        evaluate(dataclasses.replace(again, imports=[str(file)]))


def test_a_run_alone_gives_what_it_gives_in_a_sweep(reference, tmp_path):
    evaluate(options(tmp_path, methods=["random"], seeds=[1]))
    alone, swept = records(tmp_path), records(reference)
    assert alone.equals(swept.filter([row == "random@16#1" for row in swept["run_id"].to_pylist()]))
    assert results(tmp_path)["runs"][0]["retention"] is None  # there is no unpruned run to compare with


def test_goes_on_where_it_was_stopped(reference, tmp_path, monkeypatch):
    measured = []
    measure = runner.measure_batch

    def stops_at_the_second(samples, *rest):
        if len(measured) == 1:
            measured.append(None)
            raise KeyboardInterrupt
        measured.append([index for index, _ in samples])
        return measure(samples, *rest)

    monkeypatch.setattr(runner, "measure_batch", stops_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(options(tmp_path))
    assert not (tmp_path / "results.json").exists()
    evaluate(options(tmp_path))
    assert measured == [[0, 1], None, [2, 3], [4, 5]]
    assert_same(tmp_path, reference)


def test_no_space_left(reference, tmp_path, monkeypatch):
    write = Path.write_text
    writes = []

    def full_disk(self, *args, **kwargs):
        writes.append(self.name)
        if len(writes) == 3:  # after the settings and a batch
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left for the results in .* start the same evaluation again"):
        evaluate(options(tmp_path))
    assert [path.name for path in (tmp_path / "batches").iterdir()] == ["000000.json"]
    evaluate(options(tmp_path))
    assert_same(tmp_path, reference)


def test_no_space_for_the_report(reference, tmp_path, monkeypatch):
    write = Path.write_text

    def full_disk(self, *args, **kwargs):
        if self.name == "results.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_disk)
        with pytest.raises(OSError, match="No space left for the results in"):
            evaluate(options(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batches", "settings.json"]  # all of it or nothing
    measured = []
    monkeypatch.setattr(runner, "measure_batch", lambda *args: measured.append(args))
    evaluate(options(tmp_path))
    assert not measured  # every batch was there
    assert_same(tmp_path, reference)


def test_malicious_references_are_refused(tmp_path, capsys):
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "train2014").mkdir()
    program = b"cbuiltins\neval\n(S'open(\"" + str(tmp_path / "ran").encode() + b'", "w")\'\ntR.'
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(program)
    words = ["--dataset", "refcoco", "--split", "val", "--source", str(tmp_path), "--processes", "1"]
    assert main(["evaluate", "--output-dir", str(tmp_path / "results"), *words]) == 2
    *_, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("litelvlm: error: ") and "refused: it asks for `builtins.eval`" in error
    assert not (tmp_path / "ran").exists() and not (tmp_path / "results").exists()


def test_refuses_batches_that_were_changed(reference, tmp_path):
    folder = shutil.copytree(reference, tmp_path / "results")
    path = folder / "batches" / "000001.json"
    batch = json.loads(path.read_text())
    batch["rows"][0][6] = 7
    path.write_text(json.dumps(batch))
    before = (folder / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"000001\.json is missing or damaged \(`iou` of record 0 is 7\)"):
        evaluate(options(folder))
    assert (folder / "results.json").read_bytes() == before
    path.unlink()  # the way out
    evaluate(options(folder))
    assert_same(folder, reference)


def test_an_output_that_cannot_be_written_is_named_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "load_segmenter", lambda *args: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        assert main(["evaluate", "--output-dir", str(folder), "--processes", "1"]) == 2
        assert "cannot be written: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_fault_of_ours_is_no_bad_input(tmp_path, monkeypatch, capsys):
    def fails(*args):
        raise TypeError("ours")

    monkeypatch.setattr(runner, "load_segmenter", fails)
    assert main(["evaluate", "--output-dir", str(tmp_path / "out"), "--processes", "1"]) == 1
    assert "Please report it" in capsys.readouterr().err


@pytest.mark.slow  # the code of one process is tested above
def test_the_exit_code_of_several_processes(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    root = Path(__file__).parents[2]
    words = ["--output-dir", str(tmp_path / "out"), "--model", str(tmp_path / "model"), "--processes", "2"]
    run = subprocess.run(
        [sys.executable, "-m", "transformers_litelvlm_command", "evaluate", *words],
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "Please report it" not in run.stderr
    assert any(line.startswith("error: ") for line in run.stderr.splitlines())
    assert "torchao" not in run.stderr.lower() and "cpp extensions" not in run.stderr
    assert run.stderr.endswith("litelvlm: error: the evaluation was not done; its own message is above\n")


def test_refuses_the_folder_of_another_configuration(reference):
    before = (reference / "results.json").read_bytes()
    with pytest.raises(OtherConfigurationError, match=r"budgets: there \[16\], now \[32\]"):
        evaluate(options(reference, budgets=[32]))
    assert (reference / "results.json").read_bytes() == before


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantized_weights(reference, tmp_path, name):
    pytest.importorskip("torchao" if name == "int8" else "bitsandbytes")
    args = options(tmp_path, methods=["none", "litelvlm"], max_images=1, quantization=name)
    evaluate(args)
    content = results(tmp_path)
    assert content["settings"]["quantization"] == name and content["model"]["dtype"] == f"float32, {name} weights"
    ours, plain = (records(folder).to_pandas() for folder in (tmp_path, reference))
    plain = plain[plain["run_id"].isin(["none", "litelvlm@16"]) & (plain["image_id"] == ours["image_id"][0])]
    assert len(ours) == len(plain) and not np.array_equal(ours["iou"], plain["iou"]), "nothing was quantized"
    # Of the 12, four bits may lose a sentence or two, and CPUs differ in which; all masks lost would be 0.41.
    assert np.abs(ours["iou"].to_numpy() - plain["iou"].to_numpy()).mean() < 0.2
    with pytest.raises(OtherConfigurationError, match="quantization"):
        evaluate(dataclasses.replace(args, quantization="none"))


def test_refuses_other_weights_under_the_same_path(tmp_path):
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "results"
    model = AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT)
    model.save_pretrained(checkpoint)
    AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT).save_pretrained(checkpoint)
    evaluate(options(folder, model=str(checkpoint), max_images=1, methods=["none"]))
    model.lm_head.weight.data += 1
    model.save_pretrained(checkpoint)
    with pytest.raises(OtherConfigurationError, match="weights: there"):
        evaluate(options(folder, model=str(checkpoint), max_images=1, methods=["none"]))


def test_refuses_a_checkpoint_that_lacks_weights(tmp_path):
    checkpoint = Path(shutil.copytree(DEFAULT_CHECKPOINT, tmp_path / "checkpoint"))
    weights = load_file(checkpoint / "model.safetensors")
    del weights["text_hidden_fcs.0.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 parameters, the first is text_hidden_fcs\.0\.weight"):
        evaluate(options(tmp_path / "results", model=str(checkpoint)))


def test_what_cannot_be_run_is_named_and_the_sweep_goes_on(tmp_path):
    evaluate(options(tmp_path, methods=["tome", "uniform"], budgets=[16, 144], max_images=1))
    content = results(tmp_path)
    assert [run["run_id"] for run in content["runs"]] == ["uniform@16"]
    reasons = {entry["run_id"]: entry["reason"] for entry in content["skipped"]}
    assert reasons.keys() == {"tome@16", "tome@144", "uniform@144"}
    assert "not reachable" in reasons["tome@16"] and "18 to 144" in reasons["tome@16"]
    assert "unpruned" in reasons["uniform@144"]
    assert "Left out: tome@16" in (tmp_path / "results.md").read_text()


def test_glamm_asks_at_most_three_sentences_and_is_seeded(tmp_path):
    for name in ("first", "second"):
        evaluate(options(tmp_path / name, protocol="glamm", methods=["none", "litelvlm"], seeds=[0, 1]))
    assert_same(tmp_path / "first", tmp_path / "second")
    table = records(tmp_path / "first").to_pandas()
    assert set(table["run_id"]) == {"none#0", "none#1", "litelvlm@16#0", "litelvlm@16#1"}
    by_run = {run_id: rows["expression_id"].tolist() for run_id, rows in table.groupby("run_id")}
    assert by_run["none#0"] == by_run["litelvlm@16#0"] != by_run["none#1"]
    assert (table[table["run_id"] == "none#0"].groupby("image_id").size() == 3).all()
    content = results(tmp_path / "first")
    assert [group["num_seeds"] for group in content["groups"]] == [2, 2]
    assert content["dataset"]["num_expressions"] == 18


@pytest.fixture
def own_data(tmp_path) -> Path:
    """Six scenes as files, with their rows in a JSON Lines file."""
    lines = []
    for index in range(6):
        scene = generate_scene("test", index)
        Image.fromarray(scene.image).save(tmp_path / f"{index}.png")
        expressions = [{"text": e.sentence, "mask": encode_mask(scene.mask(e.target_id))} for e in scene.expressions]
        lines.append(json.dumps({"image": str(tmp_path / f"{index}.png"), "expressions": expressions}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_missing_picture_stops_or_counts(reference, own_data):
    picture = own_data / "3.png"
    hidden = picture.rename(own_data / "hidden")
    stopping = options(own_data / "results", dataset="rows", source=str(own_data / "rows.jsonl"), batch_size=1)
    with pytest.raises(UnreadableImageError, match=r"image .*3\.png cannot be read.*3\.png does not exist"):
        evaluate(stopping)
    assert len(list((own_data / "results" / "batches").iterdir())) == 3

    # The same folder: what to do on trouble is no setting of the results.
    evaluate(dataclasses.replace(stopping, on_unreadable="continue"))
    table, whole = records(own_data / "results").to_pandas(), records(reference).to_pandas()
    assert len(table) == len(whole)
    is_missing = (whole["image_id"] == "3").to_numpy()
    assert table["flags"].map(list).eq([["unreadable_image"]] * len(table))[is_missing].all()
    columns = ["run_id", "sentence", "intersection", "union", "iou"]
    assert table.loc[~is_missing, columns].equals(whole.loc[~is_missing, columns])
    area = {
        e.sentence: generate_scene("test", 3).mask(e.target_id).sum() for e in generate_scene("test", 3).expressions
    }
    missing = table[is_missing]
    assert (missing["iou"] == 0).all() and (missing["intersection"] == 0).all()
    assert missing["union"].tolist() == [area[sentence] for sentence in missing["sentence"]]
    content = results(own_data / "results")
    assert content["runs"][0]["metrics"]["giou"] == pytest.approx(table[table["run_id"] == "none"]["iou"].mean())
    assert content["dataset"]["flags"]["unreadable_image"] == is_missing.sum()

    # And where the picture is back before going on, nothing is missing.
    hidden.rename(picture)
    evaluate(dataclasses.replace(stopping, output_dir=str(own_data / "again")))
    assert records(own_data / "again").to_pandas()[columns].equals(whole[columns])


SECRET_SOURCE = "https://me:pass-word@example.org/rows.jsonl?token=abc"


def test_the_command_is_what_was_typed(tmp_path, own_data, capsys):
    folder = str(tmp_path / "out dir")
    words = ["evaluate", "--output-dir", folder, "--max-images", "1", "--methods", "litelvlm:context_share=0.5"]
    assert main([*words, "--budgets", "16", "--processes", "1"]) == 0
    command = results(Path(folder))["environment"]["command"]
    assert command == f"litelvlm {shlex.join(words)} --budgets 16 --processes 1" and f"'{folder}'" in command
    assert f"```bash\n{command}\n```" in (tmp_path / "out dir" / "results.md").read_text()
    # In Python nothing was typed.
    assert evaluate(options(tmp_path / "api", max_images=1, methods=["none"]))["environment"]["command"] is None


def test_no_secret_is_written(monkeypatch):
    monkeypatch.delenv("LITELVLM_COMMAND", raising=False)
    words = ["--source", SECRET_SOURCE, "--model", "hf_abcdefghijklmnop/x", "--methods", "litelvlm:context_share=0.5"]
    command = typed_command("litelvlm evaluate", words)
    assert not any(secret in command for secret in ("pass-word", "me:", "abc", "abcdefgh"))
    assert "https://***@example.org/rows.jsonl?token=***" in command and "hf_***/x" in command
    assert "litelvlm:context_share=0.5" in command
    assert without_secrets(["plain", 3, None, SECRET_SOURCE])[:3] == ["plain", 3, None]
    # Ids, paths and options that only look like it stay.
    for text in ("jxu124/refcoco-benchmark", "/data/hf_home/x", "litelvlm:seed=5,similarity=dot", "s3://bucket/a@b"):
        assert without_secrets(text) == text


def test_a_secret_source_is_not_in_the_results(own_data, tmp_path, monkeypatch):
    split = runner.open_split(options(tmp_path, dataset="rows", source=str(own_data / "rows.jsonl")))
    monkeypatch.setattr(runner, "open_split", lambda args: dataclasses.replace(split, source=SECRET_SOURCE))
    evaluate(options(tmp_path / "out", dataset="rows", source=SECRET_SOURCE, max_images=1, methods=["none"]))
    for path in (tmp_path / "out").rglob("*.*"):
        if path.suffix in (".json", ".md"):
            assert "pass-word" not in path.read_text(), path


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text": "  "}, "Image .*1.png: .*expression"),
        ({"mask": {"size": [600, 600], "counts": ""}}, "Image .*1.png: `counts` of a run-length encoding is damaged"),
        (
            {"mask": {"size": [2, 2], "counts": [4]}},
            r"Image .*1.png: a mask has shape \(2, 2\), the picture \(144, 144\)",
        ),
        ({"mask": [[0, 0, 1e9, 0, 1e9, 1e9]]}, "Image .*1.png: A polygon lies outside the image"),
    ],
    ids=["sentence", "run lengths", "size", "polygon"],
)
def test_a_row_that_cannot_be_used_stops_or_counts(own_data, change, message):
    rows = [json.loads(line) for line in (own_data / "rows.jsonl").read_text().splitlines()[:3]]
    rows[1]["expressions"][0] |= change
    # Columns of a data set have one type: what cannot be told from the others is a file of its own.
    (own_data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stopping = options(own_data / "results", dataset="rows", source=str(own_data / "rows.jsonl"), batch_size=1)
    with pytest.raises(ValueError, match=message):
        evaluate(stopping)
    results = evaluate(dataclasses.replace(stopping, on_unreadable="continue"))
    assert results["dataset"]["num_images"] == 3
    table = records(own_data / "results").to_pandas()
    flagged = table["flags"].map(list).eq([["unreadable_image"]] * len(table))
    paths = [str(row["image"]) for row in rows]
    assert set(table["image_id"][flagged]) == {paths[1]} and set(table["image_id"]) == set(paths)
    assert (table["iou"][flagged] == 0).all() and (table["iou"][~flagged] > 0).any()
