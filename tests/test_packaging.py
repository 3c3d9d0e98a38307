"""The repository and the installed package as a newcomer meets them."""

from __future__ import annotations

import configparser
import fnmatch
import importlib
import json
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.support.fresh_python import UPSTREAM_SNAPSHOT, run_python
from tests.support.tiny_qwen2_5_vl import save_stock_checkpoint


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "transformers_litelvlm"
CHECKPOINT = PACKAGE / "checkpoints" / "refshapes_tiny"
LARGEST_CHECKPOINT = 12 * 2**20  # bytes
STOCK_QWEN = "Qwen/Qwen2.5-VL-3B-Instruct"

# What a commit must never hold: build products, environments, editor and tool leftovers, logs, credentials.
UNWANTED = ("*.pyc", "*.pyo", "*.log", "*.egg-info/*", "*.orig", "*.rej", "*~", "*.swp", ".env", "*.pem", ".DS_Store")
UNWANTED_FOLDERS = {
    "__pycache__",
    ".venv",
    "venv",
    "build",
    "dist",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "demo_output",
}


def tracked_files() -> list[str]:
    """Files that are in git or would be with `git add .`; skips where this is no git checkout."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    return result.stdout.splitlines()


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


# --- what is in the repository ---


def test_no_build_products_in_git():
    unwanted = [
        path
        for path in tracked_files()
        if UNWANTED_FOLDERS.intersection(Path(path).parts)
        or any(fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(Path(path).name, pattern) for pattern in UNWANTED)
    ]
    assert unwanted == []


def test_versions_agree():
    from transformers_litelvlm import __version__

    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE).group(1)
    changelog = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)
    assert setup_cfg()["metadata"]["version"] == __version__
    assert citation == __version__
    assert changelog == __version__


def test_every_folder_of_the_package_is_importable():
    """A folder without `__init__.py` would be missing from the wheel, although it imports from a checkout."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_command_line_entry_point_exists():
    target = setup_cfg()["options.entry_points"]["console_scripts"].strip().split(" = ")[1]
    module, function = target.split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_embedded_checkpoint_is_small_and_complete():
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names), "weights are safetensors only"
    assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file()) <= LARGEST_CHECKPOINT


def test_wheel_holds_every_file_of_the_package():
    """Templates, model card and weights travel with `pip install`, not only with a checkout."""
    patterns = setup_cfg()["options.package_data"]["transformers_litelvlm"].split()
    covered = {
        path for pattern in patterns for path in PACKAGE.glob(pattern.replace("checkpoints/**", "checkpoints/**/*"))
    }
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert sorted(map(str, data - covered)) == []


# Needed without being imported by name: transformers renders chat templates and reads tokenizer.model with them.
INDIRECT = {"protobuf", "sentencepiece"}
# Starlette reads forms with it.
INDIRECT |= {"python-multipart"}
# Imported by name, but transformers decides the version.
PINNED_UPSTREAM = {"tokenizers"}
# Imported by an example alone, which says that it needs it; and by the tests of one.
OF_EXAMPLES = {"labelme", "peft", "pytest", "ray"}
DISTRIBUTION_OF = {"PIL": "pillow", "cvat_sdk": "cvat-cli", "cv2": "opencv-python-headless", "yaml": "pyyaml"}

# They import us, by our entry points: whoever has them gets the plugin. No requirement of ours can name vLLM, which
# wants another transformers; docs/vllm.md has the pair that runs.
CALLERS = {"vllm"}


def test_dependencies_are_what_the_code_imports():
    """Nothing is installed for nothing, and nothing is imported that only happens to be installed."""
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in [*PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    )
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)(?:[\w.]* import|\.| as|$)", source, re.MULTILINE))
    own = {"transformers_litelvlm", *(path.stem for path in (ROOT / "examples").rglob("*"))}
    imported = {DISTRIBUTION_OF.get(name, name) for name in imported - own - sys.stdlib_module_names}
    # Imported where it is used, with an error that names the extra.
    extras = setup_cfg()["options.extras_require"]
    optional = [lines for name, lines in extras.items() if name not in ("test", "quality")]
    lines = "\n".join([setup_cfg()["options"]["install_requires"], *optional]).split("\n")
    declared = {re.match(r"[\w-]+", line).group() for line in lines if line}
    assert imported - declared - PINNED_UPSTREAM - OF_EXAMPLES - CALLERS == set(), "imported, but not in setup.cfg"
    assert declared - imported - INDIRECT == set(), "in setup.cfg, but imported nowhere"


# --- what an import does ---


