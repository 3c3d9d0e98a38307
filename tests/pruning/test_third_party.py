"""Methods of strangers: entry points of installed packages, files and modules that are imported, and their faults."""

import os
import sys
import traceback

import pytest

from tests.support.third_party import install, method_code
from transformers_litelvlm import PruningConfig, build_pruner, get_pruner, list_pruners, register_pruner
from transformers_litelvlm.pruning import LiteLVLMPruner, TokenPruner, import_methods, registry
from transformers_litelvlm.pruning.registry import broken_entry_points, provider_at_fault, provider_of


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on `sys.path`; what is registered and imported during a test is gone after it."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(registry, "_LOADED", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder, before = tmp_path / "site", set(sys.modules)
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


# --- entry points ---


def test_code_of_strangers_is_imported_when_it_is_asked_for(site):
    install(site, "one_dist", "one = theirs_one:FirstTokens", theirs_one=method_code("one"))
    install(site, "two_dist", "two = theirs_two:FirstTokens", theirs_two=method_code("two"))
    assert get_pruner("litelvlm") is LiteLVLMPruner
    assert {"theirs_one", "theirs_two"}.isdisjoint(sys.modules)
    assert build_pruner("two", start=3).start == 3
    assert "theirs_two" in sys.modules and "theirs_one" not in sys.modules
    assert {"one", "two"} <= set(list_pruners())
    assert [provider_of(name) for name in ("one", "two", "litelvlm")] == ["one_dist 1.2", "two_dist 1.2", "bundled"]
    assert PruningConfig(method="one", budget=3).build_pruner().start == 0


def test_an_entry_point_names_a_class_or_a_module(site):
    undecorated = method_code("unused").replace('@register_pruner("unused")\n', "")
    both = method_code("first_of_two", "One") + method_code("second_of_two", "Two")
    install(site, "a_dist", "plain = theirs_plain:FirstTokens\nany-name = theirs_both", theirs_plain=undecorated)
    (site / "theirs_both.py").write_text(both)
    assert get_pruner("plain").name == "plain"
    assert get_pruner("second_of_two").__name__ == "Two" and "first_of_two" in list_pruners()
    assert provider_of("first_of_two") == provider_of("plain") == "a_dist 1.2"
    assert broken_entry_points() == []


def test_a_module_that_was_imported_before_is_credited_to_its_package(site):
    install(site, "a_dist", "early = theirs_early", theirs_early=method_code("early"))
    import_module = __import__("theirs_early")
    assert provider_of("early") == f"module {import_module.__name__}"
    list_pruners()
    assert provider_of("early") == "a_dist 1.2" and broken_entry_points() == []


