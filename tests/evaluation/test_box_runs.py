"""Evaluation of models that answer with boxes: accuracy of the boxes, and that of the masks."""

import json

import pytest

from tests.support.box_models import answer_with, noise, save_tiny_sam
from tests.support.original_checkpoints import SHARED
from tests.support.small_evaluations import records, results
from tests.support.tiny_qwen2_5_vl import QWEN2_5_VL
from tests.support.tiny_qwen3_vl import QWEN3_VL
from transformers_litelvlm import Qwen2_5_VLLite, Qwen3_VLLite
from transformers_litelvlm.calibration.arguments import CalibrationArguments
from transformers_litelvlm.calibration.runner import calibrate
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.runner import evaluate


CHATS = {"qwen2_5": (QWEN2_5_VL, Qwen2_5_VLLite), "qwen3": (QWEN3_VL, Qwen3_VLLite)}
SETTINGS = {"methods": ["none", "uniform"], "budgets": [0.25]}


def written(box, name):
    """The answer of a model to a box in fractions of the sides: thousandths, or pixels of the resized picture."""

    def answer(width, height):
        units = (1000, 1000) if name == "qwen3" else (width, height)
        return json.dumps([{"bbox_2d": [round(value * units[axis % 2]) for axis, value in enumerate(box)]}])

    return answer


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the miniature data sets are not part of the project")
@pytest.mark.parametrize("name", CHATS)
def test_true_boxes_have_an_accuracy_of_one(tmp_path, monkeypatch, capsys, name):
    """A stand-in that answers with the boxes of the annotations, for 90 sentences about 47 photos, 5 about nothing."""
    tiny, chat_class = CHATS[name]
    tiny.save_stock_checkpoint(tmp_path / "chat")
    folder, rows, answers = SHARED / "data" / "res", [], {}
    content = json.loads((folder / "annotations.json").read_text())
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in content["images"]}
    for sample in content["samples"]:
        sentences = [f"{sentence} [{sample['id']}]" for sentence in sample["sentences"]]  # no two are the same
        image = str(folder / "images" / sample["file_name"])
        rows.append({"image": image, "sentences": sentences, "mask": sample["mask"]})
        if sample["bbox"] is not None:
            (left, top, width, height), size = sample["bbox"], sizes[sample["file_name"]]
            box = [value / size[axis % 2] for axis, value in enumerate((left, top, left + width, top + height))]
            answers |= {f"[{sample['id']}]": written(box, name)}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    answer_with(monkeypatch, chat_class, tiny.tiny_processor(), answers)
    options = ["--model", tmp_path / "chat", "--mask-model", save_tiny_sam(tmp_path / "sam"), "--dataset", "rows"]
    options += ["--source", tmp_path / "rows.json", "--split", "all", "--output-dir", tmp_path / "out"]
    options += ["--methods", "none", "uniform", "--budgets", "0.25", "--processes", "1"]
    assert main(["evaluate", *map(str, options)]) == 0
    found = results(tmp_path / "out")
    assert found["dataset"]["num_expressions"] == 90 and found["dataset"]["flags"]["empty_target"] == 10
    assert [group["metrics"]["box_accuracy@0.5"] for group in found["groups"]] == [1.0, 1.0]
    assert "| box accuracy |" in capsys.readouterr().out


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    QWEN3_VL.save_stock_checkpoint(folder / "chat")
    return {"model": str(folder / "chat"), "mask_model": save_tiny_sam(folder / "sam")}


def sentences_of(answers):
    return {f"Locate {sentence},": text for sentence, text in answers.items()}


