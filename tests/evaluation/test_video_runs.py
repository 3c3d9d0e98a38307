"""Whole evaluations of a tiny UniPixel on tiny videos, in every layout and under both protocols."""

import dataclasses
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.support import warm_python
from tests.support.matrix import matrix
from tests.support.original_checkpoints import SHARED
from tests.support.small_evaluations import assert_same, evaluate_in_processes, records, results
from tests.support.tiny_videos import NUM_EXPRESSIONS, SIZE, VIDEOS, objects, write_mevis, write_referring
from transformers_litelvlm.data.loading import load_split
from transformers_litelvlm.data.referring_video import annotators
from transformers_litelvlm.data.samples import UnreadableImageError
from transformers_litelvlm.evaluation import measuring, runner
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.records import OtherConfigurationError
from transformers_litelvlm.evaluation.runner import evaluate
from transformers_litelvlm.evaluation.runs import plan_runs
from transformers_litelvlm.evaluation.statistics import bootstrap_interval, mean
from transformers_litelvlm.evaluation.sweeping import MAX_VIDEO_DIALOGUES
from transformers_litelvlm.evaluation.tasks import choose_task
from transformers_litelvlm.evaluation.video_metrics import (
    merge_objects,
    score_frames,
    score_unsupervised,
    summarize_annotators,
    summarize_videos,
)
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation


METHODS = ["none", "litelvlm", "random"]


@pytest.fixture(scope="module")
def davis(tmp_path_factory) -> Path:
    return write_referring(tmp_path_factory.mktemp("davis"))


def options(folder, unipixel, source, **changes) -> EvaluationArguments:
    defaults = {"dataset": "ref-davis17", "split": "valid", "methods": METHODS, "budgets": [0.1], "seeds": [0, 1]}
    return EvaluationArguments(
        output_dir=str(folder), model=str(unipixel), source=str(source), batch_size=1, **{**defaults, **changes}
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory, unipixel, davis) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "results"
    evaluate(options(folder, unipixel, davis))
    return folder


class Segmenter:
    """The model alone: `segment` on a few expressions of a video."""

    def __init__(self, unipixel):
        self.model = AutoModelForReferringSegmentation.from_pretrained(unipixel, dtype="auto").eval()
        self.processor = AutoProcessor.from_pretrained(unipixel)
        self.base = self.model.config.pruning_config

    @torch.no_grad()
    def __call__(self, video, expressions, run):
        self.model.config.pruning_config = run.pruning(self.base)
        frames = [video.load_frame(number) for number in range(len(video.frame_names))]
        sentences = [[expression.sentence for expression in expressions]]
        return self.model.segment(**self.processor.segmentation_inputs(videos=[frames], expressions=sentences))

    def masks(self, video, run):
        """Of all expressions, in the passes that the runner makes."""
        parts = [
            video.expressions[start : start + MAX_VIDEO_DIALOGUES]
            for start in range(0, len(video.expressions), MAX_VIDEO_DIALOGUES)
        ]
        return torch.cat([self(video, part, run).masks[0] for part in parts]).numpy()


