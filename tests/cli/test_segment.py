"""`litelvlm segment`: what it writes and prints, and what it says and leaves behind when it cannot."""

import functools
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tests.support.matrix import matrix
from tests.support.methods import ONE_OF_EACH_KIND
from transformers_litelvlm.cli import segment as segment_command
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.cli.segment import mask_file_name
from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.data.refshapes import generate_scene
from transformers_litelvlm.models.llava_lite.modeling_llava_lite_segmentation import LlavaLiteForReferringSegmentation
from transformers_litelvlm.models.llava_lite.processing_llava_lite import LlavaLiteProcessor
from transformers_litelvlm.pruning import list_pruners


SENTENCES = ["the red circle", "the star left of the square"]


@pytest.fixture
def litelvlm(capsys, tmp_path, tiny_checkpoint, monkeypatch):
    """Runs the command in an empty folder with the tiny checkpoint; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads make a model this small slower, a lot on a busy machine

    def run(*arguments, model=tiny_checkpoint):
        arguments = ["segment", *arguments, *(["--model", str(model)] if model else [])]
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # argparse leaves this way
            code = exit_.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield run
    torch.set_num_threads(threads)


# For a language model of two layers; SparseVLM leaves 8 + 1 and then 4 + 1 tokens.
OPTIONS = {"fastv": ["layer=1"], "ivc_prune": ["layer=1"], "sparsevlm": ["layers=[0, 1]", "keep=[8, 4]"]}


@pytest.mark.parametrize(
    "options, kept, context_share",
    [
        (["--preset", "context", "--budget", 6], 6, 0.75),
        (["--preset", "fast", "--retention-ratio", 0.5], 8, None),
        (["--preset", "context"], 16, None),
    ],
)
def test_a_preset_is_changed_by_other_options(litelvlm, picture, options, kept, context_share):
    code, out, err = litelvlm(picture, *SENTENCES, *options, "--json", "--output", "results")
    assert code == 0, err
    report = json.loads(out)
    assert report["num_kept_tokens"] == kept
    assert (report["method_options"] or {}).get("context_share") == context_share
    assert report["why_unpruned"] == (None if kept < 16 else "--budget or --retention-ratio says how many to keep")


def test_a_second_method_is_named(litelvlm, picture, tiny_checkpoint, tmp_path):
    folder, then = tmp_path / "both", {"method": "fastv", "budget": 4, "method_options": {"layer": 1}}
    config = AutoConfig.from_pretrained(tiny_checkpoint, pruning_budget=8, pruning_then=then)
    shutil.copytree(tiny_checkpoint, folder)
    config.save_pretrained(folder)
    out = litelvlm(picture, "the star", "--output", "results", model=folder)[1]
    assert "kept: 4 of 16 (25%), method litelvlm, then={'budget': 4, " in out
    out = litelvlm(picture, "the star", "--json", "--output", "more", model=folder)[1]
    assert json.loads(out)["then"] == config.pruning_config.then


def test_why_nothing_was_pruned(litelvlm, picture):
    out = litelvlm(picture, "the star", "--budget", 16, "--output", "results")[1]
    assert "kept: 16 of 16 (100%), nothing was pruned: the budget is not below the 16 visual tokens" in out
    out = litelvlm(picture, "the star", "--method", "none", "--output", "results")[1]
    assert "nothing was pruned: the method is none" in out


def test_json_has_the_masks(litelvlm, picture):
    report = json.loads(litelvlm(picture, *SENTENCES, "--budget", 5, "--json", "--output", "results")[1])
    for mask in report["masks"]:
        assert np.array_equal(decode_mask(mask["rle"]), np.asarray(Image.open(mask["file"])) > 0)


def test_a_setting_of_python_is_named_as_an_option(litelvlm, picture):
    code, _, err = litelvlm(picture, "the star", "--method", "fastv", "--budget", 5)
    assert code == 2 and "--method-option 'layer=" in err and "method_options" not in err


@pytest.mark.parametrize("method", matrix(list_pruners(), ONE_OF_EACH_KIND.__contains__))
def test_every_method(litelvlm, picture, method):
    options = [part for option in OPTIONS.get(method, []) for part in ("--method-option", option)]
    arguments = ("--method", method, *options, "--budget", 5, "--json", "--output", "results")
    code, out, err = litelvlm(picture, *SENTENCES, *arguments)
    assert code == 0, err
    report = json.loads(out)
    kept = 16 if method == "none" else 5
    assert report["num_kept_tokens"] == len(set(report["retained_indices"][0])) == kept
    assert report["method"] == (None if method == "none" else method)
    assert Image.open(report["kept_tokens"][0]).size[0] >= 480


def test_a_method_where_the_image_decides(litelvlm, picture):
    """The budget switches pruning on; fewer or more tokens may stay."""
    options = ("--method", "trim", "--method-option", "adaptive=true")
    code, out, _ = litelvlm(picture, *SENTENCES, *options, "--budget", 5, "--json", "--output", "results")
    report = json.loads(out)
    assert code == 0 and report["num_kept_tokens"] == len(set(report["retained_indices"][0])) != 5


def test_json_and_files_are_what_the_model_says(litelvlm, picture, tiny_checkpoint):
    code, out, _ = litelvlm(picture, *SENTENCES, "--budget", 5, "--json", "--output", "results")
    assert code == 0
    report = json.loads(out)  # one JSON object and nothing else

    processor = LlavaLiteProcessor.from_pretrained(tiny_checkpoint)
    model = LlavaLiteForReferringSegmentation.from_pretrained(tiny_checkpoint, pruning_budget=5).eval()
    with torch.no_grad():
        expected = model.segment(**processor.segmentation_inputs([Image.open(picture)], [SENTENCES]))
    assert report["retained_indices"] == expected.retained_indices.tolist()
    assert (report["num_kept_tokens"], report["num_visual_tokens"], report["token_grid"]) == (5, 16, [4, 4])
    assert (report["width"], report["height"], report["method"]) == (64, 40, "litelvlm")
    assert report["comparison"] is None
    for index, mask in enumerate(report["masks"]):
        pixels = np.asarray(Image.open(mask["file"]))
        assert pixels.shape == (40, 64) and pixels.dtype == np.uint8 and set(np.unique(pixels)) <= {0, 255}
        np.testing.assert_array_equal(pixels > 0, expected.masks[0][index].numpy())
        assert mask["area"] == (pixels > 0).sum() > 0
        assert mask["area_fraction"] == mask["area"] / (40 * 64)
        assert mask["score"] == pytest.approx(float(expected.scores[0][index]))
        assert mask["sentence"] == SENTENCES[index]
    files = sorted(path.name for path in Path("results").iterdir())
    assert files == [
        ".litelvlm.json",
        "kept_tokens.png",
        "mask_0_the-red-circle.png",
        "mask_1_the-star-left-of-the-square.png",
        "overlay.png",
    ]
    for file in (report["overlay"], *report["kept_tokens"]):
        assert Image.open(file).width >= 512
    # Another run in the same folder: it alone is there, and what is somebody's own.
    Path("results", "notes.txt").write_text("mine")
    assert litelvlm(picture, "the circle", "--budget", 5, "--output", "results")[0] == 0
    files = sorted(path.name for path in Path("results").glob("[!.]*"))
    assert files == ["kept_tokens.png", "mask_0_the-circle.png", "notes.txt", "overlay.png"]


def test_a_checkpoint_that_wants_a_dialogue_for_every_sentence(litelvlm, picture, tiny_checkpoint):
    """LISA: each sentence has tokens of its own, so there is a picture of them for each."""
    path = Path(tiny_checkpoint, "processor_config.json")
    config = json.loads(path.read_text())
    assert config["one_expression_per_dialogue"] is False
    path.write_text(json.dumps({**config, "one_expression_per_dialogue": True}))
    try:
        code, out, _ = litelvlm(picture, *SENTENCES, "--budget", 5, "--json", "--output", "results")
    finally:
        path.write_text(json.dumps(config))
    report = json.loads(out)
    assert code == 0 and [len(kept) for kept in report["retained_indices"]] == [5, 5]
    assert report["num_kept_tokens"] == 5 and len(report["masks"]) == 2
    first, second = (np.asarray(Image.open(file)) for file in report["kept_tokens"])
    assert not np.array_equal(first, second)


def test_text_names_score_tokens_and_files(litelvlm, picture):
    code, out, err = litelvlm(picture, *SENTENCES, "--retention-ratio", 0.25)
    assert (code, err) == (0, "")
    assert "visual tokens kept: 4 of 16 (25%), method litelvlm" in out
    assert "  litelvlm_output/mask_1_the-star-left-of-the-square.png" in out
    assert out.count("score 0.") == 2 and "ms" not in out


@pytest.mark.parametrize(
    ("arguments", "kept", "method"),
    [
        ([], 16, None),
        (["--preset", "accurate"], 5, "litelvlm"),
        (["--budget", "3", "--method", "random", "--method-option", "seed=3"], 3, "random"),
        (["--budget", "3", "--method", "none"], 16, None),
        (["--budget", "16"], 16, None),
        (["--budget", "3", "--dtype", "bfloat16"], 3, "litelvlm"),
    ],
)
def test_pruning_settings_reach_the_model(litelvlm, picture, arguments, kept, method):
    code, out, _ = litelvlm(picture, "the star", "--json", *arguments)
    report = json.loads(out)
    assert (code, report["num_kept_tokens"], report["method"]) == (0, kept, method)
    assert [len(row) for row in report["retained_indices"]] == [kept]
    assert report["dtype"] == ("bfloat16" if "bfloat16" in arguments else "float32")
    if method == "random":
        expected = torch.randperm(16, generator=torch.Generator().manual_seed(3))[:3]
        assert sorted(report["retained_indices"][0]) == sorted(expected.tolist())


def test_compare(litelvlm, picture):
    code, out, _ = litelvlm(picture, *SENTENCES, "--budget", 4, "--compare", "--pairs", 3, "--json")
    comparison = json.loads(out)["comparison"]
    assert code == 0 and comparison["pairs"] == 3
    assert comparison["speedup"] == pytest.approx(comparison["median_ms_unpruned"] / comparison["median_ms_pruned"])
    low, high = comparison["speedup_interval_95"]
    assert low <= high
    assert len(comparison["mask_iou_with_unpruned"]) == 2
    pruned = [np.asarray(Image.open(mask["file"])) > 0 for mask in json.loads(out)["masks"]]
    full = json.loads(litelvlm(picture, *SENTENCES, "--json", "--output", "full")[1])["masks"]
    for iou, ours, other in zip(comparison["mask_iou_with_unpruned"], pruned, full, strict=True):
        other = np.asarray(Image.open(other["file"])) > 0
        assert iou == pytest.approx((ours & other).sum() / (ours | other).sum())
    text = litelvlm(picture, "the star", "--budget", 4, "--compare", "--pairs", 2)[1]
    assert "median of 2 paired runs on cpu" in text and "IoU with the unpruned mask" in text
    numbers = re.search(r"unpruned ([\d.]+) ms, pruned ([\d.]+) ms, speed-up ([\d.]+)x", text).groups()
    unpruned, pruned, speedup = map(float, numbers)  # rounded to 0.1 ms and to 0.01
    assert (unpruned - 0.05) / (pruned + 0.05) - 0.006 < speedup < (unpruned + 0.05) / (pruned - 0.05) + 0.006


def test_which_of_both_is_faster(monkeypatch, litelvlm, picture):
    """The speed-up is that of pruning: unpruned / pruned."""
    segment = LlavaLiteForReferringSegmentation.segment

    def slow_without_pruning(self, *args, **kwargs):
        if "pruning_config" in kwargs and not kwargs["pruning_config"].is_on:
            time.sleep(0.3)
        return segment(self, *args, **kwargs)

    monkeypatch.setattr(LlavaLiteForReferringSegmentation, "segment", slow_without_pruning)
    out = litelvlm(picture, "the star", "--budget", 4, "--compare", "--pairs", 2, "--json")[1]
    assert json.loads(out)["comparison"]["speedup"] > 1.2


@pytest.mark.parametrize(("options", "is_pruned"), [(["--budget", 4], True), ([], False)])
def test_an_empty_mask_has_a_hint(monkeypatch, litelvlm, picture, caplog, options, is_pruned):
    segment = LlavaLiteForReferringSegmentation.segment

    def nothing(self, *args, **kwargs):
        output = segment(self, *args, **kwargs)
        output.masks[0][0] = False
        return output

    out = litelvlm(picture, *SENTENCES, *options)[1]
    assert caplog.text == "" and out.count("score 0.") == out.count("(mean mask probability, not correctness)") == 2
    monkeypatch.setattr(LlavaLiteForReferringSegmentation, "segment", nothing)
    out = litelvlm(picture, *SENTENCES, *options)[1]
    assert out.splitlines()[1] == "  nothing found: the mask is empty" and out.count("score 0.") == 1
    [hint] = [record.getMessage() for record in caplog.records if "A mask is empty" in record.getMessage()]
    for way_out in ("accurate", "larger budget", "none"):
        assert (way_out in hint) == is_pruned


def test_the_embedded_checkpoint_warns_of_other_pictures(litelvlm, tmp_path, picture, caplog):
    Image.fromarray(generate_scene("test", 0).image).save(tmp_path / "known.png")
    code, out, err = litelvlm("known.png", "the star", "--json", model=None)
    assert (code, err) == (0, "") and "drawn shapes" not in caplog.text
    code, out, err = litelvlm(picture, "the star", "--json", model=None)
    assert code == 0 and json.loads(out)["model"] == "bundled"
    assert caplog.text.count("knows drawn shapes") == 1


def test_pictures_of_every_kind(litelvlm, tmp_path):
    """RGBA, greyscale, EXIF-rotated and 1-pixel-high pictures: masks at the size that a viewer shows."""
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.new("RGB", (40, 24), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (33, 20), (255, 0, 0, 99)).save(tmp_path / "rgba.png")
    Image.new("L", (20, 33), 99).save(tmp_path / "grey.png")
    Image.new("RGB", (50, 1), "blue").save(tmp_path / "thin.png")
    for name, size in {
        "turned.jpg": (24, 40),
        "rgba.png": (33, 20),
        "grey.png": (20, 33),
        "thin.png": (50, 1),
    }.items():
        code, out, err = litelvlm(name, "the star", "--budget", 4, "--json")
        assert code == 0, err
        assert Image.open(json.loads(out)["masks"][0]["file"]).size == size


def test_file_names(monkeypatch):
    assert mask_file_name(0, "The RED circle!") == "mask_0_the-red-circle.png"
    assert mask_file_name(1, "../../etc/passwd") == "mask_1_etc-passwd.png"
    assert mask_file_name(2, "???") == "mask_2.png"
    assert mask_file_name(3, "чёрный круг") == "mask_3_чёрный-круг.png"
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "latin-1")
    assert mask_file_name(3, "чёрный круг é") == "mask_3_é.png"
    assert len(mask_file_name(4, "word " * 100)) < 70


def truncated(folder: Path) -> str:
    path = folder / "truncated.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    return "truncated.png"


BAD_INPUT = {
    "truncated picture": (["TRUNCATED", "the star"], "truncated.png cannot be read as a picture"),
    "no picture": (["notes.txt", "the star"], "notes.txt cannot be read as a picture"),
    "missing picture": (["missing.png", "the star"], "missing.png does not exist"),
    "no sentence": (["PICTURE"], "SENTENCE"),
    "empty sentence": (["PICTURE", "the star", "  "], "a sentence is empty"),
    "special token": (["PICTURE", "the [SEG] star"], "special token [SEG]"),
    "budget 0": (["PICTURE", "the star", "--budget", "0"], "--budget: must be a whole number of at least 1, got '0'"),
    "budget -3": (
        ["PICTURE", "the star", "--budget", "-3"],
        "--budget: must be a whole number of at least 1, got '-3'",
    ),
    "budget 2.5": (["PICTURE", "the star", "--budget", "2.5"], "at least 1, got '2.5'"),
    "budget many": (["PICTURE", "the star", "--budget", "many"], "at least 1, got 'many'"),
    "ratio 0": (["PICTURE", "the star", "--retention-ratio", "0"], "--retention-ratio: must be a number above 0"),
    "ratio 1.5": (["PICTURE", "the star", "--retention-ratio", "1.5"], "at most 1, got '1.5'"),
    "ratio nan": (["PICTURE", "the star", "--retention-ratio", "nan"], "at most 1, got 'nan'"),
    "both": (
        ["PICTURE", "the star", "--budget", "3", "--retention-ratio", "0.5"],
        "not allowed with argument --budget",
    ),
    "method": (["PICTURE", "the star", "--method", "magic"], "'magic'. Known methods: "),
    "option": (["PICTURE", "the star", "--method", "random", "--method-option", "sed=1"], "Its options: seed"),
    "option value": (["PICTURE", "the star", "--method-option", "context_share=4"], "in [0, 1], got 4"),
    "option form": (["PICTURE", "the star", "--method-option", "seed"], "NAME=VALUE"),
    "option of digits": (["PICTURE", "the star", "--method-option", f"context_share={'1' * 5000}"], "in [0, 1]"),
    "option of many levels": (
        ["PICTURE", "the star", "--method-option", f"context_share={'[' * 100_000}"],
        "in [0, 1]",
    ),
    "preset": (
        ["PICTURE", "the star", "--preset", "warp"],
        "error: Unknown `pruning_preset` 'warp'. Known presets: accurate, balanced, context, faithful, fast",
    ),
    "out of reach": (["PICTURE", "the star", "--method", "tome", "--budget", "3"], "`budget` 3 of 16 visual tokens"),
    "device": (["PICTURE", "the star", "--device", "quantum"], "--device quantum"),
    "compare nothing": (["PICTURE", "the star", "--compare"], "--compare needs pruning"),
    "video": (["clip.mp4", "the star"], 'clip.mp4 is a video, and this command takes images; "Masks of a video"'),
    "output": (["PICTURE", "the star", "--output", "notes.txt"], "is a file, not a folder"),
    "output link": (["PICTURE", "the star", "--output", "dangling"], "dangling is a link to nothing"),
    "output name": (["PICTURE", "the star", "--output", "n" * 300], "... cannot be written: File name too long"),
}


@pytest.mark.parametrize(
    ("case", "as_json"), [(case, False) for case in BAD_INPUT] + [("truncated picture", True), ("preset", True)]
)
def test_bad_input_is_one_line_and_leaves_no_file(litelvlm, picture, tmp_path, case, as_json):
    arguments, message = BAD_INPUT[case]
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "dangling").symlink_to("nowhere")
    replace = {"PICTURE": picture, "TRUNCATED": truncated(tmp_path)}
    before = sorted(tmp_path.rglob("*"))
    code, out, err = litelvlm(*(replace.get(a, a) for a in arguments), *(["--json"] if as_json else []))
    assert (code, out) == (2, "")
    assert err.startswith("litelvlm: error: ") and err.count("\n") == 1 and message in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["overlay.png", "kept_tokens.png", "mask_0_the-star.png"])
def test_the_image_is_never_replaced(litelvlm, picture, tmp_path, name):
    image = Path(picture).rename(tmp_path / name)
    before = image.read_bytes()
    code, _, err = litelvlm(image, "the star", "--output", tmp_path)
    assert code == 2 and f"{image} would be replaced" in err
    assert image.read_bytes() == before and list(tmp_path.iterdir()) == [image]
    assert litelvlm(image, "the star", "--output", tmp_path / "out")[0] == 0


def test_folders_that_are_no_checkpoint(litelvlm, picture, tmp_path, tiny_checkpoint):
    (tmp_path / "empty").mkdir()
    shutil.copytree(tiny_checkpoint, tmp_path / "no_weights")
    (tmp_path / "no_weights" / "model.safetensors").unlink()
    for part in ("guidance", "text_hidden_fcs"):
        folder = tmp_path / f"no_{part}"
        shutil.copytree(tiny_checkpoint, folder)
        weights = load_file(folder / "model.safetensors")
        weights = {name: tensor for name, tensor in weights.items() if part not in name}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(tiny_checkpoint, tmp_path / "broken_config")
    (tmp_path / "broken_config" / "config.json").write_text("{")
    for folder, message in {
        "empty": "no config.json",
        "nowhere/at/all": "does not exist: check the path",
        "nowhere": "There is no folder 'nowhere' here",
        "org/name": "the cache does not have it",
        "no_weights": "no file named model.safetensors",
        "no_guidance": "holds no CLIP text tower",
        "no_text_hidden_fcs": "lack 4 parameters, the first is text_hidden_fcs.0.bias",
        "broken_config": "config.json",
    }.items():
        guidance = ["--guidance-model", tmp_path / "empty"]
        code, out, err = litelvlm(picture, "the star", "--budget", 4, *guidance, model=folder)
        assert (code, out) == (2, ""), folder
        assert err.startswith("litelvlm: error: --model") and f"{folder}" in err
        assert message in err and err.count("\n") == 1
    guidance = ["--guidance-model", "./no_clip"]
    assert "--guidance-model: './no_clip' does not exist" in litelvlm(picture, "the star", *guidance)[2]
    assert not (tmp_path / "litelvlm_output").exists()


def edited(file: str, place: str, value: object):
    """A function that sets a value, at `place` with dots, in a JSON file of a folder."""

    def edit(folder: Path) -> None:
        settings = json.loads((folder / file).read_text())
        *parents, last = place.split(".")
        functools.reduce(dict.__getitem__, parents, settings)[last] = value
        (folder / file).write_text(json.dumps(settings))

    return edit


def smaller(name: str):
    """A function that takes the last row from a tensor of the weights in a folder."""

    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights[name] = weights[name][:-1].clone()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


HEAD = "text_hidden_fcs.0.weight"
PROCESSOR = functools.partial(edited, "processor_config.json")
EDITED = {
    "a weight of the wrong shape": (
        smaller(HEAD),
        f"have {HEAD} of shape (47, 48), its config.json asks for (48, 48)",
    ),
    "fewer layers than weights": (
        edited("config.json", "text_config.num_hidden_layers", 1),
        "parameters too many, the first is model.language_model.layers.1.input_layernorm.weight",
    ),
    "patch of nothing": (
        edited("config.json", "vision_config.patch_size", 0),
        "`vision_config.patch_size` must be a whole number above 0, got 0",
    ),
    "no questions": (PROCESSOR("question_templates", []), "`question_templates` must be a list of one or more texts"),
    "no answers": (PROCESSOR("answer_templates", "It is [SEG]."), "`answer_templates` must be a list of one or more"),
    "question about nothing": (
        PROCESSOR("question_templates", ["{expression}", "Segment it."]),
        "`question_templates` must contain {expression}, got 'Segment it.'",
    ),
    "answer without a mask": (
        PROCESSOR("answer_templates", ["Sure."]),
        "`answer_templates` must contain [SEG], got 'Sure.'",
    ),
    "patch of the processor": (PROCESSOR("patch_size", 0), "`patch_size` must be a number of pixels from 1 to 8,000"),
    "huge picture": (
        PROCESSOR("image_processor.size.shortest_edge", 10**6),
        "`image_processor.size.shortest_edge` must be a number of pixels from 1 to 8,000, got 1000000",
    ),
    "huge picture for masks": (
        PROCESSOR("mask_image_processor.size.longest_edge", 10**6),
        "`mask_image_processor.size.longest_edge` must be a number of pixels from 1 to 8,000, got 1000000",
    ),
    "another tokenizer": (
        edited("config.json", "seg_token_id", 5),
        "reads [SEG] as token 97, but `seg_token_id` in its config.json is 5: they are not of one checkpoint",
    ),
}


@pytest.mark.parametrize("case", EDITED)
def test_checkpoints_that_do_not_fit_together(litelvlm, picture, tmp_path, tiny_checkpoint, case):
    edit, message = EDITED[case]
    folder = tmp_path / "edited"
    shutil.copytree(tiny_checkpoint, folder)
    edit(folder)
    code, out, err = litelvlm(picture, "the star", model=folder)
    assert (code, out) == (2, "")
    assert err.startswith(f"litelvlm: error: --model {folder}: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "litelvlm_output").exists()


@pytest.mark.parametrize(
    ("error", "expected_code", "message"),
    [(RuntimeError("out of\nmemory"), 1, "error: out of memory"), (KeyboardInterrupt(), 130, "interrupted")],
)
@pytest.mark.parametrize("where", ["_compare", "draw"])
def test_a_failure_half_way_leaves_no_file(
    litelvlm, picture, tmp_path, monkeypatch, error, expected_code, message, where
):
    def fail(*args, **kwargs):
        raise error

    if where == "draw":  # when the masks are already written to the temporary folder
        monkeypatch.setattr("transformers_litelvlm.visualization.draw_selections", fail)
    else:
        monkeypatch.setattr(segment_command, "_compare", fail)
    (tmp_path / "litelvlm_output").mkdir()
    (tmp_path / "litelvlm_output" / "overlay.png").write_text("of an earlier run")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = litelvlm(picture, "the star", "--budget", 4, "--compare", "--pairs", 1)
    assert (code, out) == (expected_code, "")
    # A fault of ours comes with its traceback, and how to report it.
    assert message in err and ("Traceback" in err) == ("Please report it" in err) == (code == 1)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "litelvlm_output" / "overlay.png").read_text() == "of an earlier run"


def test_traceback_on_request(litelvlm, monkeypatch):
    monkeypatch.setenv("LITELVLM_DEBUG", "1")
    code, _, err = litelvlm("missing.png", "the star")
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("litelvlm: error: ")


def test_an_empty_mask_of_a_wide_picture_says_what_was_not_seen(tmp_path, capsys):
    Image.new("RGB", (600, 144), (128, 128, 128)).save(tmp_path / "wide.png")
    output = str(tmp_path / "out")
    assert main(["segment", str(tmp_path / "wide.png"), "the star", "--output-dir", output, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["seen_region"] == [228, 0, 372, 144]
    said = "this model sees only a part of the image: x from 228 to 372 and y from 0 to 144, of 600 x 144 pixels"
    for area in (0, 5):
        segment_command._print_report({**report, "masks": [{**report["masks"][0], "area": area}]})
        assert (said in capsys.readouterr().out) == (area == 0)
