"""The tests mirror the package folder by folder, and share helpers in one place."""

from __future__ import annotations

import re
from pathlib import Path


TESTS = Path(__file__).parent
ROOT = TESTS.parent
PACKAGE = ROOT / "src" / "transformers_litelvlm"
SUPPORT = TESTS / "support"
# What `make test-upstream`, `test-soak`, `test-browser` and `test-vllm` run, and nothing else: not collected.
UNCOLLECTED = tuple(TESTS / name for name in ("upstream", "soak", "browser", "vllm_engines", "typing"))
# Tests with random input, of several parts of the package each.
FUZZING = TESTS / "fuzzing"
# Tests of whatever device there is, which `make gpu-report` runs on a GPU.
GPU = TESTS / "gpu"
# Tests of the whole repository. All others belong to a module or a folder of the package.
OF_THE_PROJECT = {
    "test_conftest.py",
    "test_dist.py",
    "test_embedded_checkpoint.py",
    "test_layers.py",
    "test_layout.py",
    "test_packaging.py",
    "test_second_device.py",
    "test_sizes.py",
    "test_upstream_signatures.py",
}
# Tests of every model family: what they need of a family is in tests/support/families.py, and nowhere else.
OF_EVERY_FAMILY = {
    "models/test_families.py",
    "models/test_families_completions.py",
    "models/test_families_decoding.py",
    "models/test_families_kept.py",
    "models/test_families_layer_methods.py",
    "models/test_families_loading.py",
    "models/test_families_training.py",
    "models/test_families_two_methods.py",
    "models/test_families_upstream.py",
}


def modules_of_tests() -> set[Path]:
    return {path for path in TESTS.rglob("*.py") if path.name.startswith("test_")}


def test_the_listed_modules_exist():
    listed = {TESTS / name for name in OF_THE_PROJECT | OF_EVERY_FAMILY}
    assert listed <= modules_of_tests()
    assert {path for path in modules_of_tests() if path.name.startswith("test_families")} == {
        TESTS / name for name in OF_EVERY_FAMILY
    }


def test_tests_mirror_the_package():
    """The tests of a folder of the package are in the folder of that name; those of a top module carry its name.
    Tests of the examples are in `tests/examples/`, those with random input in `tests/fuzzing/`, and those of
    a GPU in `tests/gpu/`."""
    lost = []
    for path in modules_of_tests():
        name = path.relative_to(TESTS)
        mirrored = (ROOT if name.parts[0] == "examples" else PACKAGE) / name.parent
        is_mirror = mirrored.is_dir() if mirrored != PACKAGE else (PACKAGE / name.name.removeprefix("test_")).is_file()
        if not is_mirror and path.parent not in (FUZZING, GPU) and name.as_posix() not in OF_THE_PROJECT:
            lost.append(str(name))
    assert lost == []


def test_helpers_are_in_one_folder():
    """Every other file is a module of tests or has settings and fixtures for its folder."""
    others = {
        path.relative_to(TESTS).as_posix()
        for path in TESTS.rglob("*.py")
        if not {SUPPORT, *UNCOLLECTED} & set(path.parents) and path.name != "conftest.py"
    }
    assert others == {path.relative_to(TESTS).as_posix() for path in modules_of_tests()}
    assert not [path for path in modules_of_tests() if {SUPPORT, *UNCOLLECTED} & set(path.parents)]


def test_no_module_of_tests_imports_another():
    """Also not in the programs that tests run in processes of their own."""
    wrong = [
        f"{path.relative_to(TESTS)}: {line}"
        for path in TESTS.rglob("*.py")
        if not set(UNCOLLECTED) & set(path.parents)
        for line in re.findall(r"^[ \t]*(?:from|import) tests\b.*", path.read_text(encoding="utf-8"), re.MULTILINE)
        if not re.match(r"\s*(?:from|import) tests\.support\b", line)
    ]
    assert wrong == []


def test_tests_of_every_family_name_none():
    names = re.compile(r"llava|qwen", re.IGNORECASE)
    wrong = [
        f"{name}: {line}"
        for name in sorted(OF_EVERY_FAMILY)
        for line in (TESTS / name).read_text(encoding="utf-8").splitlines()
        if names.search(line)
    ]
    assert wrong == []
