"""The command as a whole, `litelvlm methods` and `litelvlm env`."""

import importlib.metadata
import io
import json
import logging
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tests.support.third_party import install, method_code
from transformers_litelvlm import Qwen2_5_VLLiteConfig, Qwen3_5LiteConfig
from transformers_litelvlm.cli import convert, env
from transformers_litelvlm.cli.errors import BadInputError, bad_input, one_line
from transformers_litelvlm.cli.main import SUBCOMMANDS, build_parser, main
from transformers_litelvlm.conversion.families import RECIPES
from transformers_litelvlm.pruning import TokenPruner, list_pruners, register_pruner, registry
from transformers_litelvlm_command import FOREIGN_MESSAGES, _Without


@pytest.mark.parametrize("command", [[], ["segment"], ["methods"], ["env"]])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: litelvlm {' '.join(command)}".strip() in out
    if command != ["methods"] and command != ["env"]:
        assert 'litelvlm segment scene.png "the red circle left of the blue square"' in out


def test_examples_in_the_help_are_understood():
    """Every example of --help parses, so that it cannot name an option that is gone."""
    from transformers_litelvlm.cli import main as main_module

    epilogs = [module.EPILOG or "" for module in (main_module, *SUBCOMMANDS)]
    lines = [line.strip() for epilog in epilogs for line in epilog.splitlines()]
    examples = [line.partition(" | ")[0] for line in lines if line.startswith("litelvlm ")]
    assert len(examples) >= 20
    for example in examples:
        build_parser().parse_args(shlex.split(example)[1:])


def test_the_help_says_where_folders_of_its_examples_come_from():
    """A folder is named as one, and either an example before makes it, or a sentence says what does."""
    from transformers_litelvlm.cli import main as main_module

    for epilog in (module.EPILOG or "" for module in (main_module, *SUBCOMMANDS)):
        for word in re.findall(r"\S*glamm-refseg\S*", epilog):
            assert word.startswith(("./glamm-refseg", "`./glamm-refseg"))
        if "glamm-refseg" in epilog:
            assert "convert glamm MBZUAI/GLaMM-RefSeg ./glamm-refseg" in epilog


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--output-dir", "o", "--method", "fastv"], "--method fastv. Did you mean '--methods'? (see: "),
        (["segment", "a.png", "the star", "--bugdet", "3"], "Did you mean '--budget'? (see: litelvlm segment --help)"),
        (["methods", "--loud"], "unrecognized arguments: --loud (see: litelvlm methods --help)"),
        (["segment", "a.png", "the star", "--method"], "expected one argument (see: litelvlm methods)"),
        (["--loud"], "(see: litelvlm --help)"),
    ],
)
def test_bad_usage_names_the_way_out(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["segment"], ["methods", "--loud"]])
def test_bad_usage_is_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert err.startswith("litelvlm: error: ") and err.count("\n") == 1 and "--help" in err


