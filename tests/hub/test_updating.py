"""`litelvlm card`: measured results into cards, for people and for machines, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import TrainerState

from tests.support.sample_results import MEASURED, sample_results, write_results
from tests.support.uncalibrated import uncalibrate
from transformers_litelvlm import DEFAULT_CHECKPOINT, AutoModelForReferringSegmentation
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.hub.measured import BEGIN, END
from transformers_litelvlm.hub.metadata import eval_result_entries, replace_model_index
from transformers_litelvlm.hub.results import read_results


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The embedded checkpoint, without its weights, and with its card as it was before anything was measured."""
    folder = tmp_path / "refshapes_tiny"
    shutil.copytree(DEFAULT_CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    uncalibrate(folder)
    before, _, rest = card_of(folder).partition(BEGIN)
    card = replace_model_index(before.rstrip() + rest.partition(END)[2], folder.name, [])
    assert BEGIN not in card and "model-index" not in card
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def metadata_of(text: str) -> dict:
    return yaml.safe_load(REGEX_YAML_BLOCK.search(text)[2])


def test_embedded_checkpoint(checkpoint, tmp_path, capsys):
    before = card_of(checkpoint)
    assert main(["card", str(checkpoint), "--results", write_results(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "presets measured: accurate, fast; not measured: balanced" in out and "model-index: 12 figures" in out
    text = card_of(checkpoint)
    # What was there is there, byte for byte: metadata, then text.
    head, body = REGEX_YAML_BLOCK.search(before)[2], before[REGEX_YAML_BLOCK.search(before).end() :]
    assert REGEX_YAML_BLOCK.search(text)[2].startswith(head) and body.rstrip() in text
    region = text[text.index(BEGIN) : text.index(END)]
    assert "| `accurate` | 48 of 144 | 0.148 [0.140, 0.157] | 0.122 [0.114, 0.130] | 19.3 % / 16.8 % |" in region
    assert "| `fast` | 16 of 144 | 0.114 [0.107, 0.121] | 0.094 [0.088, 0.100] | 14.9 % / 13.0 % |" in region
    assert "| `balanced` | 32 of 144 | not measured |" in region
    assert "| none | all 144 | 0.767 [0.758, 0.778] | 0.725 [0.711, 0.741] | 100.0 % / 100.0 % |" in region
    assert "mean of 5 seeds | 48 of 144 | 0.391 [0.383, 0.399]" in region
    assert "5080 sentences about 1000 images, protocol `all`" in region
    assert "2026-11-20 with transformers_litelvlm 0.1.0, transformers 5.23.0, torch 2.13.0" in region


@pytest.mark.parametrize(
    "changes, num_tokens, same",
    [
        ({}, 144, True),
        ({"budget": None, "retention_ratio": 1 / 3}, 144, True),
        ({"budget": None, "retention_ratio": 1 / 3}, None, False),
        ({"budget": None, "retention_ratio": 1 / 9}, 144, False),
        ({"method_options": {"context_share": None}}, 144, True),
        ({"method_options": {"context_share": 0.5}}, 144, False),
        ({"method": "uniform"}, 144, False),
        ({"token_order": None}, 144, False),  # the method's official order is another one
        ({"token_order": "reference"}, 144, False),
        ({"position_ids": "compact"}, 144, False),
        ({"method": "somebody_elses"}, 144, False),
    ],
)
def test_what_a_group_measured(tmp_path, changes, num_tokens, same):
    content = sample_results()
    content["groups"] = [{**content["groups"][2], **changes}]
    [group] = read_results(write_results(tmp_path, content)).groups
    pruning = PruningConfig(budget=48, token_order="raster", position_ids="original")
    assert group.is_what(pruning, num_tokens) is same


def test_machines_read_the_same_numbers(checkpoint, tmp_path):
    assert main(["card", str(checkpoint), "--results", write_results(tmp_path)]) == 0
    card = ModelCard.load(checkpoint / "README.md")
    assert card.data.model_name == "refshapes_tiny" and card.data.license == "apache-2.0"
    expected = [value for figures in MEASURED.values() for value in (figures[0], figures[3])]
    assert [result.metric_value for result in card.data.eval_results] == expected
    intervals = [list(ends) for figures in MEASURED.values() for ends in (figures[1:3], figures[4:6])]
    assert [result.metric_args["interval_95"] for result in card.data.eval_results] == intervals
    assert [result.metric_type for result in card.data.eval_results] == ["giou", "ciou"] * len(MEASURED)
    result = card.data.eval_results[4]
    assert (result.dataset_name, result.dataset_split, result.task_type) == ("RefShapes", "test", "image-segmentation")
    assert result.metric_name == "gIoU, litelvlm, raster order, original positions, 48 of 144 visual tokens"
    assert result.metric_args["budget"] == 48 and result.metric_args["num_sentences"] == 5080
    # Round trip through huggingface_hub.
    again = ModelCard(str(card))
    assert again.data.eval_results == card.data.eval_results and again.text == card.text
    name, results = model_index_to_eval_results(metadata_of(card_of(checkpoint))["model-index"])
    assert (name, results) == ("refshapes_tiny", card.data.eval_results)


def test_newer_results_replace_older_ones_and_nothing_else(checkpoint, tmp_path):
    hand_written = """---
# a comment
model-index:
- name: Mine
  results:
  - task: {type: image-segmentation}
    dataset: {name: RefShapes, type: RefShapes, split: test}
    metrics:
    - {type: giou, value: 0.5, note: by hand}
license: mit   # yes
---
# Title

%s old %s
The end.
"""
    (checkpoint / "README.md").write_text(hand_written % (BEGIN, END))
    first = sample_results()
    assert main(["card", str(checkpoint), "--results", write_results(tmp_path, first)]) == 0
    once = card_of(checkpoint)
    assert main(["card", str(checkpoint), "--results", write_results(tmp_path, first)]) == 0
    assert card_of(checkpoint) == once
    first["groups"] = first["groups"][:1]
    first["groups"][0]["metrics"]["giou"] = 0.6
    assert main(["card", str(checkpoint), "--results", write_results(tmp_path, first)]) == 0
    text = card_of(checkpoint)
    [index] = metadata_of(text)["model-index"]
    figures = [metric for result in index["results"] for metric in result["metrics"]]
    assert index["name"] == "Mine" and [metric["value"] for metric in figures] == [0.5, 0.6, 0.725]
    assert figures[0]["note"] == "by hand"
    assert text.startswith("---\n# a comment\nlicense: mit   # yes\nmodel-index:")
    assert text[: text.index(BEGIN)].endswith("---\n# Title\n\n") and text.endswith(f"{END}\nThe end.\n")
    assert " old " not in text and "0.767" not in text


def test_several_data_sets(checkpoint, tmp_path):
    other = sample_results()
    other["dataset"] |= {"name": "Other", "source": "somebody/other", "split": "val"}
    other["environment"]["command"] = "litelvlm evaluate --dataset other"
    files = [write_results(tmp_path), write_results(tmp_path, other, "other.json")]
    assert main(["card", str(checkpoint), "--results", *files]) == 0
    text = card_of(checkpoint)
    assert "### RefShapes, test" in text and "### Other, val" in text
    assert (
        "```bash\nlitelvlm evaluate --dataset other\n```" in text and 'Settings: `{"budgets": [48, 32, 16]}`' in text
    )
    datasets = [result["dataset"] for result in metadata_of(text)["model-index"][0]["results"]]
    assert [dataset["type"] for dataset in datasets] == ["RefShapes", "somebody/other"]


def test_a_file_that_is_given_twice_counts_once(checkpoint, tmp_path):
    file = write_results(tmp_path)
    assert main(["card", str(checkpoint), "--results", file]) == 0
    once = card_of(checkpoint)
    assert main(["card", str(checkpoint), "--results", file, str(Path(file).parent / "." / Path(file).name)]) == 0
    assert card_of(checkpoint) == once


def test_a_public_card_has_no_folders_of_this_machine(checkpoint, tmp_path):
    results = sample_results()
    results["settings"] = {"model": "/home/ann/work/finetuned/merged/", "output_dir": "/home/ann/out", "budgets": [4]}
    assert main(["card", str(checkpoint), "--results", write_results(tmp_path, results)]) == 0
    assert 'Settings: `{"budgets": [4], "model": "merged/", "output_dir": "out"}`' in card_of(checkpoint)
    results["environment"]["command"] = (
        "litelvm evaluate --model=/home/ann/merged --source 'https://host/a/b.zip' --image-root /data/x a/b ../c/d"
        " --output-dir '/home/ann lee/secret work/my out'"
    )
    assert main(["card", str(checkpoint), "--results", write_results(tmp_path, results)]) == 0
    expected = "litelvm evaluate --model=merged --source 'https://host/a/b.zip' --image-root x a/b ../c/d"
    assert f"{expected} --output-dir 'my out'" in card_of(checkpoint)


def test_windows_line_breaks_stay(checkpoint, tmp_path):
    (checkpoint / "README.md").write_bytes(b"---\r\nlicense: mit\r\n---\r\n# Title\r\n")
    assert main(["card", str(checkpoint), "--results", write_results(tmp_path)]) == 0
    content = (checkpoint / "README.md").read_bytes()
    assert content.startswith(b"---\r\nlicense: mit\r\nmodel-index:\r\n") and content.count(b"\n") == content.count(
        b"\r\n"
    )
    assert len(ModelCard(content.decode()).data.eval_results) == 12


def test_output_and_template(checkpoint, tmp_path, capsys):
    before = card_of(checkpoint)
    target = tmp_path / "cards" / "card.md"
    arguments = ["card", str(checkpoint), "--results", write_results(tmp_path), "--output", str(target)]
    assert main(arguments) == 0
    assert card_of(checkpoint) == before and before.rstrip()[-200:] in target.read_text()
    (checkpoint / "README.md").unlink()
    assert main(arguments) == 0 and "updated" in capsys.readouterr().out
    target.unlink()
    assert main(arguments) == 0 and "written from the template" in capsys.readouterr().out
    text = target.read_text()
    assert text.count(BEGIN) == 1 and "Nothing was measured" not in text and "| `accurate` | 48 of 144 | 0.148" in text
    assert not (checkpoint / "README.md").exists() and len(ModelCard.load(target).data.eval_results) == 12


@pytest.mark.parametrize("name", ["results.json", "refshapes_tiny/config.json"])
def test_a_card_replaces_no_other_file(checkpoint, tmp_path, capsys, name):
    results = write_results(tmp_path)
    before = (tmp_path / name).read_bytes()
    assert main(["card", str(checkpoint), "--results", results, "--output", str(tmp_path / name)]) == 2
    assert "ends with .md" in capsys.readouterr().err and (tmp_path / name).read_bytes() == before


def test_eval_results_of_a_benchmark(checkpoint, tmp_path, capsys):
    content = sample_results()
    content["dataset"] |= {"source": "jxu124/refcoco-benchmark", "revision": "abc"}
    arguments = ["card", str(checkpoint), "--results", write_results(tmp_path, content)]
    assert main(arguments) == 0
    assert "--task-id writes them" in capsys.readouterr().out and not (checkpoint / ".eval_results").exists()
    assert main([*arguments, "--task-id", "refcoco_unc_val"]) == 0
    files = sorted((checkpoint / ".eval_results").glob("*.yaml"))
    entries = [entry for file in files for entry in parse_eval_result_entries(yaml.safe_load(file.read_text()))]
    assert len(files) == len(entries) == len(MEASURED)
    assert {entry.value for entry in entries} == {figures[0] for figures in MEASURED.values()}
    [entry] = [entry for entry in entries if entry.value == 0.148]
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision, entry.date) == (
        "jxu124/refcoco-benchmark",
        "refcoco_unc_val",
        "abc",
        "2026-11-20",
    )
    assert entry.notes == "gIoU, litelvlm, raster order, original positions, 48 of 144 visual tokens"


def test_a_task_is_about_one_split(checkpoint, tmp_path, capsys):
    """The second file had the names of the first one, and replaced its values."""
    files = []
    for split in ("val", "testA"):
        content = sample_results()
        content["dataset"] |= {"source": "jxu124/refcoco-benchmark", "split": split}
        files.append(write_results(tmp_path, content, f"{split}.json"))
    before = card_of(checkpoint)
    assert main(["card", str(checkpoint), "--results", *files, "--task-id", "task"]) == 2
    assert "testA.json has settings of a file before it" in capsys.readouterr().err
    assert card_of(checkpoint) == before and not (checkpoint / ".eval_results").exists()
    assert main(["card", str(checkpoint), "--results", *files]) == 0


def test_options_that_differ_in_a_sign_have_files_of_their_own(tmp_path):
    content = sample_results()
    content["dataset"]["source"] = "jxu124/refcoco-benchmark"
    group = content["groups"][2]
    content["groups"] = [{**group, "method_options": {"layer": layer}} for layer in (2, -2, 3)]
    entries = eval_result_entries(read_results(write_results(tmp_path, content)), "task")
    assert [re.search(r"layer=(-?\d)", entry.notes)[1] for entry in entries.values()] == ["2", "-2", "3"]


EVIL = "a | b `c` <script>x</script> [y](http://z)"


def test_texts_in_results_are_shown_as_they_are(checkpoint, tmp_path):
    content = sample_results()
    content["dataset"] |= {"name": EVIL, "protocol": EVIL}
    content["environment"] |= {"command": f"litelvlm evaluate --source '{EVIL} ```'", "torch": EVIL}
    content["environment"]["hardware"]["cpu"] = EVIL
    content["model"]["dtype"] = EVIL
    content["groups"][1] |= {"method": EVIL, "token_order": EVIL}
    config = json.loads((checkpoint / "config.json").read_text())
    config["pruning_config"]["presets"] = {f"{EVIL} {END}": {"budget": 48}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    file = write_results(tmp_path, content)
    assert main(["card", str(checkpoint), "--results", file]) == 0
    once = card_of(checkpoint)
    assert main(["card", str(checkpoint), "--results", file]) == 0
    assert card_of(checkpoint) == once and once.count(BEGIN) == once.count(END) == 1
    region = once[once.index(BEGIN) : once.index(END)]
    shown = r"a \| b \`c\` &lt;script&gt;x&lt;/script&gt; [y]\(http://z)"
    assert (
        f"### {shown}, test\n" in region and f"torch {shown}" in region and f"| {shown}, context_share=0.5" in region
    )
    assert (
        f"protocol `` {EVIL} ``" in region and f"\n````bash\nlitelvlm evaluate --source '{EVIL} ```'\n````\n" in region
    )
    assert r"| `` a \| b `c`" in region
    rows = [line for line in region.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}  # no cell more
    [entry] = [entry for entry in ModelCard(once).data.eval_results if entry.metric_args["method"] == EVIL][:1]
    assert entry.dataset_name == EVIL


def test_newer_entries_replace_older_ones_and_nothing_else(checkpoint, tmp_path):
    content = sample_results()
    content["dataset"]["source"] = "jxu124/refcoco-benchmark"
    folder = checkpoint / ".eval_results"
    folder.mkdir()
    (folder / "mine.yaml").write_text("mine")
    for count in (6, 2):
        content["groups"] = content["groups"][:count]
        file = write_results(tmp_path, content)
        assert main(["card", str(checkpoint), "--results", file, "--task-id", "task"]) == 0
        assert len(list(folder.glob("*.yaml"))) == count + 1
    assert (folder / "mine.yaml").read_text() == "mine"


def broken(change):
    content = sample_results()
    change(content)
    return content


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(schema="litelvlm-results/2"), "`schema` is 'litelvlm-results/2', only"),
        (lambda c: c["model"].update({"class": "Other"}), "about another model: its `class` is 'Other'"),
        (lambda c: c["model"].update(num_visual_tokens=576), "`num_visual_tokens` is 576"),
        (lambda c: c["model"].update(path_or_id="org/another"), "is about 'org/another', not"),
        (
            lambda c: c["groups"][1]["metrics"].update(giou=14.8),
            "`groups[1].metrics.giou` must be a number from 0 to 1",
        ),
        (lambda c: c["groups"][1]["metrics"].update(giou=float("nan")), "got nan"),
        (lambda c: c["groups"][1]["metrics"].update(ciou="0.1"), "got '0.1'"),
        (lambda c: c["groups"][1]["metrics"].pop("ciou"), "`groups[1].metrics.ciou` must be"),
        (lambda c: c["groups"][0]["intervals"].update(giou=[0.8, 0.7]), "must be [low, high], got [0.8, 0.7]"),
        (lambda c: c["groups"][0].update(intervals=None), "`groups[0].intervals` must be an object"),
        (lambda c: c["groups"][1].update(budget=0), "`groups[1].budget` must be a whole number"),
        (lambda c: c["groups"][0]["retention"].update(giou=-1), "`groups[0].retention.giou`"),
        (lambda c: c["groups"].clear(), "`groups` holds no results"),
        (lambda c: c["groups"].append("x"), "`groups[6]` must be an object"),
        (lambda c: c["dataset"].pop("name"), "`dataset.name` must be a text"),
        (lambda c: c["dataset"].update(num_expressions=None), "`dataset.num_expressions` must be"),
        (lambda c: c["groups"][1].update(budget=None, retention_ratio=0), "`groups[1]`: `retention_ratio` must be"),
        (lambda c: c["groups"][1].update(budget=5, retention_ratio=0.5), "`groups[1]`: `budget` (5) and"),
        (lambda c: c["groups"][0].update(retention=[1]), "`groups[0].retention` must be an object, got [1]"),
        (lambda c: c["groups"][0].update(method=None), "`groups[0].method` must be a text"),
        (lambda c: c.update(environment=[]), "`environment` must be an object"),
        (lambda c: c["dataset"].update(name=f"x {END}"), "`dataset.name` must be a text in one line without `<!--`"),
        (lambda c: c["dataset"].update(split="x\n# y"), "`dataset.split` must be a text in one line"),
        (lambda c: c["environment"].update(command="a\nb"), "`environment.command` must be a text in one line"),
        (lambda c: c["environment"].update(command="\ud800"), "`environment.command` must be a text in one line"),
        (lambda c: c["groups"][1].update(method="x\x1b[0m"), "`groups.1.method` must be a text in one line"),
        (lambda c: c["groups"][1]["method_options"].update({"a\nb": 1}), "must be a text in one line"),
        (lambda c: c["settings"].update(budgets=[float("inf")]), "`settings.budgets.0` must be a finite number"),
        (lambda c: c["dataset"].update(name="x" * 9999, protocol=7), "`dataset.protocol` must be a text, got 7"),
        (lambda c: c["dataset"].update(kind=[]), "`dataset.kind` must be one of"),
        (lambda c: c["environment"].update(date=2026), "`environment.date` must be a text"),
        (lambda c: c["environment"].update(git_commit=7), "`environment.git_commit` must be a text"),
        (lambda c: c["groups"][1].update(token_order=[]), "`groups[1].token_order` must be a text"),
    ],
)
def test_bad_results(checkpoint, tmp_path, capsys, change, message):
    before = {path: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}
    file = write_results(tmp_path, broken(change))
    assert main(["card", str(checkpoint), "--results", file]) == 2
    err = capsys.readouterr().err
    assert err.startswith("litelvlm: error: ") and err.count("\n") == 1 and message in err and "results.json" in err
    assert {path: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()} == before


def test_bad_files(checkpoint, tmp_path, capsys):
    def error(*arguments):
        assert main(["card", *map(str, arguments)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    results = write_results(tmp_path)
    assert "absent.json: no such file" in error(checkpoint, "--results", tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text('{"schema": ')
    assert "broken.json is no valid JSON" in error(checkpoint, "--results", tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[]")
    assert "holds a JSON list" in error(checkpoint, "--results", tmp_path / "list.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert "deep.json is no valid JSON" in error(checkpoint, "--results", tmp_path / "deep.json")
    config = (checkpoint / "config.json").read_text()
    for damaged in ("[]", '{"model_type": 7}', '{"model_type": "llava_lite", "text_config": 7}', "\0"):
        (checkpoint / "config.json").write_text(damaged)
        assert f"{checkpoint}: config.json cannot be read" in error(checkpoint, "--results", results)
    (checkpoint / "config.json").write_text(config)
    assert "it has no config.json" in error(tmp_path, "--results", results)
    assert "are for data sets on the Hub, not 'generated'" in error(checkpoint, "--results", results, "--task-id", "x")
    for card, message in [
        ("---\na: [\n---\n", "the metadata at the top of the card are not valid"),
        ("---\nmodel-index: 3\n---\n", "not valid"),
        ("---\nmodel-index: [1, 2]\n---\n", "not valid"),
        ("---\nmodel-index:\n- name: a\n- name: b\n---\n", "not valid"),
        ("---\n- a\n---\n", "not valid"),
        ("---\nmodel-index:\n- name: a\n  results: 7\n---\n", "not valid"),
        ("---\n" + "[" * 3000 + "\n---\n", "not valid"),
        (f"# A card\n{BEGIN}\n", "once each, in this order, or neither"),
        (f"# A card\n{END}\n{BEGIN}\n", "once each, in this order, or neither"),
    ]:
        (checkpoint / "README.md").write_text(card)
        assert message in error(checkpoint, "--results", results)
        assert card_of(checkpoint) == card


def test_results_of_a_copy(checkpoint, tmp_path):
    copy = checkpoint.rename(tmp_path / "copy")
    assert main(["card", str(copy), "--results", write_results(tmp_path)]) == 2
    assert main(["card", str(copy), "--results", write_results(tmp_path), "--any-name"]) == 0


def test_saved_card_can_be_updated(tmp_path):
    """save_pretrained, then `litelvlm card`: it fills the place that says that nothing was measured."""
    folder = tmp_path / "refshapes_tiny"
    AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT).save_pretrained(folder)
    text = card_of(folder)
    assert "Nothing was measured" in text and metadata_of(text)["license"] == "apache-2.0"
    assert main(["card", str(folder), "--results", write_results(tmp_path)]) == 0
    updated = card_of(folder)
    assert "Nothing was measured" not in updated and updated.count(BEGIN) == 1
    assert updated[updated.index(END) :] == text[text.index(END) :]


@pytest.fixture
def trained(tmp_path) -> Path:
    """A fine-tuned copy of the embedded checkpoint, as `Trainer` and `save_pretrained` leave it."""
    folder = tmp_path / "merged"
    AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT).save_pretrained(folder)
    state = TrainerState(global_step=400, epoch=1.0, log_history=[{"loss": 0.97}, {"loss": 0.8068}, {"train_loss": 3}])
    state.save_to_json(str(folder / "trainer_state.json"))
    return folder


def test_the_card_of_a_training_knows_its_steps_and_its_name(trained, tmp_path, capsys):
    assert "transformers_litelvlm" in card_of(trained) and "loaded from the folder refshapes_tiny." in card_of(trained)
    arguments = ["card", str(trained), "--any-name", "--results", write_results(tmp_path), "--repo-id", "me/my_model"]
    assert main(arguments) == 0
    assert f"hf upload me/my_model {trained}" in capsys.readouterr().out
    text = card_of(trained)
    assert "\n# my_model, with visual-token pruning\n" in text and "merged" not in text
    said = "It was trained for 400 steps, 1 epochs; the last loss that it logged is 0.807."
    assert f"{said}\n\n**To fill in:** the data" in text and "does not know" not in text
    assert metadata_of(text)["model-index"][0]["name"] == "my_model"
    assert main([*arguments[:-1], "me/second"]) == 0  # the name of an earlier call is no title of the user's
    assert "\n# second, with visual-token pruning\n" in card_of(trained)
    assert metadata_of(card_of(trained))["model-index"][0]["name"] == "second"
    filled_in = text.replace("**To fill in:** the data and the settings of this training.", "On RefShapes, by LoRA.")
    (trained / "README.md").write_text(filled_in.replace("# my_model, with visual-token pruning", "# Mine"))
    assert main(arguments) == 0
    assert "On RefShapes, by LoRA." in card_of(trained) and "To fill in" not in card_of(trained)
    assert "\n# Mine\n" in card_of(trained)


@pytest.mark.parametrize(
    ("state", "repo_id", "message"),
    [
        ("[]", "me/x", "trainer_state.json cannot be read (TypeError"),
        ("{", "me/x", "trainer_state.json cannot be read (JSONDecodeError"),
        (
            '{"log_history": [], "global_step": 3.5, "epoch": 1}',
            "me/x",
            "trainer_state.json cannot be read (ValueError",
        ),
        (
            '{"log_history": [], "global_step": 3, "epoch": 1}',
            "me/x/y",
            "`repo_id` 'me/x/y' is no name of a repository",
        ),
    ],
)
def test_a_state_or_name_that_cannot_be_is_refused(trained, tmp_path, capsys, state, repo_id, message):
    (trained / "trainer_state.json").write_text(state)
    before = card_of(trained)
    arguments = ["card", str(trained), "--any-name", "--results", write_results(tmp_path), "--repo-id", repo_id]
    assert main(arguments) == 2 and message in capsys.readouterr().err and card_of(trained) == before