@pytest.mark.parametrize("name", matrix(["ref-davis17", "mevis"], "ref-davis17".__eq__))
def test_records_are_what_the_masks_say(name, swept, davis, unipixel, tmp_path):
    if name == "mevis":
        source, split = write_mevis(tmp_path / "mevis"), "valid_u"
        methods = ["none", "litelvlm", "fastv:layer=1"]  # one that prunes inside the language model, too
        args = options(tmp_path / "results", unipixel, source, dataset=name, split=split, methods=methods)
        evaluate(args)
        folder = tmp_path / "results"
    else:
        source, split, folder, args = davis, "valid", swept, options(swept, unipixel, davis)
    segment, table, content = Segmenter(unipixel), records(folder).to_pandas(), results(folder)
    scores = {}
    for video in load_split(name, split, source):
        for run in plan_runs(args):
            masks = segment.masks(video, run)
            for expression, predicted in zip(video.expressions, masks, strict=True):
                meant = [expression.mask(frame) for frame in range(len(predicted))]
                score = score_frames(predicted, meant)
                scores.setdefault(run.run_id, []).append(score)
                [row] = table[
                    (table["run_id"] == run.run_id)
                    & (table["video_id"] == video.video_id)
                    & (table["expression_id"] == expression.expression_id)
                ].to_dict("records")
                assert (row["j"], row["f"], row["j_and_f"]) == (score.j, score.f, score.j_and_f)
                assert row["num_frames"] == len(meant) and row["sentence"] == expression.sentence
                assert ("empty_prediction" in row["flags"]) == (not predicted.any())
    assert len(table) == sum(map(len, scores.values()))
    for run in content["runs"]:
        expected = summarize_videos(scores[run["run_id"]])
        assert run["metrics"] == pytest.approx({metric: expected[metric] for metric in ("j_and_f", "j", "f")})
    assert len({run["metrics"]["j_and_f"] for run in content["runs"]}) == len(content["runs"]) >= 3  # they do differ
    kept = [run["num_kept_mean"] for run in content["runs"]]
    assert kept[1:] == [pytest.approx(kept[0] / 10, abs=1)] * (len(kept) - 1)


def test_what_the_results_say(swept):
    content = results(swept)
    assert content["dataset"]["kind"] == "videos" and content["dataset"]["num_videos"] == len(VIDEOS)
    assert content["dataset"]["num_expressions"] == len(VIDEOS) * NUM_EXPRESSIONS
    assert content["dataset"]["counts_match"] is False
    none, litelvlm, random = content["groups"]
    assert random["num_seeds"] == 2 and none["retention"]["j_and_f"] == 1.0
    table = records(swept).to_pandas()
    rows = table[table["run_id"] == "none"]
    for metric in ("j_and_f", "j", "f"):
        # Videos are drawn, not expressions.
        expected = bootstrap_interval(mean(rows[metric].to_numpy(), rows["video_id"].to_numpy()))
        assert none["intervals"][metric] == [expected.low, expected.high]
    expressions = bootstrap_interval(mean(rows["j"].to_numpy(), np.arange(len(rows))))
    assert none["intervals"]["j"] != [expressions.low, expressions.high]
    assert {(entry["method"], entry["baseline"], entry["metric"]) for entry in content["comparisons"]} == {
        ("litelvlm", "random", metric) for metric in ("j_and_f", "j", "f")
    }
    stages = litelvlm["timings_ms"]
    assert stages["vision"] > 0 and stages["mask_encoder"] > 0 and stages["mask_decoder"] > 0
    text = (swept / "results.md").read_text()
    assert "| tokens | method | seeds | J&F | 95 % | J | 95 % | F | 95 % | J&F retained |" in text
    assert "bootstrap over videos" in text and "3 videos, 24 expressions" in text


@pytest.mark.slow
def test_a_run_alone_gives_what_it_gives_in_a_sweep(swept, davis, unipixel, tmp_path):
    evaluate(options(tmp_path, unipixel, davis, methods=["random"], seeds=[1]))
    table = records(swept)
    assert records(tmp_path).equals(table.filter([row == "random@0.1#1" for row in table["run_id"].to_pylist()]))


@pytest.mark.slow
def test_a_sweep_encodes_each_frame_once(davis, unipixel, tmp_path):
    args = options(tmp_path, unipixel, davis)
    segmenter = runner.load_segmenter(args, torch.device("cpu"))
    seen = {"tower": 0, "sam": 0}
    model = segmenter.model
    for name, module in (("tower", model.model.visual.patch_embed), ("sam", model.mask_model.vision_encoder)):
        module.register_forward_pre_hook(
            lambda module, args, name=name: seen.update({name: seen[name] + len(args[0])})
        )
    split = load_split("ref-davis17", "valid", davis)
    task, runs = choose_task(split, args, takes_videos=True), plan_runs(args)
    for some in (runs[:1], runs):
        measured = measuring.measure_video(split[2], segmenter, some, "all", task)
        assert len(measured.rows) == len(some) * NUM_EXPRESSIONS
    assert seen["sam"] == 2 * VIDEOS["cat"]  # four runs need as much as one
    grid = segmenter.encode([split[2].load_frame(n) for n in range(4)], split[2].expressions).parts[0][
        "video_grid_thw"
    ]
    assert seen["tower"] == 3 * int(grid.prod())


