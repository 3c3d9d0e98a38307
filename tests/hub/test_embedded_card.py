"""The card of the embedded checkpoint: measured by `litelvlm evaluate`, valid, and as the package computes it."""

import dataclasses
import json
import re

import huggingface_hub
import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils._http import default_client_factory
from transformers import AutoConfig

from tests.support.fake_hub import FakeHub
from tests.support.sample_results import sample_results, write_results
from tests.support.tiny_unipixel import tiny_checkpoint
from tests.support.tiny_videos import write_referring
from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.hub.measured import BEGIN, END


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return ModelCard.load(f"{DEFAULT_CHECKPOINT}/README.md")


def by_setting(results: list[EvalResult]) -> dict:
    """(method, options, budget) -> gIoU and its interval."""

    def budget_of(args: dict) -> int | None:
        ratio = args.get("retention_ratio")
        return args.get("budget") if ratio is None else round(144 * ratio)

    return {
        (r.metric_args["method"], json.dumps(r.metric_args.get("method_options")), budget_of(r.metric_args)): (
            r.metric_value,
            r.metric_args["interval_95"],
        )
        for r in results
        if r.metric_type == "giou"
    }


def test_every_preset_shows_what_was_measured(card):
    region = card.text[card.text.index(BEGIN) : card.text.index(END)]
    assert "not measured" not in region and "662 sentences about 128 images, protocol `all`" in region
    measured = by_setting(card.data.eval_results)
    pruning = AutoConfig.from_pretrained(DEFAULT_CHECKPOINT).pruning_config
    for preset in ("fast", "balanced", "accurate"):
        budget = pruning.apply_preset(preset).resolve(144)
        value, (low, high) = measured["litelvlm", '{"context_share": 1.0}', budget]
        assert f"| `{preset}` | {budget} of 144 | {value:.3f} [{low:.3f}, {high:.3f}] |" in region
        assert low < value < high
    assert "litelvlm calibrate --output-dir calibration" in region


def test_it_agrees_with_the_table_of_all_scenes(card):
    """Measured on 128 of the 1,000 scenes: what these say lies in the intervals."""
    table = dict(re.findall(r"^\| (litelvlm|context only|random) \| (.*) \|$", card.text, re.M))
    measured = by_setting(card.data.eval_results)
    for name, options in (("litelvlm", "null"), ("context only", '{"context_share": 1.0}')):
        cells = [float(cell.split()[0]) for cell in table[name].split(" | ")]
        for cell, budget in zip(cells, (48, 32, 16)):
            value, (low, high) = measured["litelvlm", options, budget]
            assert low < cell < high and value == pytest.approx(cell, abs=0.02)


def test_checks_of_huggingface_hub_that_need_no_network(card):
    """What `ModelCard.validate` asks the Hub is asked here of its own classes: every field, read and written again."""
    metadata = yaml.safe_load(REGEX_YAML_BLOCK.search(card.content)[2])
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "refshapes_tiny" and len(results) == 20
    for result in results:
        assert EvalResult(**dataclasses.asdict(result)) == result  # checks what it is given
        assert result.task_type == "image-segmentation" and 0 <= result.metric_value <= 1
    assert eval_results_to_model_index(name, results) == metadata["model-index"]
    again = ModelCardData(**{**metadata, "model_name": name}, ignore_metadata_errors=False)
    assert again.eval_results == results
    assert yaml.safe_load(again.to_yaml()) == metadata


def test_it_is_sent_to_the_validator_of_the_hub_as_it_is(card, monkeypatch):
    """The request of `ModelCard.validate`, to a Hub in memory; the real one was not asked."""
    hub, sent = FakeHub(), []
    answer = hub._answer
    hub._answer = lambda request: sent.append((request.url.path, json.loads(request.content))) or answer(request)
    huggingface_hub.set_client_factory(hub.client)
    huggingface_hub.close_session()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    try:
        card.validate()
    finally:
        huggingface_hub.set_client_factory(default_client_factory)
        huggingface_hub.close_session()
    [(path, body)] = sent
    assert path == "/api/validate-yaml" and body["repoType"] == "model" and body["content"] == str(card)


def video_results() -> dict:
    content = sample_results()
    content["dataset"] |= {"name": "mevis", "split": "valid_u", "kind": "videos", "num_videos": 50}
    content["dataset"] |= {"num_expressions": 793, "counts_match": True}
    del content["dataset"]["num_images"]
    for place, group in enumerate(content["groups"]):
        figures = {"j_and_f": 0.5 - 0.01 * place, "j": 0.48, "f": 0.52}
        group["metrics"] = figures
        group["intervals"] = {name: [value - 0.02, value + 0.02] for name, value in figures.items()}
        group["retention"] = dict.fromkeys(figures, 1 - 0.02 * place)
    return content


def test_results_of_videos(tmp_path, capsys):
    folder = tmp_path / "refshapes_tiny"
    folder.mkdir()
    (folder / "config.json").write_bytes(open(f"{DEFAULT_CHECKPOINT}/config.json", "rb").read())
    assert main(["card", str(folder), "--results", write_results(tmp_path, video_results())]) == 0
    card = ModelCard.load(folder / "README.md")
    assert "793 expressions about 50 videos, protocol `all`." in card.text
    assert "| method | visual tokens | J&F | J | F | retained |" in card.text
    assert "| none | all 144 | 0.500 [0.480, 0.520] | 0.480 [0.460, 0.500] | 0.520" in card.text
    assert "bootstrap intervals over videos" in card.text and "gIoU" not in card.text
    results = card.data.eval_results
    assert [result.metric_type for result in results[:3]] == ["j_and_f", "j", "f"] and len(results) == 18
    assert results[0].task_type == "mask-generation" and results[0].metric_value == 0.5
    hidden = video_results()
    for group in hidden["groups"]:
        group |= {"metrics": {}, "intervals": {}, "retention": None}
    assert main(["card", str(folder), "--results", write_results(tmp_path, hidden)]) == 2
    assert "holds no scores: the masks of mevis are on a server" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_videos_makes_a_card(tmp_path):
    """From frames to a card."""
    unipixel = tiny_checkpoint(tmp_path / "unipixel")
    words = ["--dataset", "ref-davis17", "--split", "valid", "--source", str(write_referring(tmp_path / "davis"))]
    words += ["--methods", "none", "random", "--budgets", "0.2222", "--seeds", "0", "--processes", "1"]
    assert main(["evaluate", "--output-dir", str(tmp_path / "out"), "--model", str(unipixel), *words]) == 0
    results = str(tmp_path / "out" / "results.json")
    assert main(["card", str(unipixel), "--results", results, "--output", str(tmp_path / "card.md")]) == 0
    card = ModelCard.load(tmp_path / "card.md")
    assert "24 expressions about 3 videos, protocol `all`; this is not the whole split." in card.text
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["groups"][0]["metrics"]
    assert [result.metric_value for result in card.data.eval_results[:3]] == list(figures.values())
