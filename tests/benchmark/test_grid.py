"""The benchmark as a whole: what runs when, what a result holds, what is refused before anything is built."""

import json
import re

import pytest
import torch

from tests.support.matrix import matrix
from tests.support.tiny_presets import TINY
from transformers_litelvlm.benchmark import side_by_side, timing
from transformers_litelvlm.benchmark.grid import Grid, default_budgets, describe, run_benchmark
from transformers_litelvlm.benchmark.plot import figure_of, plot
from transformers_litelvlm.benchmark.progress import Progress
from transformers_litelvlm.benchmark.report import number, render, table, write_benchmark
from transformers_litelvlm.benchmark.side_by_side import Effort
from transformers_litelvlm.benchmark.subjects import Preset
from transformers_litelvlm.pruning import UniformPruner, register_pruner, registry


QUICK = Effort(runs=2, warmup=0, new_tokens=2)


@pytest.fixture(scope="module")
def result():
    return run_benchmark("tiny", Grid(methods=["litelvlm", "tome"], budgets=[16, 3], sentences=[2]), effort=QUICK)


@pytest.mark.slow
def test_every_point_is_measured_or_excused(result):
    assert [(point["method"], point["budget"]) for point in result["points"]] == [
        ("litelvlm", 16),
        ("litelvlm", 3),
        ("tome", 16),
        ("tome", 3),
    ]
    json.loads(json.dumps(result))
    assert result["parameters"] > 10**5 and result["has_masks"] and result["versions"]["torch"] == torch.__version__
    assert result["skipped"] == []


@pytest.mark.parametrize("side", ["unpruned", "pruned"])
def test_stages_that_contradict_the_whole_are_remarked_on(result, side):
    """Of a machine that was busy: more than a tenth of the time end to end is missing, or too much."""
    quiet = json.loads(json.dumps({**result, "points": result["points"][:1]}))
    [point] = quiet["points"]
    for name, stages in point["stages"].items():
        whole = point["end_to_end"][name]["median_ms"] = 200.0
        stages |= {"sum_ms": 190.0, "unexplained_ms": whole - 190.0}
    assert "do not add up" not in render(quiet)
    for total in (170.0, 230.0):
        point["stages"][side] |= {"sum_ms": total, "unexplained_ms": 200.0 - total}
        [remark] = [line for line in render(quiet).splitlines() if "do not add up" in line]
        assert f"{side} {total:.0f} ms of 200 ms end to end" in remark and "busy" in remark
        assert remark.count(" end to end") == 1


def test_the_numbers_of_a_point_fit_together(result):
    point = result["points"][0]
    whole, flops = point["end_to_end"], point["flops"]
    assert whole["speedup"] == pytest.approx(whole["unpruned"]["median_ms"] / whole["pruned"]["median_ms"])
    assert flops["bound"] == flops["unpruned"] / flops["pruned"] > 1
    assert flops["share_of_bound"] == pytest.approx(whole["speedup"] / flops["bound"])
    for side in ("unpruned", "pruned"):
        stages = point["stages"][side]
        assert sum(stage["flops"] for stage in stages["stages"].values()) == flops[side]
        assert stages["sum_ms"] + stages["unexplained_ms"] == pytest.approx(whole[side]["median_ms"])
        assert len(whole[side]["all_ms"]) == 2 and whole[side]["min_ms"] <= whole[side]["max_ms"]
    chosen = [point["stages"]["pruned"]["stages"][name]["median_ms"] for name in side_by_side.SELECTOR]
    assert point["selector"]["share_of_unpruned"] == pytest.approx(sum(chosen) / whole["unpruned"]["median_ms"])
    assert not point["selector"]["includes_vision_tower"] and result["points"][2]["selector"]["includes_vision_tower"]
    memory = point["memory"]
    # 36 + 64 + 36 + 32 tokens, 18 layers, keys and values of 2 heads of 16 in float32; 48 tokens less.
    assert memory["unpruned"]["cache_bytes"] == 168 * 18 * 2 * 32 * 4
    assert memory["pruned"]["cache_bytes"] == 120 * 18 * 2 * 32 * 4
    assert memory["pruned"]["prefill_bytes"] < memory["unpruned"]["prefill_bytes"]
    assert memory["unpruned"]["prefill_bytes"] < memory["unpruned_with_hidden_states"]["prefill_bytes"]
    assert memory["unpruned"]["whole_bytes"] >= memory["unpruned"]["prefill_bytes"]
    assert set(point["decode_ms_per_token"]) == {"unpruned", "pruned"}
    assert point["against_one_by_one"]["speedup"] > 0