def test_methods_are_read_from_the_registry(capsys, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_pruner("their_method")
    @dataclass(frozen=True)
    class TheirPruner(TokenPruner):
        """Keeps what they keep. And more words.

        Long text.
        """

        needs_text = True
        source = "Somebody, 2031"
        strength: float = 0.25

        def select(self, evidence, budget):
            raise NotImplementedError

    assert main(["methods", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert [method["name"] for method in known["methods"]] == list_pruners()
    theirs = next(method for method in known["methods"] if method["name"] == "their_method")
    assert theirs["what"] == "Keeps what they keep" and theirs["needs_text"] and theirs["source"] == "Somebody, 2031"
    assert theirs["options"] == {"strength": 0.25}
    assert known["presets"]["fast"]["retention_ratio"] == pytest.approx(1 / 9)
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("their_method"))
    assert re.split("  +", row)[1:4] == [f"module {__name__}", "yes", "Somebody, 2031"]
    assert 'similarity="dot"' in table and "  fast: retention_ratio=0.1111" in table


def test_methods_say_who_provides_them(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(registry, "_LOADED", {})
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "good_dist", "of_package = cli_good", cli_good=method_code("of_package"))
    install(tmp_path, "bad_dist", "of_nobody = cli_bad", cli_bad="import no_such_library")
    (tmp_path / "mine.py").write_text(method_code("of_file"))
    arguments = ["methods", "--import", str(tmp_path / "mine.py")]
    assert main([*arguments, "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    providers = {method["name"]: method["provided_by"] for method in known["methods"]}
    expected = {"of_file": f"--import {tmp_path / 'mine.py'}", "of_package": "good_dist 1.2"}
    assert providers == {**dict.fromkeys(providers, "bundled"), **expected}
    reason = "ModuleNotFoundError: No module named 'no_such_library'"
    assert known["broken"] == [{"entry_point": "of_nobody", "distribution": "bad_dist 1.2", "reason": reason}]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert re.search(r"^of_package +good_dist 1\.2 +no ", table, re.MULTILINE)
    assert f"\n  of_nobody of bad_dist 1.2: {reason}\n" in table


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "PICTURE", "a star", "--output", "out"],
        *(
            ["evaluate", "--output-dir", "out"],
            ["analyze", "--output-dir", "out"],
            ["calibrate", "--output-dir", "out"],
        ),
        ["benchmark", "tiny"],
        ["card", "folder", "--results", "results.json"],
        ["methods"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_sub_command_that_uses_methods_imports(capsys, monkeypatch, tmp_path, picture, arguments):
    monkeypatch.chdir(tmp_path)
    words = [picture if word == "PICTURE" else word for word in arguments]
    if words[0] in ("evaluate", "analyze", "calibrate"):
        words += ["--processes", "1"]
    assert main([*words, "--import", "absent.py"]) == 2
    assert capsys.readouterr().err.startswith("litelvlm: error: `--import absent.py`: there is no file /")


def test_a_fault_of_a_third_party_method_is_theirs(capsys, monkeypatch, tmp_path, picture, tiny_checkpoint):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sound.py").write_text(method_code("sound"))
    (tmp_path / "faulty.py").write_text(method_code("faulty").replace("torch.arange(budget)", "budget.shape"))
    for name, code in (("sound", 0), ("faulty", 2)):
        arguments = ["segment", picture, "the red circle", "--model", tiny_checkpoint, "--budget", "4"]
        assert main([*arguments, "--import", f"{name}.py", "--method", name]) == code
    captured = capsys.readouterr()
    assert "visual tokens kept: 4 of 16 (25%), method sound" in captured.out
    assert "a pruning method that is not part of litelvlm, from --import faulty.py." in captured.err
    assert "This is a fault of litelvlm" not in captured.err


def test_methods_at_a_budget(capsys, tiny_checkpoint):
    assert main(["methods", "--budget", "192"]) == 0
    table = capsys.readouterr().out.partition(
        "\nAT BUDGET 192 of 576 visual tokens of LLaVA 1.5 7B, 32 language model layers, 23 vision"
    )[2]
    rows = {line.split()[0]: line.split()[1:] for line in table.partition("\n\n")[0].splitlines()[2:]}
    assert sorted(rows) == list_pruners()
    assert rows.pop("none") == ["576", "576", "8.5", "TFLOPs,", "100.0%"]
    # In layers 0 and 1 all 576, in 30 layers 192.
    assert rows.pop("fastv") == ["192", "216", "3.67", "TFLOPs,", "43.2%"]
    # 16 layers with all 576, 16 with 192: what leaves the caches of earlier layers was computed on before.
    assert rows.pop("ivc_prune")[:2] == ["192", "384"]
    # The authors' table for 192, counted by what layers compute on.
    assert rows.pop("sparsevlm")[:2] == ["113", "206.5"]
    assert all(row == ["192", "192", "3.35", "TFLOPs,", "39.4%"] for row in rows.values())
    # Two layers of the tiny tower halve 16 tokens twice.
    assert main(["methods", "--budget", "3", "--model", tiny_checkpoint]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("tome: not reachable: `budget` 3 of 16") and "4 to 16 are" in line for line in lines)
    assert any(line.split() == ["tome", "not", "reachable"] for line in lines)
    assert any(line.split()[:3] == ["uniform", "3", "3"] for line in lines)
    assert main(["methods", "--budget", "3", "--model", tiny_checkpoint, "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["sizes"] == {"num_tokens": 16, "num_layers": 2, "num_tower_layers": 2}
    counted = {method["name"]: method["at_budget"] for method in known["methods"]}
    assert counted["trim"]["retained"] == counted["trim"]["per_layer"] == 3 and counted["tome"]["retained"] is None
    assert "`layer` must be below 2" in counted["fastv"]["unreachable"] and counted["fastv"]["prefill_flops"] is None
    assert main(["methods", "--budget", "3", "--model", tiny_checkpoint, "--json", "--text-tokens", "6"]) == 0
    fewer = json.loads(capsys.readouterr().out)
    assert fewer["text_tokens"] == 6
    assert fewer["methods"][0]["at_budget"]["prefill_ratio"] < known["methods"][0]["at_budget"]["prefill_ratio"] < 1


def test_methods_of_a_model_whose_images_differ(capsys, tmp_path):
    Qwen2_5_VLLiteConfig(text_config={"num_hidden_layers": 28}).save_pretrained(tmp_path)
    assert main(["methods", "--budget", "100", "--model", str(tmp_path)]) == 2
    assert "Say it with --visual-tokens" in capsys.readouterr().err
    assert main(["methods", "--model", str(tmp_path)]) == 2  # what it has would not be shown
    assert "are for --budget K" in capsys.readouterr().err
    arguments = ["methods", "--budget", "100", "--model", str(tmp_path), "--visual-tokens", "400", "--json"]
    assert main(arguments) == 0
    counted = {method["name"]: method["at_budget"] for method in json.loads(capsys.readouterr().out)["methods"]}
    assert counted["visionzip"]["retained"] == 100 and "no class token" in counted["tome"]["unreachable"]
    assert counted["fastv"]["per_layer"] == pytest.approx((2 * 400 + 26 * 100) / 28)


def test_methods_of_a_model_with_recurrent_layers(capsys, tmp_path):
    Qwen3_5LiteConfig().save_pretrained(tmp_path)
    assert main(["methods", "--budget", "9", "--model", str(tmp_path), "--visual-tokens", "400", "--json"]) == 0
    counted = {method["name"]: method["at_budget"] for method in json.loads(capsys.readouterr().out)["methods"]}
    for name in ("fastv", "sparsevlm", "ivc_prune"):
        assert "not defined for Qwen3.5: most of its layers are recurrent" in counted[name]["unreachable"]
    assert counted["divprune"]["retained"] == 9 and counted["divprune"]["prefill_ratio"] < 0.2


def test_methods_of_a_model_that_is_not_there(capsys, tmp_path):
    assert main(["methods", "--budget", "3", "--model", str(tmp_path)]) == 2
    assert f"--model {tmp_path}" in capsys.readouterr().err


def test_env(capsys):
    assert main(["env"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"] == importlib.metadata.version("torch")
    assert lines["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert lines["devices"].startswith("cpu") and "bundled checkpoint" in lines and int(lines["torch threads"]) > 0
    assert main(["env", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(lines)


def test_env_says_when_the_checkpoint_is_missing(capsys, monkeypatch, tmp_path, tiny_checkpoint):
    monkeypatch.setattr("transformers_litelvlm.DEFAULT_CHECKPOINT", str(tmp_path))
    main(["env", "--json"])
    assert json.loads(capsys.readouterr().out)["bundled checkpoint"] == f"MISSING in {tmp_path}"
    monkeypatch.setattr("transformers_litelvlm.DEFAULT_CHECKPOINT", tiny_checkpoint)
    main(["env", "--json"])
    assert json.loads(capsys.readouterr().out)["bundled checkpoint"].startswith(tiny_checkpoint)


COMMAND = [sys.executable, "-m", "transformers_litelvlm_command"]
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "HOME": "/"}


def run_and_look(arguments: list[str]) -> tuple[int, str, str, set[str]]:
    """Exit code and streams of the command, and the top-level modules that it had imported at its end."""
    program = f"import runpy, sys; sys.argv[1:] = {arguments}\n"
    program += "try: runpy.run_module('transformers_litelvlm_command', run_name='__main__', alter_sys=True)\n"
    program += "finally: open(3, 'w').write(' '.join(sys.modules))"
    script = f"{shlex.join([sys.executable, '-c', program])} 3>modules"
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=ENVIRONMENT, cwd=folder)
        return run.returncode, run.stdout, run.stderr, set(Path(folder, "modules").read_text().split())


def test_the_version_is_all_that_is_printed():
    """Also where torchao is installed, whose import logs."""
    version = importlib.metadata.version("transformers-litelvlm")
    assert run_and_look(["--version"])[:3] == (0, f"litelvlm {version}\n", "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        *((arguments, 0) for arguments in (["--version"], ["--help"])),
        *(([module.__name__.rpartition(".")[2].replace("_", "-"), "--help"], 0) for module in SUBCOMMANDS),
        *((arguments, 2) for arguments in ([], ["frobnicate"], ["segment"], ["evaluate", "--loud"])),
    ],
    ids=str,
)
def test_help_and_bad_usage_import_nothing_heavy(arguments, code):
    """They answer at once. The work itself finds the whole package: `test_as_a_process`."""
    returned, _, _, imported = run_and_look(arguments)
    assert returned == code and "transformers_litelvlm.cli.main" in imported
    assert not imported & {"torch", "transformers", "numpy", "PIL", "huggingface_hub"}


def test_the_families_of_convert_are_those_that_there_are():
    assert list(convert.FAMILIES) == sorted(RECIPES)


@pytest.mark.slow
def test_as_a_process():
    """Exit code and streams of the real thing; a reader that goes away early is no error, and nobody else logs."""
    script = f"{' '.join(COMMAND)} methods | true; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.slow
def test_the_processes_that_it_starts_are_as_quiet():
    """Their package is imported whole, whatever torchao has to say about this build of torch."""
    words = [*COMMAND, "--as-worker", "transformers_litelvlm.evaluation", "--help"]
    run = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("usage: python -m transformers_litelvlm.evaluation")


FULL = "litelvlm: error: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("arguments", [pytest.param("methods", marks=pytest.mark.slow), "--help", "segment --help"])
def test_a_full_disk_as_a_process(arguments):
    script = f"{' '.join(COMMAND)} {arguments} > /dev/full"
    buffered = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONUNBUFFERED"}
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=buffered)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", FULL)


def test_a_full_disk_without_a_buffer(monkeypatch, capsys):
    with io.TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True) as full:  # noqa: SIM115
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["methods"]) == 2
    assert capsys.readouterr().err == FULL


def test_streams_that_are_closed(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # as Python has them then
    assert main(["methods"]) == 0


def test_a_terminal_without_all_letters(monkeypatch):
    """What the encoding of a stream lacks is escaped, so that names of files and sentences end no command."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    monkeypatch.setattr(env, "describe_environment", lambda: {"файл": "é"})
    assert main(["env"]) == 0
    assert written.getvalue().decode("latin-1") == r"\u0444\u0430\u0439\u043b: é" + "\n"


def test_exit_codes(capsys, monkeypatch):
    """2: what was asked, or the machine; 1: a fault of ours, with its traceback and how to report it."""
    for error, code in {
        BadInputError("bad"): 2,
        OSError(28, "No space left on device", "file"): 2,
        ImportError("not installed"): 2,
        MemoryError(): 2,
        torch.OutOfMemoryError("CUDA"): 2,
        RuntimeError("DefaultCPUAllocator: can't allocate memory"): 2,
        ValueError("not in a place that reads input"): 1,
        RuntimeError("shapes"): 1,
        KeyError("name"): 1,
    }.items():

        def fails(error=error):
            raise error

        monkeypatch.setattr(env, "describe_environment", fails)
        assert main(["env"]) == code, error
        err = capsys.readouterr().err
        assert f"litelvlm: error: {one_line(error)}\n" in err
        assert (err.startswith("Traceback"), "Please report it" in err) == (code == 1, code == 1)
        assert code == 1 or err.count("\n") == 1


def test_what_is_bad_input():
    with pytest.raises(BadInputError, match="^wrong$"), bad_input():
        raise ValueError("wrong")
    with pytest.raises(TypeError), bad_input():
        raise TypeError("ours")
    with pytest.raises(BadInputError, match="^--model x: KeyError: 'hidden_size'$"), bad_input("--model x: "):
        raise KeyError("hidden_size")


def test_methods_of_a_model_that_does_not_prune(capsys, tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    assert main(["methods", "--budget", "3", "--model", str(tmp_path)]) == 2
    assert "is of a 'llama', which does not prune" in capsys.readouterr().err


def test_what_is_kept_from_the_terminal_is_named():
    """The command silences single messages of single loggers; the rest of those loggers still speaks."""
    filters = {name: _Without(text) for name, text in FOREIGN_MESSAGES}
    silenced = logging.LogRecord("torchao", logging.WARNING, "", 0, "Failed to load %s: %s", ("_C.so", "no"), None)
    spoken = logging.LogRecord("torchao", logging.WARNING, "", 0, "int4 is deprecated", (), None)
    assert set(filters) == {"torchao", "torch.utils._pytree"}
    assert not _Without("Failed to load ").filter(silenced) and all(each.filter(spoken) for each in filters.values())
