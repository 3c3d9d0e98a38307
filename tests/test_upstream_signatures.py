"""requirements/: what was recorded of upstream, and the lock, are of one piece with setup.cfg and the source."""

import configparser
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement


ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"requirements_{name}", REQUIREMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


upstream_signatures, audit = script("upstream_signatures"), script("audit")


def locked() -> dict[str, list[str]]:
    """Versions by name; several where they depend on the version of Python."""
    versions: dict[str, list[str]] = {}
    for line in (REQUIREMENTS / "locked.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            versions.setdefault(requirement.name, []).append(str(requirement.specifier).removeprefix("=="))
    return versions


# --- the lock ---

# Tested with the newest versions, in environments of their own (docs/versions.md).
NOT_LOCKED = ("cvat", "demo", "osam", "supervision", "vllm")


def test_the_lock_has_every_requirement_within_its_bounds():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = parser["options.extras_require"]
    groups = [parser["options"]["install_requires"], *(extras[name] for name in extras if name not in NOT_LOCKED)]
    versions, wrong = locked(), []
    for line in "\n".join(groups).splitlines():
        if line:
            requirement = Requirement(line)
            found = versions.get(requirement.name.lower().replace("_", "-"), [])
            if not found or not all(requirement.specifier.contains(version) for version in found):
                wrong.append(f"{line}: locked are {found}")
    assert wrong == [], "run `make lock`"


def test_the_lock_fits_a_build_of_torch_for_cpus():
    """Exact versions and nothing of CUDA, which torch asks for by itself; no address of anybody's package index."""
    text = (REQUIREMENTS / "locked.txt").read_text(encoding="utf-8")
    assert not any(name.startswith(("nvidia-", "cuda-", "triton")) for name in locked())
    assert all(re.fullmatch(r"[\w.+]+", version) for versions in locked().values() for version in versions)
    assert "://" not in text


# --- upstream's signatures ---


def test_the_record_is_of_the_locked_version():
    assert [upstream_signatures.read_record()["transformers"]] == locked()["transformers"], "run `make lock`"


def test_the_record_is_what_is_installed():
    """Also after a change of our source: what it imports, subclasses and calls is in the record."""
    if [transformers.__version__] != locked()["transformers"]:
        pytest.skip(f"transformers {transformers.__version__} is installed, recorded is {locked()['transformers'][0]}")
    recorded, now = upstream_signatures.read_record()["signatures"], upstream_signatures.signatures()
    assert len(now) > 200, "too little was found to be a test"
    assert recorded == now, "run `make lock`, or only: python requirements/upstream_signatures.py record"
    assert list(recorded) == sorted(recorded)


def test_a_renamed_parameter_is_found():
    """What 5.24 did to `cache`, and a name that is gone, as the comparison reports them."""
    recorded = dict(upstream_signatures.read_record()["signatures"])
    assert upstream_signatures.differences({"json.loads": upstream_signatures._described(json.loads)}) == []
    layer = "transformers.models.llama.modeling_llama.LlamaDecoderLayer.forward"
    recorded = {
        layer: recorded[layer].replace("hidden_states", "states"),
        "transformers.Cache.get_seq_length": "layer_idx, also",
        "transformers.LlamaConfig.no_such_method": "",
        "transformers.no_such_module.name": "",
        "json.dumps": "obj",
        "json.JSONDecoder.decode": "_w, s",
    }
    lines = upstream_signatures.differences(recorded)
    assert f"{layer}: gone states; new hidden_states" in lines
    assert "transformers.Cache.get_seq_length: gone also" in lines
    assert {"transformers.LlamaConfig.no_such_method: gone", "transformers.no_such_module.name: gone"} <= set(lines)
    assert any(line.startswith("json.dumps: new skipkeys, ") for line in lines)
    assert "json.JSONDecoder.decode: other order, s, _w" in lines and len(lines) == len(recorded)


@pytest.mark.slow
def test_the_comparison_works_where_the_package_cannot_be_imported(tmp_path):
    """As with a release of transformers that lacks a name: the error is printed, and the record is compared."""
    (tmp_path / "transformers_litelvlm.py").write_text("raise ImportError('cannot import name rotate_half')")
    run = subprocess.run(
        [sys.executable, str(REQUIREMENTS / "upstream_signatures.py"), "compare"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
    )
    first, second = run.stdout.splitlines()[:2]
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert first.startswith("transformers_litelvlm cannot be imported with transformers")
    assert first.endswith("ImportError: cannot import name rotate_half")
    assert re.match(rf"\d+ of {len(upstream_signatures.read_record()['signatures'])} names differ", second)


# --- the audit ---

VULNERABLE = {"name": "flask", "version": "0.5", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.0"]}]}


@pytest.mark.parametrize(
    ("dependencies", "errors", "code", "text"),
    [
        ([VULNERABLE, {"name": "torch", "version": "2.13.0", "vulns": []}], "", 0, "1 locked versions audited"),
        ([{"name": "flask", "skip_reason": "x"}, {"name": "torch", "skip_reason": "x"}], "", 0, "not audited: what"),
        ([{**VULNERABLE, "vulns": []}, {"name": "torch", "version": "1", "vulns": []}], "", 0, "not audited: what"),
        ([VULNERABLE, {**VULNERABLE, "name": "torch"}], "", 1, "torch 0.5: PYSEC-1, fixed in 1.0"),
        ([VULNERABLE, {"name": "torch", "skip_reason": "x"}], "", 1, "not in the database, so not audited: torch"),
        (None, "Traceback\nrequests.exceptions.ConnectionError: no name", 0, "not audited: the database of"),
        (None, "Traceback\nValueError: what is this", 2, "not audited: pip-audit failed"),
    ],
)
def test_an_audit_that_looked_nothing_up_does_not_look_like_success(dependencies, errors, code, text):
    judged, said = audit.judge(dependencies, errors)
    assert judged == code and said.startswith(text)