class Told(Progress):
    """Writes down what it is told."""

    def __init__(self):
        self.told, self.runs, self.reached_at, self.expected = [], 0, [], None

    def says(self, message):
        self.told.append(message)

    def expects(self, runs, seconds_of_one, seconds):
        assert self.expected is None
        self.told.append("expected")
        self.expected = (runs, seconds_of_one, seconds)

    def ran(self, runs=1):
        self.told.append("ran")
        self.runs += runs

    def reached(self, runs):
        self.reached_at.append((self.runs, runs))


@pytest.mark.parametrize(("warmup", "sentences"), matrix([(0, [1]), (2, [3])], (0, [1]).__eq__))
def test_progress(warmup, sentences):
    """The duration is said before anything is measured, and every run of the model counts, as many as were announced;
    what is skipped counts as done."""
    progress, grid = Told(), Grid(methods=["litelvlm", "sparsevlm", "random"], budgets=[16], sentences=sentences)
    effort = Effort(runs=2, warmup=warmup, new_tokens=2)
    result = run_benchmark("tiny", grid, effort=effort, progress=progress)
    assert [point["method"] for point in result["skipped"]] == ["sparsevlm"]
    assert progress.told[:4] == ["building tiny in float32", "ran", "ran", "expected"]
    runs, seconds_of_one, seconds = progress.expected
    # Two of them are done; and what the new tokens take, which may be too little to see.
    assert seconds > 0.999 * (runs - 2) * seconds_of_one
    (ran, first), (_, second), (ran_at_end, third) = progress.reached_at
    assert ran == first and third == runs
    of_last = ran_at_end - progress.reached_at[1][0]
    assert of_last == third - second < first, "of the unpruned model, some things are measured once"
    in_stage = [place for place, message in enumerate(progress.told) if message.endswith("end to end")]
    timed = 2 * (max(0, warmup - 1) + 2)  # a run that counted operations was the first one for warm-up
    assert (
        progress.told[in_stage[0] + 1 :][:timed] == ["ran"] * timed and progress.told[in_stage[0] + 1 + timed] != "ran"
    )


def test_the_estimate_grows_with_what_is_asked_for():
    def expected(**grid):
        progress = Told()
        effort = Effort(runs=1, warmup=0, parts=[])
        run_benchmark("tiny", Grid(budgets=[16], **grid), effort=effort, progress=progress)
        runs, seconds_of_one, seconds = progress.expected
        return runs, seconds / seconds_of_one

    runs, seconds = expected()
    assert (runs, seconds) == (4, pytest.approx(2)), "half of them were made to know"
    assert expected(batch_sizes=[1, 2]) == (8, pytest.approx(4 + 2 * 4 - 2))
    runs, seconds = expected(dtypes=["float32", "bfloat16"])
    assert runs == 8 and seconds > 6, "and another model is built"


def test_the_estimate_counts_new_tokens():
    """They are most of the time of a small model."""

    def expected(new_tokens):
        progress, effort = Told(), Effort(runs=1, warmup=0, new_tokens=new_tokens, parts=["decode"])
        run_benchmark("tiny", Grid(budgets=[16]), effort=effort, progress=progress)
        runs, seconds_of_one, seconds = progress.expected
        return seconds - runs * seconds_of_one

    assert 5 * expected(1) < expected(40)


@pytest.fixture(scope="module")
def quantized():
    pytest.importorskip("torchao")
    pytest.importorskip("bitsandbytes")
    grid = Grid(budgets=[16, 3], quantizations=["int4", "none", "int8"])
    return run_benchmark("tiny", grid, effort=Effort(runs=1, warmup=0, parts=["stages", "memory"]))