@pytest.mark.parametrize(
    ("value", "code", "reason"),
    [
        ("theirs_bad", "import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("theirs_bad", "raise SystemExit(3)", "SystemExit: 3"),
        ("theirs_bad", "1 / 0", "ZeroDivisionError: division by zero"),
        ("theirs_bad:Absent", "", "has no attribute 'Absent'"),
        ("theirs_bad:thing", "thing = 3", "is neither a subclass of Pruner nor a module that registers some"),
        ("theirs_bad", "", "theirs_bad registers no pruning method"),
        (
            "theirs_bad",
            method_code("litelvlm", "Mine"),
            "'litelvlm' is already registered by LiteLVLMPruner (bundled): Mine (bad_dist 1.2) needs another name",
        ),
        ("theirs_bad", method_code("half") + "\n1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_broken_package_harms_nobody_and_says_why(site, value, code, reason):
    before = list_pruners()
    install(site, "bad_dist", f"bad = {value}", theirs_bad=code)
    install(site, "good_dist", "good = theirs_good", theirs_good=method_code("good"))
    assert list_pruners() == sorted([*before, "good"])
    assert get_pruner("litelvlm") is LiteLVLMPruner
    (broken,) = broken_entry_points()
    assert (broken.name, broken.distribution) == ("bad", "bad_dist 1.2") and reason in broken.reason
    with pytest.raises(
        ValueError, match=r"`method` 'bad' does not load: entry point 'bad' of bad_dist 1\.2"
    ) as raised:
        get_pruner("bad")
    assert raised.value.__cause__ is broken.error and reason in str(raised.value)
    with pytest.raises(ValueError, match=r"Unknown .* Not loaded: entry point 'bad' of bad_dist 1\.2"):
        get_pruner("something_else")


def test_an_entry_points_file_that_cannot_be_read_harms_nobody(site):
    install(site, "bad_dist", "no equals sign")
    assert "litelvlm" in list_pruners()
    assert [broken.distribution for broken in broken_entry_points()] == ["an installed package"]


def test_a_class_of_the_same_name_does_not_replace_a_bundled_one(site):
    with pytest.raises(ValueError, match=r"LiteLVLMPruner \(bundled\): LiteLVLMPruner \(module theirs\)"):
        register_pruner("litelvlm")(type("LiteLVLMPruner", (TokenPruner,), {"__module__": "theirs"}))
    assert get_pruner("litelvlm") is LiteLVLMPruner


@pytest.mark.parametrize("wrong", [3, dict, len])
def test_only_pruners_are_registered(site, wrong):
    with pytest.raises(ValueError, match="'their_method' must be a subclass of TokenPruner or LayerPruner"):
        register_pruner("their_method")(wrong)


# --- imports ---


def test_files_and_modules_are_imported_once(site, monkeypatch):
    counting = "\nimport sys\nsys.path.append('imported')\n"
    (site / "random.py").write_text(method_code("of_file") + counting)
    (site / "elsewhere").mkdir()
    (site / "elsewhere" / "their_module.py").write_text(method_code("of_module") + counting)
    monkeypatch.chdir(site / "elsewhere")
    file = str(site / "random.py")
    for _ in range(2):
        import_methods([file, os.path.relpath(file), "their_module"])
    assert sys.path.count("imported") == 2
    assert provider_of("of_file") == f"--import {file}" and provider_of("of_module") == "--import their_module"
    import random

    assert hasattr(random, "shuffle")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("absent.py", "there is no file /.*absent.py"),
        ("no_such_module", "there is no such module on `sys.path` or in /"),
        ("dir/file", "A file must end with .py"),
        ("", "no such module"),
        ("syntax.py", r"SyntaxError: .*syntax.py, line 1"),
        ("needs.py", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("needs", "ModuleNotFoundError: No module named 'no_such_library'"),
        (
            "clash.py",
            r"'litelvlm' is already registered by LiteLVLMPruner \(bundled\): Mine \(--import clash.py\) needs",
        ),
    ],
)
def test_an_import_that_fails_is_named_with_its_reason(site, monkeypatch, source, reason):
    monkeypatch.chdir(site)
    (site / "syntax.py").write_text("def")
    (site / "needs.py").write_text(method_code("half") + "import no_such_library")
    (site / "clash.py").write_text(method_code("litelvlm", "Mine"))
    before = dict(registry._REGISTRY)
    with pytest.raises(ValueError, match=rf"`--import {source}`: .*{reason}"):
        import_methods([source])
    assert before == registry._REGISTRY


def test_a_config_imports_nothing(site, monkeypatch, tmp_path):
    """Whatever method a file names: it says what to do, and does not do it."""
    monkeypatch.chdir(site)
    (site / "evil.py").write_text(method_code("evil"))
    for method in ("evil", "evil.py", "evil:FirstTokens", "site.evil"):
        (tmp_path / "pruning_config.json").write_text(f'{{"method": "{method}", "budget": 4}}')
        with pytest.raises(ValueError, match=f"Unknown pruning `method` '{method}'") as raised:
            PruningConfig.from_pretrained(tmp_path)
        for part in ("not bundled", "install the package", "'litelvlm.pruners'", "`--import FILE_OR_MODULE`"):
            assert part in str(raised.value)
    assert "evil" not in sys.modules
    (tmp_path / "pruning_config.json").write_text('{"method": "evil", "budget": 4}')
    import_methods(["evil.py"])
    assert PruningConfig.from_pretrained(tmp_path).build_pruner().start == 0


def test_who_is_to_blame(site):
    (site / "faulty.py").write_text(method_code("faulty").replace("torch.arange(budget)", "budget.shape"))
    import_methods([str(site / "faulty.py")])
    with pytest.raises(AttributeError) as theirs:
        build_pruner("faulty").select(None, 3)
    assert provider_at_fault(theirs.value) == f"--import {site / 'faulty.py'}"
    with pytest.raises(AttributeError) as ours:
        build_pruner("uniform").select(None, 3)
    assert provider_at_fault(ours.value) is None and traceback.format_exception(ours.value)
