"""The template of a package with a method: it installs, is listed, evaluated by several processes, tests itself."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support import warm_python


ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "examples" / "third_party_method"


def run(*words: str, folder: Path, path: tuple[Path, ...] = (ROOT / "src",)) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_readme_is_short_and_names_what_there_is():
    readme = (TEMPLATE / "README.md").read_text()
    assert len(readme.splitlines()) <= 40
    for file in re.findall(r"^\| `(.+?)`", readme, re.MULTILINE):
        assert (TEMPLATE / file).is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_package_installs_is_listed_and_evaluated(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(TEMPLATE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    run(*pip, str(source), folder=tmp_path)
    path = (site, ROOT / "src")
    command = ["-m", "transformers_litelvlm_command"]
    [listing] = warm_python.run([*command, "methods", "--json"], folder=tmp_path, path=path)
    methods = json.loads(listing.stdout)
    listed = {method["name"]: method for method in methods["methods"]}
    assert methods["broken"] == []
    assert listed["low_norm"]["provided_by"] == "litelvlm-low-norm 0.1.0"
    assert listed["low_norm"]["what"] == "Keep the visual tokens of low norm, near the centre if wanted"
    assert listed["low_norm"]["options"] == {"centre_weight": 0.0}
    words = ["--output-dir", "out", "--max-images", "2", "--batch-size", "1", "--budgets", "48", "--processes", "2"]
    words += ["--methods", "low_norm:centre_weight=0.5"]
    run(*command, "evaluate", *words, folder=tmp_path, path=path)
    run_ids = pq.read_table(tmp_path / "out" / "records.parquet")["run_id"].to_pylist()
    assert set(run_ids) == {"low_norm:centre_weight=0.5@48"} and len(run_ids) == 12
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["runs"][0]["method"] == "low_norm" and results["runs"][0]["num_kept_mean"] == 48
    assert results["environment"]["hardware"]["num_processes"] == 2
    assert results["environment"]["command"] == f"litelvlm evaluate {shlex.join(words)}"
    assert results["environment"]["third_party_methods"]["low_norm"]["provided_by"] == "litelvlm-low-norm 0.1.0"
    [own_tests] = warm_python.run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"], folder=source, path=path)
    assert own_tests.returncode == 0, own_tests.stdout