@pytest.mark.slow  # the bytes and the refusals are tested in tests/models/test_quantization.py
def test_every_quantization_is_measured_pruned_and_unpruned(quantized):
    points = quantized["points"]
    assert quantized["skipped"] == []
    assert [(point["quantization"], point["budget"]) for point in points] == [
        (name, budget) for name in ("int4", "none", "int8") for budget in (16, 3)
    ]
    assert json.loads(json.dumps(quantized))["points"] == points
    four, none, eight = points[::2]
    # Of torchao 0.16 int8 scales take more than in later releases.
    assert four["weight_bytes"] < eight["weight_bytes"] < 0.58 * none["weight_bytes"]
    for one, other in ((four, none), (eight, none)):
        # The counter does not see the products of bitsandbytes: these are those of the model before.
        assert (
            one["flops"]["unpruned"] == other["flops"]["unpruned"] and one["flops"]["bound"] == other["flops"]["bound"]
        )
        stages = [point["stages"]["pruned"]["stages"]["LLM prefill"]["flops"] for point in (one, other)]
        assert stages[0] == stages[1] > 0
        for side in ("unpruned", "pruned"):
            sizes = one["memory"][side]
            # 36 + 64 + 36 tokens less 48, 18 layers, keys and values of 2 heads of 16: a cache is not quantized.
            assert sizes["cache_bytes"] == (136 - 48 * (side == "pruned")) * 18 * 2 * 32 * 4
            assert sizes["whole_bytes"] >= sizes["prefill_bytes"] > 0
        assert one["memory"]["pruned"]["prefill_bytes"] < one["memory"]["unpruned"]["prefill_bytes"]


@pytest.mark.slow  # the bytes and the refusals are tested in tests/models/test_quantization.py
def test_quantizations_stand_side_by_side_in_the_report(quantized, tmp_path):
    text = render(quantized, max_details=0)
    lines = text[text.index("## Quantization") :].splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert rows[0][6:10] == [
        "weights MB",
        "activations MB",
        "weights + activations MB",
        "share of unpruned, unquantized",
    ]
    assert [(row[5], row[1], row[0]) for row in rows[2:]] == [
        (name, tokens, "-" if tokens == "64" else "litelvlm")
        for name in ("int4", "none", "int8")
        for tokens in ("64", "16", "3")
    ]
    none, eight = rows[5], rows[8]
    assert none[9] == "100.0%"
    point, whole = quantized["points"][4], quantized["points"][2]
    both = [one["weight_bytes"] + one["memory"]["unpruned"]["whole_bytes"] for one in (point, whole)]
    assert eight[9] == f"{both[0] / both[1]:.1%}" and float(eight[8]) == pytest.approx(both[0] / 1e6, rel=0.01)
    assert "16 of 64 tokens, batch 1, 1 sentence, float32, int4" in render(quantized)
    write_benchmark(quantized, tmp_path)
    from PIL import Image

    with Image.open(tmp_path / "benchmark.png") as picture:
        assert picture.width > 2000, "three panels"


def test_pruned_and_unpruned_take_turns(monkeypatch):
    runs = []
    original = side_by_side.SideBySide._end_to_end

    def recorded(self, pruning):
        runs.append("-" if pruning is None else str(pruning.budget))
        return original(self, pruning)

    def timed(run):  # as on an idle machine, where it takes less than a second
        run()
        return 0.1

    monkeypatch.setattr(side_by_side.SideBySide, "_end_to_end", recorded)
    monkeypatch.setattr(side_by_side, "time_once", timed)
    effort = Effort(runs=3, warmup=1, parts=())
    result = run_benchmark("tiny", Grid(budgets=[16, 8]), effort=effort)
    # Counted, which is the warm-up (unpruned once for all), and timed for the estimate, the model being so small;
    # three pairs of which the second is turned around.
    assert runs == ["-", "-", "16", "16", *["-", "16", "16", "-", "-", "16"], "8", *["-", "8", "8", "-", "-", "8"]]
    assert all("stages" not in point and "memory" not in point for point in result["points"])
    # Nothing of quantization appears unless it is asked for.
    assert "uantiz" not in render(result) and not {"quantization", "weight_bytes"} & set(result["points"][0])


def test_dtypes_and_batches_are_all_measured():
    effort = Effort(runs=1, warmup=0, parts=())
    result = run_benchmark(
        "tiny", Grid(budgets=[8], batch_sizes=[1, 2], dtypes=["float32", "bfloat16"]), effort=effort
    )
    assert [(p["dtype"], p["batch_size"]) for p in result["points"]] == [
        ("float32", 1),
        ("float32", 2),
        ("bfloat16", 1),
        ("bfloat16", 2),
    ]
    one, two = result["points"][:2]
    # All but the positions of SAM's grid, which are computed once.
    assert two["flops"]["pruned"] == pytest.approx(2 * one["flops"]["pruned"], rel=1e-3)