def test_vllm_is_imported_in_one_place():
    """In the package that its entry points name; and by the benchmark that measures it, when it is asked to."""
    pattern = re.compile(r"^\s*(?:from|import) vllm\b", re.MULTILINE)
    importing = {path for path in PACKAGE.rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))}
    plugin = PACKAGE / "serving" / "vllm"
    assert {path for path in importing if plugin not in path.parents} == {PACKAGE / "cli" / "benchmark.py"}
    for group, name in (("vllm.general_plugins", "litelvlm"), ("vllm.io_processor_plugins", "litelvlm_segmentation")):
        entry = setup_cfg()["options.entry_points"][group].strip()
        module, function = entry.removeprefix(f"{name} = ").split(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.slow
def test_import_leaves_upstream_untouched():
    """An import only defines: no patched class, no logging set-up, no warning filter, no random number drawn."""
    result = run_python(UPSTREAM_SNAPSHOT)
    assert result.pop("size") > 1000, "the snapshot saw too little to be a test"
    assert result == {
        "changed": [],
        "registered": True,
        "logging": True,
        "filters": True,
        "random": True,
        "threads": True,
    }


AN_IMPORT = """
import json, sys, time
start = time.process_time()
import torch, transformers
from transformers import LlavaForConditionalGeneration, SamModel, CLIPTextModelWithProjection
upstream, before = time.process_time() - start, set(sys.modules)
start = time.process_time()
import transformers_litelvlm
ours = time.process_time() - start
print(json.dumps({"upstream": upstream, "ours": ours, "modules": sorted(set(sys.modules) - before)}))
"""


@pytest.fixture(scope="module")
def an_import():
    return run_python(AN_IMPORT)


@pytest.mark.slow
def test_import_time_is_bounded(an_import):
    """Heavy dependencies belong inside functions. In processor time: other work on the machine is no matter."""
    assert an_import["ours"] <= max(0.5, 0.5 * an_import["upstream"]), an_import


def test_import_loads_no_optional_dependency(an_import):
    optional = {"matplotlib", "pandas", "pycocotools", "evaluate", "torchvision", "IPython", "datasets", "pyarrow"}
    assert "transformers_litelvlm" in an_import["modules"] and optional.isdisjoint(an_import["modules"])


WITHOUT_EXTRAS = """
import contextlib, io, json, sys
sys.modules.update(dict.fromkeys(["datasets", "evaluate", "pyarrow", "scipy"]))
import transformers_litelvlm
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.data import generate_scene, load_refshapes
from transformers_litelvlm.benchmark import grid
assert generate_scene("test", 0).image.shape == (144, 144, 3)
messages = io.StringIO()
with contextlib.redirect_stderr(messages):
    code = main(["evaluate", "--output-dir", "nowhere", "--processes", "1"])
try:
    load_refshapes("test", 1)
except ImportError as error:
    print(json.dumps([code, messages.getvalue().splitlines()[-1], str(error)]))
"""


@pytest.mark.slow
def test_what_needs_an_extra_says_so_and_the_rest_works_without():
    code, message, error = run_python(WITHOUT_EXTRAS)
    assert code == 2 and message.startswith("litelvlm: error: ")
    assert all('`pip install "transformers-litelvlm[eval]"`' in text for text in (message, error))


def test_pruning_imports_torch_alone():
    """`pruning/` is pure tensor code: it must load where transformers is absent."""
    for path in (PACKAGE / "pruning").glob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
        foreign = {
            name
            for name in imported
            if name.split(".")[0] not in sys.stdlib_module_names | {"torch"}
            and not name.startswith("transformers_litelvlm.pruning")
        }
        assert foreign == set(), path.name


# --- what the documentation says ---


def test_docs_are_complete():
    """Links resolve, every public name is documented, every method has its line in docs/methods.md."""
    runpy.run_path(str(ROOT / "docs" / "check_docs.py"), run_name="__main__")  # exits with what is wrong


def python_snippets() -> list:
    """The ```python blocks of README.md and docs/, one program per page: later blocks use what earlier ones made."""
    pages = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        if blocks:
            pages.append(pytest.param("\n".join(blocks), id=str(path.relative_to(ROOT))))
    return pages


@pytest.mark.parametrize("code", python_snippets())
def test_documented_snippets_run(code, tmp_path, monkeypatch):
    from transformers_litelvlm.data import loading
    from transformers_litelvlm.models.masks import decoder
    from transformers_litelvlm.pruning import registry

    # A snippet may add a method, a data set or a mask decoder of its own.
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(loading, "DATASETS", dict(loading.DATASETS))
    monkeypatch.setattr(decoder, "_DECODERS", dict(decoder._DECODERS))
    monkeypatch.chdir(tmp_path)
    if f'"{STOCK_QWEN}"' in code:  # a folder of that name here comes before the Hub
        save_stock_checkpoint(tmp_path / STOCK_QWEN)
    module = types.ModuleType("snippet")
    monkeypatch.setitem(sys.modules, "snippet", module)  # dataclasses look their module up
    exec(compile(code, "snippet", "exec", dont_inherit=True), vars(module))


def test_the_two_turns_need_no_download(tmp_path, monkeypatch, capsys):
    """With the checkpoint that the recipe makes."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = page.partition("\n## Two turns")[2].partition("\n## ")[0]
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
    assert f'"{STOCK_QWEN}"' in code
    exec(compile(code.replace(STOCK_QWEN, "tiny-qwen"), "snippet", "exec", dont_inherit=True), {})
    assert capsys.readouterr().out.count("6 of 25 visual tokens kept\n") == 2
    assert (
        "litelvlm" not in json.loads((tmp_path / "tiny-qwen" / "config.json").read_text())["architectures"][0].lower()
    )