@pytest.mark.slow
@torch.no_grad()
def test_four_annotators(davis, unipixel, tmp_path):
    args = options(tmp_path, unipixel, davis, protocol="annotators", methods=["none", "random"], seeds=[0])
    evaluate(args)
    segment, table = Segmenter(unipixel), records(tmp_path).to_pandas()
    for run in plan_runs(args):
        by_annotator = [[] for _ in range(4)]
        for video in load_split("ref-davis17", "valid", davis):
            targets = [video.load_objects(frame) for frame in range(len(video.frame_names))]
            for annotator, group in enumerate(annotators(video)):
                logits = segment(video, list(group.values()), run).mask_logits[0]
                predicted = [
                    merge_objects({item: logits[place, frame].sigmoid().numpy() for place, item in enumerate(group)})
                    for frame in range(len(targets))
                ]
                scores = score_unsupervised(predicted, targets)
                by_annotator[annotator] += scores
                for expression, score in zip(group.values(), scores, strict=True):
                    [row] = table[
                        (table["run_id"] == run.run_id)
                        & (table["video_id"] == video.video_id)
                        & (table["expression_id"] == expression.expression_id)
                    ].to_dict("records")
                    assert (row["j"], row["f"]) == (score.j, score.f)
        summary = summarize_annotators(by_annotator)
        [found] = [entry for entry in results(tmp_path)["runs"] if entry["run_id"] == run.run_id]
        assert found["metrics"] == pytest.approx({name: summary[name] for name in ("j_and_f", "j", "f")})
    assert results(tmp_path)["dataset"]["protocol"] == "annotators"


def test_below_one_half_a_pixel_is_nobodys():
    """As in ReferFormer's code; without that rule, 0.3 would beat the background's 0.1."""
    assert merge_objects({"1": np.array([[0.3, 0.5, 0.6]]), "2": np.array([[0.2, 0.4, 0.7]])}).tolist() == [[0, 1, 2]]


@pytest.fixture
def hidden(tmp_path) -> Path:
    return write_referring(tmp_path / "hidden", with_masks=False)