def test_what_a_method_cannot_do_is_said():
    effort = Effort(runs=1, warmup=0, parts=())
    # Six layers of which five make the features: ToMe halves 64 tokens five times at most.
    result = run_benchmark("tiny", Grid(methods=["tome"], budgets=[1]), effort=effort)
    assert (
        result["points"] == [] and "`budget` 1 of 64 visual tokens is not reachable" in result["skipped"][0]["reason"]
    )
    assert "## Not possible" in render(result) and "not reachable" in render(result)


@pytest.mark.parametrize("error", [AttributeError("no such thing"), ValueError(), KeyError("x")])
def test_a_fault_of_somebodys_method_costs_its_points_only(monkeypatch, error):
    class Faulty(UniformPruner):
        def select(self, evidence, budget):
            raise error

    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    register_pruner("faulty")(Faulty)
    effort = Effort(runs=1, warmup=0, parts=())
    result = run_benchmark("tiny", Grid(methods=["faulty", "uniform"], budgets=[16]), effort=effort)
    assert [point["method"] for point in result["points"]] == ["uniform"] and result["is_complete"]
    assert [point["reason"] for point in result["skipped"]] == [registry.explain(error)]
    assert registry.explain(error) in render(result)


def test_our_own_fault_is_no_point_that_is_impossible(monkeypatch):
    monkeypatch.setattr(UniformPruner, "select", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_benchmark("tiny", Grid(methods=["uniform"], budgets=[16]), effort=Effort(runs=1, warmup=0, parts=()))


def test_what_was_kept_is_said_where_the_picture_decides(tmp_path):
    effort = Effort(runs=1, warmup=0, parts=())
    methods = ["trim:adaptive=true", "litelvlm", "fastv"]
    result = run_benchmark("tiny", Grid(methods=methods, budgets=[16]), effort=effort)
    adaptive, fixed, inside = result["points"]
    assert fixed["num_kept_mean"] == inside["num_kept_mean"] == 16 != adaptive["num_kept_mean"]
    lines = render(result).splitlines()
    assert sum(f"16 of 64, kept {adaptive['num_kept_mean']:.4g}" in line for line in lines) == 1
    assert f", kept {adaptive['num_kept_mean']:.4g}, batch 1" in describe(adaptive) and "kept" not in describe(fixed)
    lines = figure_of(result).axes[0].get_lines()
    assert {round(x) for line in lines for x in line.get_xdata() if x > 1} >= {16, round(adaptive["num_kept_mean"])}


@pytest.mark.parametrize("kind", ["glamm", "llava"])
def test_a_dtype_that_overflows_is_said_and_the_others_are_measured(kind):
    class Overflowing(Preset):
        def build(self, dtype, device, seed=0):
            model = super().build(dtype, device, seed)
            if dtype == torch.bfloat16:
                torch.nn.init.constant_(model.model.language_model.layers[0].input_layernorm.weight, torch.inf)
            return model

    tiny = TINY[kind]
    subject = Overflowing(tiny.name, tiny.description, tiny.build_config, tiny.prompt)
    grid, effort = Grid(budgets=[16], dtypes=["bfloat16", "float32"]), Effort(runs=1, warmup=0, parts=())
    result = run_benchmark(subject, grid, effort=effort)
    assert [point["dtype"] for point in result["points"]] == ["float32"] and result["is_complete"]
    assert [point["dtype"] for point in result["skipped"]] == ["bfloat16"]
    assert "not finite" in render(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (Grid(budgets=[16, 64, 99]), r"`budgets` \[64, 99\] leave nothing to prune: a picture has 64 visual tokens"),
        (Grid(quantizations=["none", "int2"]), "`quantization` must be one of none, int8, int4, got 'int2'"),
        (
            Grid(methods=["fastest"]),
            "Unknown pruning `method` 'fastest'. Known methods: anchorprune",
        ),
        (Grid(methods=["fastv:depth=1"]), r"`method_options` \['depth'\] do not exist for the method 'fastv'"),
    ],
)
def test_impossible_grids_are_refused_before_a_model_is_built(monkeypatch, arguments, message):
    monkeypatch.setattr(Preset, "build", lambda *args: pytest.fail("built"))
    with pytest.raises(ValueError, match=message):
        run_benchmark("tiny", arguments)