def test_accuracy_of_boxes(tmp_path, monkeypatch, checkpoints):
    """Worked out by hand, for a target of 10 x 10 pixels in a picture of 100 x 50."""
    noise(100, 50).save(tmp_path / "scene.png")
    polygon = [[20, 10, 30, 10, 30, 20, 20, 20]]
    sentences = {
        "the first": '{"bbox_2d": [200, 200, 300, 400]}',  # the target
        "the second": '{"bbox_2d": [200, 200, 340, 400]}',  # 100 of 140 pixels
        "the third": '{"bbox_2d": [200, 200, 450, 400]}',  # 100 of 250
        "the fourth": "[]",
        "the fifth": "Hm.",
        "two of them": '[{"bbox_2d": [200, 200, 250, 400]}, {"bbox_2d": [250, 200, 300, 400]}]',
    }
    nothing = {"the unicorn": "none", "the dragon": '{"bbox_2d": [0, 0, 500, 500]}'}
    rows = [
        {"image": "scene.png", "sentences": list(sentences), "segmentation": polygon},
        {"image": "scene.png", "sentences": list(nothing), "mask": None},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    answers = sentences_of(sentences) | sentences_of(nothing)
    answer_with(monkeypatch, Qwen3_VLLite, QWEN3_VL.tiny_processor(), answers)
    data = {"dataset": "rows", "source": str(tmp_path / "rows.json"), "split": "all"}
    content = evaluate(EvaluationArguments(output_dir=str(tmp_path / "out"), **checkpoints, **data, **SETTINGS))
    table = records(tmp_path / "out").to_pylist()
    found = {row["sentence"]: row["box_iou"] for row in table if row["run_id"] == "none"}
    expected = {"the first": 1, "the second": 100 / 140, "the third": 0.4, "the fourth": 0, "the fifth": 0}
    assert found == pytest.approx({**expected, "two of them": 1, "the unicorn": 1, "the dragon": 0})
    assert content["groups"][0]["metrics"]["box_accuracy@0.5"] == pytest.approx(4 / 8)
    # The same boxes, whatever is pruned.
    pruned = {row["sentence"]: row["box_iou"] for row in table if row["run_id"] == "uniform@0.25"}
    assert pruned == found


def test_a_calibration_with_boxes(tmp_path, monkeypatch, checkpoints):
    """The records had a number more than expected: "damaged", said the command after its first batch."""
    noise(100, 50).save(tmp_path / "scene.png")
    polygon = [[20, 10, 30, 10, 30, 20, 20, 20]]
    (tmp_path / "data").mkdir()
    for number, split in enumerate(("validation", "test")):
        row = {"image": str(tmp_path / "scene.png"), "sentence": f"thing {number}", "segmentation": polygon}
        (tmp_path / "data" / f"{split}.jsonl").write_text(json.dumps(row))
    answers = sentences_of({f"thing {number}": '{"bbox_2d": [200, 200, 300, 400]}' for number in range(2)})
    answer_with(monkeypatch, Qwen3_VLLite, QWEN3_VL.tiny_processor(), answers)
    data = {"dataset": "rows", "source": str(tmp_path / "data")}
    settings = {"methods": ["uniform"], "budgets": [0.25, 0.5, 0.75], "seeds": [0], "metric": "box_accuracy@0.5"}
    args = CalibrationArguments(
        output_dir=str(tmp_path / "out"), layouts=["checkpoint"], **checkpoints, **data, **settings
    )
    [found] = calibrate(args)["presets"]["fast"]["rounds"]
    assert {name: score["value"] for name, score in found["scores"].items()} == {
        "uniform": 1.0,
        "litelvlm": 1.0,
        "random": 1.0,
    }


def test_a_damaged_picture_counts_as_wrong(tmp_path, monkeypatch, checkpoints):
    (tmp_path / "scene.png").write_bytes(b"no picture")
    rows = [{"image": "scene.png", "sentences": ["the dog"], "segmentation": [[20, 10, 30, 10, 30, 20]]}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    answer_with(monkeypatch, Qwen3_VLLite, QWEN3_VL.tiny_processor(), {})
    data = {"dataset": "rows", "source": str(tmp_path / "rows.json"), "split": "all", "on_unreadable": "continue"}
    evaluate(EvaluationArguments(output_dir=str(tmp_path / "out"), **checkpoints, **data, **SETTINGS))
    [row, _] = records(tmp_path / "out").to_pylist()
    assert (row["iou"], row["box_iou"], row["flags"]) == (0, 0, ["unreadable_image"])