def read_archive(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        return {name: np.array(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}


@pytest.mark.slow
def test_masks_for_a_server(hidden, unipixel, tmp_path):
    args = options(tmp_path / "out", unipixel, hidden, dataset="refer-youtube-vos", methods=["none", "litelvlm"])
    evaluate(args)
    content = results(tmp_path / "out")
    names = [run["submission"] for run in content["runs"]]
    assert names == ["submission-none.zip", "submission-litelvlm-0.1.zip"]
    segment = Segmenter(unipixel)
    for run, name in zip(plan_runs(args), names, strict=True):
        pictures = read_archive(tmp_path / "out" / name)
        assert len(pictures) == sum(VIDEOS.values()) * NUM_EXPRESSIONS
        for video in load_split("refer-youtube-vos", "valid", hidden):
            for expression, masks in zip(video.expressions, segment.masks(video, run), strict=True):
                for frame, mask in zip(video.frame_names, masks, strict=True):
                    picture = pictures[f"Annotations/{video.video_id}/{expression.expression_id}/{frame}.png"]
                    np.testing.assert_array_equal(picture, mask * np.uint8(255))
    assert content["groups"][0]["metrics"] == {} and content["comparisons"] == []
    assert content["runs"][0]["timings_ms"]["total"] > 0
    assert records(tmp_path / "out").column_names == [
        "run_id", "video_id", "expression_id", "sentence", "num_frames", "flags",
    ]  # fmt: skip
    assert "For the server: `submission-none.zip`" in (tmp_path / "out" / "results.md").read_text()


def test_a_part_of_a_split_is_no_submission(hidden, unipixel, tmp_path):
    args = options(tmp_path / "out", unipixel, hidden, dataset="refer-youtube-vos", methods=["none"], max_images=2)
    assert "submission" not in evaluate(args)["runs"][0]
    assert not list((tmp_path / "out").glob("*.zip"))


# --- interrupted, damaged, wrong ---


@pytest.mark.slow
def test_goes_on_where_it_was_stopped(swept, davis, unipixel, tmp_path, monkeypatch):
    measure, measured = measuring.measure_video, []

    def stops_at_the_second(video, *rest):
        measured.append(video.video_id)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(video, *rest)

    monkeypatch.setattr(measuring, "measure_video", stops_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(options(tmp_path, unipixel, davis))
    evaluate(options(tmp_path, unipixel, davis))
    assert measured == ["apple", "boat", "boat", "cat"]
    assert_same(tmp_path, swept)
    with pytest.raises(OtherConfigurationError, match="protocol: there 'all', now 'annotators'"):
        evaluate(options(tmp_path, unipixel, davis, protocol="annotators"))


@pytest.mark.slow
def test_a_missing_frame_stops_or_counts(swept, unipixel, tmp_path):
    source = write_referring(tmp_path / "davis")
    frame = source / "valid" / "JPEGImages" / "cat" / "00002.jpg"
    frame.unlink()
    stopping = options(tmp_path / "out", unipixel, source)
    with pytest.raises(UnreadableImageError, match=r"video cat, frame 00002 cannot be read.*00002\.jpg does not"):
        evaluate(stopping)
    assert len(list((tmp_path / "out" / "batches").iterdir())) == 2
    evaluate(dataclasses.replace(stopping, on_unreadable="continue"))
    table, whole = records(tmp_path / "out").to_pandas(), records(swept).to_pandas()
    is_missing = (whole["video_id"] == "cat").to_numpy()
    assert len(table) == len(whole) and table[~is_missing].equals(whole[~is_missing])
    missing = table[is_missing]
    assert (missing[["j", "f", "j_and_f"]] == 0).all(axis=None)
    assert missing["flags"].map(list).tolist() == [["unreadable_image"]] * len(missing)
    assert results(tmp_path / "out")["dataset"]["flags"]["unreadable_image"] == len(missing)
    run = results(tmp_path / "out")["runs"][0]
    assert run["metrics"]["j"] == pytest.approx(table[table["run_id"] == "none"]["j"].mean())


@pytest.mark.slow
def test_damaged_masks_count_as_unreadable_too(unipixel, tmp_path):
    source = write_referring(tmp_path / "davis")
    (source / "valid" / "Annotations" / "boat" / "00000.png").write_bytes(b"no picture")
    for protocol in ("all", "annotators"):
        args = options(tmp_path / protocol, unipixel, source, methods=["none"], protocol=protocol)
        with pytest.raises(UnreadableImageError, match="the objects of video boat, frame 00000"):
            evaluate(args)
        evaluate(dataclasses.replace(args, on_unreadable="continue"))
        assert results(tmp_path / protocol)["dataset"]["flags"]["unreadable_image"] == NUM_EXPRESSIONS


@pytest.mark.slow
def test_a_submission_with_an_unreadable_frame_has_empty_masks(hidden, unipixel, tmp_path):
    (hidden / "valid" / "JPEGImages" / "cat" / "00000.jpg").unlink()
    args = options(tmp_path / "out", unipixel, hidden, dataset="refer-youtube-vos", methods=["none"])
    evaluate(dataclasses.replace(args, on_unreadable="continue"))
    pictures = read_archive(tmp_path / "out" / "submission-none.zip")
    cat = [picture for name, picture in pictures.items() if "/cat/" in name]
    assert len(cat) == VIDEOS["cat"] * NUM_EXPRESSIONS
    assert all(picture.shape == SIZE and not picture.any() for picture in cat)
    assert any(picture.any() for picture in pictures.values())
    # Nothing of a video can be read: the size of its masks is not known.
    shutil.rmtree(hidden / "valid" / "JPEGImages" / "boat")
    with pytest.raises(UnreadableImageError, match="video boat"):
        evaluate(dataclasses.replace(args, output_dir=str(tmp_path / "other"), on_unreadable="continue"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "glamm"}, "`protocol` 'glamm' is for images, `dataset` 'ref-davis17' holds videos"),
        ({"split": "valid_u"}, "`split` of ref-davis17 must be one of train, valid, got 'valid_u'"),
        (
            {"dataset": "refshapes", "split": "test", "max_images": 1, "protocol": "annotators"},
            "is for Ref-DAVIS17, `dataset` 'refsh",
        ),
    ],
)
def test_protocols_and_splits_that_do_not_fit(changes, message, davis, unipixel, tmp_path):
    args = options(tmp_path / "out", unipixel, davis, **changes)
    if changes.get("dataset"):
        args = dataclasses.replace(args, source=None)
    with pytest.raises(ValueError, match=message):
        evaluate(args)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_no_masks_and_no_server(hidden, unipixel, tmp_path):
    with pytest.raises(ValueError, match="has no masks to compare with, and no server scores 'ref-davis17'"):
        evaluate(options(tmp_path / "out", unipixel, hidden))
    with pytest.raises(ValueError, match="`protocol` 'annotators' needs pictures of all objects, .*hidden has none"):
        evaluate(options(tmp_path / "out", unipixel, hidden, protocol="annotators"))
    with pytest.raises(ValueError, match="needs pictures of all objects, .*mevis has none"):
        mevis = write_mevis(tmp_path / "mevis")
        evaluate(options(tmp_path / "out", unipixel, mevis, dataset="mevis", split="valid_u", protocol="annotators"))
    davis = write_referring(tmp_path / "davis") / "meta_expressions" / "valid" / "meta_expressions.json"
    content = json.loads(davis.read_text())
    del content["videos"]["apple"]["expressions"]["7"]
    davis.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Video apple has 7 expressions that are not four per object"):
        evaluate(options(tmp_path / "out", unipixel, tmp_path / "davis", protocol="annotators"))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the miniature data sets are not part of the project")
@pytest.mark.parametrize(("name", "split"), [("refer-youtube-vos", "valid"), ("mevis", "valid_u")])
def test_real_layouts(name, split, unipixel, tmp_path, monkeypatch):
    source = SHARED / "data" / "rvos"
    args = options(tmp_path, unipixel, source, dataset=name, split=split, methods=["none"])
    # Of the two videos the short one: 5 frames.
    short = dataclasses.replace(load_split(name, split, source), rows=load_split(name, split, source).rows[1:])
    monkeypatch.setattr(runner, "open_split", lambda args: short)
    evaluate(args)
    video = short[0]
    table = records(tmp_path).to_pandas()
    assert table["expression_id"].tolist() == [expression.expression_id for expression in video.expressions]
    assert (table["num_frames"] == len(video.frame_names)).all() and table["j"].between(0, 1).all()


@pytest.mark.slow
def test_two_processes_give_the_same_records(swept, davis, unipixel, tmp_path):
    printed = evaluate_in_processes(options(tmp_path / "2", unipixel, davis), processes=2)
    assert_same(tmp_path / "2", swept)
    assert "J&F" in printed


@pytest.mark.slow
def test_killed_at_several_moments(swept, davis, unipixel, tmp_path):
    [run] = warm_python.run(["-m", "tests.support.kill_evaluations", tmp_path, 6, unipixel, davis])
    assert run.returncode == 0, run.stderr
    attempts = [line for line in map(json.loads, run.stdout.splitlines()) if "killed" in line]
    assert sum(attempt["killed"] for attempt in attempts) == 6


def test_what_the_tiny_videos_hold():
    assert set(np.unique(objects("cat", 0))) == {0, 1, 255} and set(np.unique(objects("cat", 1))) == {0, 1, 2, 255}