def test_options_of_a_method_are_measured():
    effort = Effort(runs=1, warmup=0, parts=())
    names = ["fastv:layer=1", "fastv:layer=15"]
    early, late = run_benchmark("tiny", Grid(methods=names, budgets=[16]), effort=effort)["points"]
    assert [early["method"], late["method"]] == names
    assert early["flops"]["bound"] > late["flops"]["bound"] > 1.0


def test_default_budgets_are_those_of_the_paper():
    assert default_budgets(576) == [192, 128, 64] and default_budgets(256) == [85, 57, 28]


def test_the_report_is_a_markdown_table_a_person_can_read(result):
    text = render(result)
    assert text.startswith("# tiny: pruned against unpruned\n") and "How to read this" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines[:6]}) == 1, "every row has the cells of the head"
    [row] = [line for line in lines if re.match(r"\| litelvlm +\| +3 of 64 ", line)]
    point = result["points"][1]
    assert f"{point['end_to_end']['speedup']:.2f}x [" in row and f"{point['flops']['bound']:.2f}x" in row
    assert text.count("| LLM prefill") == 4 and render(result, max_details=1).count("| LLM prefill") == 1
    assert "--output-dir" in render(result, max_details=1)
    assert "(with tower)" in next(line for line in lines if line.startswith("| tome"))


def test_of_one_run_there_is_no_interval_and_only_what_is_there_is_explained():
    effort = Effort(runs=1, warmup=1, parts=())
    text = render(run_benchmark("tiny", Grid(budgets=[16]), effort=effort))
    assert "1 run of each side" in text and re.search(r"\d x? *\[", text.split("How to read")[0]) is None
    explained = ("Roofline bound", "Against stock", "One by one", "Selector", "Unaccounted")
    assert not [name for name in explained if f'"{name}' in text] and '"Of bound"' in text


def test_the_load_is_that_at_the_end(monkeypatch):
    loads = iter([0.5, 7.25])
    monkeypatch.setattr(timing.os, "getloadavg", lambda: (next(loads), 0, 0))
    effort = Effort(runs=1, warmup=0, parts=())
    result = run_benchmark("tiny", Grid(budgets=[16]), effort=effort)
    assert result["load_average"] == 7.25
    text = render({**result, "threads": 2})
    assert "load average at the end 7.2: other programs used the CPU, so measure again, with `--threads 1`" in text
    assert "other programs" not in render({**result, "load_average": 2.5, "threads": 2})
    assert "other programs" not in render({**result, "device": "NVIDIA H200", "threads": 2})
    monkeypatch.delattr(timing.os, "getloadavg")  # as on Windows
    assert timing.load_at_the_end() == {}
    del result["load_average"]
    assert "load average" not in render(result)


def test_tables_and_numbers():
    assert table(["a", "long"], [["x", "-1.5"], ["yy", "20"]]).splitlines() == [
        "| a  | long |",
        "|----|-----:|",
        "| x  | -1.5 |",
        "| yy |   20 |",
    ]
    assert [number(value) for value in (12345.6, 1.234, 0.05, -0.5)] == ["12346", "1.23", "0.050", "-0.5"]


def test_the_files_and_a_picture_that_opens(result, tmp_path):
    from PIL import Image

    write_benchmark(result, tmp_path / "results")
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "benchmark.json",
        "benchmark.md",
        "benchmark.png",
    ]
    assert json.loads((tmp_path / "results" / "benchmark.json").read_text())["points"] == result["points"]
    with Image.open(tmp_path / "results" / "benchmark.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000 and len(picture.convert("RGB").getcolors(10**6)) > 20
    plot({**result, "points": [{k: v for k, v in result["points"][0].items() if k != "stages"}]}, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width < 1000, "without stages there is one panel"


def test_a_picture_that_cannot_be_drawn_leaves_no_files(result, tmp_path, monkeypatch):
    from transformers_litelvlm.benchmark import report

    monkeypatch.setattr(report, "plot", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_benchmark(result, tmp_path / "results")
    assert list(tmp_path.iterdir()) == []
