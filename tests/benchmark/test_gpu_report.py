"""The GPU report: what it measures, keeps when it is stopped, and writes; on a CPU, with tiny models."""

import dataclasses
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from tests.support.second_device import DEVICE as OTHER
from tests.support.second_device import other_device
from tests.support.tiny_presets import TINY
from transformers_litelvlm.benchmark import gpu_report as module
from transformers_litelvlm.benchmark.flops import count_flops
from transformers_litelvlm.benchmark.gpu_page import FILES, page_of, read_report, write_report
from transformers_litelvlm.benchmark.gpu_report import Plan, gpu_report, time_limit
from transformers_litelvlm.benchmark.roofline import Card, RooflineMeter, measure_card
from transformers_litelvlm.benchmark.side_by_side import Effort
from transformers_litelvlm.benchmark.subjects import Preset
from transformers_litelvlm.benchmark.timing import EventStopwatch
from transformers_litelvlm.cli.main import main


CPU = torch.device("cpu")
TINY_PLAN = Plan(
    seconds=3000.0,
    subjects=[TINY["glamm"], TINY["qwen"]],
    batch_sizes=(1,),
    sentences=(1, 3),
    ninths=(3,),
    dtypes=("float32",),
    effort=Effort(runs=1, warmup=0, parts=module.PARTS),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Lines that were said, versions that were kept, and the result."""
    said, kept, start = [], [], time.process_time()
    result = gpu_report(TINY_PLAN, CPU, said.append, lambda result: kept.append(len(result["models"])))
    assert time.process_time() - start < 180  # three minutes, of which nobody else's work is a part
    return said, kept, result


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_whole_report(report, tmp_path):
    said, kept, result = report
    assert result["is_complete"] and kept == [1, 2, 2]
    masks, text = result["models"]
    one, three = masks["points"]
    assert (one["sentences"], three["sentences"]) == (1, 3) and "against_one_by_one" not in one
    assert "against_one_by_one" in three
    assert [point["sentences"] for point in text["points"]] == [1]  # several are worth nothing without masks
    names = ["overlap_masks", "pin_memory, with the copies", "compiled layers", "pruning, compiled layers"]
    assert list(one["switches"]) == names
    assert text["points"][0]["against_stock"]["speedup"] > 0 and "against_stock" not in one
    for point in masks["points"] + text["points"]:
        roofline, flops = point["roofline"], point["flops"]
        assert roofline["bound"] == pytest.approx(roofline["unpruned_ms"] / roofline["pruned_ms"])
        lower = min(roofline["bound"], flops["bound"])
        assert roofline["share_of_lower_bound"] == pytest.approx(point["end_to_end"]["speedup"] / lower)
        assert 1 < roofline["bound"] and 0 < roofline["pruned_ms"]
    assert sum("of the lower one" in line for line in said) == 3

    write_report(result, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert (tmp_path / FILES[2]).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / FILES[1]).read_text()
    assert page == page_of(read_report(tmp_path / FILES[0]))
    assert page.count("\n# ") == 0 and page.startswith("# Speed on cpu") and "3 sentences against one by one" in page
    for words in ("roofline bound", "of lower bound", "compiled layers", "## qwen", "No tests ran"):
        assert words in page, words


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_goals_say_what_was_measured(report):
    _, _, result = report
    masks = dict(result["models"][0], points=[dict(point) for point in result["models"][0]["points"]])
    one, three = masks["points"]
    one.update(roofline={**one["roofline"], "share_of_lower_bound": 0.91})
    three["against_one_by_one"] = {**three["against_one_by_one"], "speedup": 2.4}
    page = page_of({**result, "models": [masks]})
    cells = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    rows = [row[-2] for row in cells if {"90%", "2.5x"} & set(row)]
    assert rows == ["yes", "no"]


def test_the_time_is_over():
    """What began in time is kept; models that nothing is left for are named."""
    said = []
    endless = dataclasses.replace(TINY_PLAN.effort, runs=1_000_000)
    result = gpu_report(dataclasses.replace(TINY_PLAN, seconds=1.5, effort=endless), CPU, said.append)
    assert not result["is_complete"] and [model["model"] for model in result["models"]] == ["tiny", "qwen"]
    assert all(model.get("failed") or not model["is_complete"] for model in result["models"])
    assert "Not complete" in page_of(result)
    assert result["seconds"] < 60


@pytest.fixture(params=["in the foreground", "in the background"])
def ctrl_c(request):
    """What Ctrl-C does: a shell makes jobs in the background ignore it."""
    is_heard = request.param == "in the foreground"
    before = signal.signal(signal.SIGINT, signal.default_int_handler if is_heard else signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("ctrl_c", ["in the foreground"], indirect=True)
def test_ctrl_c_keeps_what_was_measured(ctrl_c):
    """After the first point, as a person would press it."""
    pressed = []

    def says(line):
        if "of the lower one" in line and not pressed:
            pressed.append(line)
            threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
            time.sleep(0.3)

    plan = dataclasses.replace(TINY_PLAN, effort=dataclasses.replace(TINY_PLAN.effort, parts=()))
    result = gpu_report(plan, CPU, says)
    assert result["was_stopped"] and not result["is_complete"] and len(result["models"]) == 1
    [model] = result["models"]
    assert len(model["points"]) == 1 and "was_stopped" not in model


def test_time_limit(ctrl_c):
    before = signal.getsignal(signal.SIGINT)
    over, not_over, start = threading.Event(), threading.Event(), time.monotonic()
    with pytest.raises(KeyboardInterrupt), time_limit(0.05, over):
        threading.Event().wait(20)  # as for a compiler's processes: only a true signal ends it
    assert time.monotonic() - start < 10
    with time_limit(60, not_over):
        pass
    assert over.is_set() and not not_over.is_set()
    assert signal.getsignal(signal.SIGINT) is before


def test_time_limit_is_heard_although_an_exception_is_dropped(ctrl_c):
    """Python only prints what is raised in `__del__`, the first interruption for example."""

    class Slow:
        def __del__(self):
            time.sleep(1.5)

    over = threading.Event()
    dropped = []
    before, sys.unraisablehook = sys.unraisablehook, dropped.append
    try:
        with pytest.raises(KeyboardInterrupt), time_limit(0.2, over):
            Slow()
            threading.Event().wait(20)
    finally:
        sys.unraisablehook = before
    assert over.is_set() and len(dropped) == 1


def test_switches_before_a_failure_are_kept(monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, *args, **kwargs):
            raise RuntimeError("there is no compiler")

    monkeypatch.setattr(torch, "compile", lambda layer, **how: Broken())
    effort = dataclasses.replace(TINY_PLAN.effort, parts=("switches",))
    plan = dataclasses.replace(TINY_PLAN, subjects=[TINY["glamm"]], sentences=(1,), effort=effort)
    result = gpu_report(plan, CPU)
    [point] = result["models"][0]["points"]
    assert list(point["switches"]) == ["overlap_masks", "pin_memory, with the copies"]
    assert "Not measured: switches, RuntimeError: there is no compiler" in page_of(result)


def test_what_fails_is_told_and_the_rest_goes_on(monkeypatch):
    def fails(subject, *args):
        if subject.name == "tiny":
            raise ValueError("The weights need 14.0 GB")
        raise RuntimeError("CUDA error: of a kernel")

    monkeypatch.setattr(module, "run_benchmark", fails)
    result = gpu_report(TINY_PLAN, CPU)
    too_large, broken = result["models"]
    assert too_large["failed"] == "The weights need 14.0 GB" and "of a kernel" in broken["failed"]
    assert not result["is_complete"] and "Not measured to the end: RuntimeError: CUDA error" in page_of(result)


def test_checks(tmp_path):
    test = tmp_path / "test_it.py"
    lines = ["import pytest", "pytestmark = pytest.mark.gpu", "def test_good(): pass"]
    lines += ["def test_bad(): assert 1 == 2", "def test_no(): pytest.skip('needs CUDA')"]
    test.write_text("\n".join(lines))
    result = gpu_report(dataclasses.replace(TINY_PLAN, tests=[str(test)], subjects=[], seconds=2000.0), CPU)
    outcomes = {check["test"].rpartition("::")[2]: check for check in result["checks"]}
    assert {name: check["outcome"] for name, check in outcomes.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_no": "skipped",
    }
    assert "1 == 2" in outcomes["test_bad"]["reason"] and "needs CUDA" in outcomes["test_no"]["reason"]
    page = page_of(result)
    assert "1 passed, 1 failed, 1 skipped" in page
    assert not gpu_report(dataclasses.replace(TINY_PLAN, tests=[str(test)], subjects=[], seconds=0.4), CPU)[
        "is_complete"
    ]
    # As Python ends without pytest.
    (tmp_path / "conftest.py").write_text("import os\nos._exit(1)\n")
    result = gpu_report(dataclasses.replace(TINY_PLAN, tests=[str(test)], subjects=[], seconds=2000.0), CPU)
    assert result["checks"] == [] and not result["is_complete"]


def test_roofline_by_hand():
    """One product that arithmetic takes the time of, one that reading does; a bias and an activation are nothing."""
    wide, narrow = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64, bias=False)
    many, few = torch.randn(256, 64), torch.randn(1, 64)
    card = Card(flops_per_second=1e6, bytes_per_second=1e6)
    meter = RooflineMeter(card)
    with torch.inference_mode():
        flops = count_flops(lambda: (wide(many).relu(), narrow(few)), meter)
    assert flops == 2 * 64 * 64 * 257
    moved = 4 * (64 * 64 + 64 + 64)  # weights, a row, a result
    assert meter.seconds == pytest.approx(2 * 256 * 64 * 64 / 1e6 + moved / 1e6)
    assert moved > 2 * 64 * 64


def test_the_device_is_measured():
    card = measure_card(CPU, torch.float32)
    assert 1e8 < card.flops_per_second < 1e14 and 1e8 < card.bytes_per_second < 1e13


class HostEvent:
    """What an event of a GPU offers, for work that the host does itself."""

    def record(self):
        self.time = time.perf_counter()

    def elapsed_time(self, end):
        return 1000 * (end.time - self.time)


def test_stages_by_events():
    watch = EventStopwatch(HostEvent)
    for seconds, name in ((0.02, "a"), (0.01, "b"), (0.02, "a")):
        with watch.stage(name):
            time.sleep(seconds)
    times = watch.milliseconds
    assert list(times) == ["a", "b"] and 40 <= times["a"] < 400 and 10 <= times["b"] < times["a"]


def test_bad_input(tmp_path, capsys):
    (tmp_path / "x.json").write_text("{}")
    out = str(tmp_path / "out")
    for arguments, message in (
        (["--presets", "glamm-70b"], "Unknown preset 'glamm-70b'"),
        (["--from", str(tmp_path / "x.json")], "is no GPU report"),
        (["--from", str(tmp_path / "y.json")], "y.json: no such file; `litelvlm gpu-report` writes"),
        (["--device", "cuda:7"], "cuda"),
    ):
        assert main(["gpu-report", *arguments, "--output-dir", out]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command(tmp_path):
    """From the shell, all presets of `--presets`, a limit of time, and the page made again from the JSON."""
    command = [sys.executable, "-m", "transformers_litelvlm_command", "gpu-report", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--presets", "tiny", "--minutes", "2", "--runs", "1", "--output-dir", str(tmp_path / "a")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and "bounds:" in done.stderr, done.stderr
    again = ["--from", str(tmp_path / "a" / FILES[0]), "--output-dir", str(tmp_path / "docs")]
    assert main(["gpu-report", *again]) == 0
    assert (tmp_path / "a" / FILES[1]).read_text() == (tmp_path / "docs" / FILES[1]).read_text()


@dataclasses.dataclass(frozen=True)
class Elsewhere(Preset):
    """A preset for the second device of the tests, which has no generator."""

    def build(self, dtype, device, seed=0):
        return super().build(dtype, CPU, seed).to(device)


def test_on_a_device_that_is_not_the_cpu():
    tiny = TINY["qwen"]
    elsewhere = Elsewhere(tiny.name, tiny.description, tiny.build_config, tiny.prompt, tiny.grid)
    effort = Effort(runs=1, warmup=0, parts=("stages",))
    plan = dataclasses.replace(TINY_PLAN, subjects=[elsewhere], sentences=(1,), effort=effort)
    with other_device() as waits:
        result = gpu_report(plan, OTHER)
    [model] = result["models"]
    assert "failed" not in model and len(model["points"]) == 1 and waits
    assert model["points"][0]["stages"]["pruned"]["stages"]["LLM prefill"]["median_ms"] > 0
