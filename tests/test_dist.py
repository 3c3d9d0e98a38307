"""`make dist` and the workflows: what stands on a package index is complete, and what runs there is pinned."""

import configparser
import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://example.org/team/transformers_litelvlm"


@pytest.fixture(scope="module")
def dist():
    specification = importlib.util.spec_from_file_location("dist", ROOT / "requirements" / "dist.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_links_are_made_absolute(dist):
    text = "[a](docs/x.md#part) ![b](docs/images/c.png) [d](https://e.org) [f](#here) [g](mailto:h@i.org)"
    assert dist.absolute_links(text, REPOSITORY, "1.2.3") == (
        f"[a]({REPOSITORY}/blob/v1.2.3/docs/x.md#part) ![b]({REPOSITORY}/raw/v1.2.3/docs/images/c.png) "
        "[d](https://e.org) [f](#here) [g](mailto:h@i.org)"
    )


def test_broken_links_are_found(dist):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    absolute = dist.absolute_links(readme, REPOSITORY, "1.2.3")
    assert dist.broken_links(absolute, REPOSITORY, "1.2.3") == []
    relative = dist.broken_links(readme, REPOSITORY, "1.2.3")
    assert "the description links to docs/limits.md, which is relative" in relative
    absent = f"[a]({REPOSITORY}/blob/v1.2.3/docs/no.md)"
    assert dist.broken_links(absent, REPOSITORY, "1.2.3") == [
        f"the description links to {REPOSITORY}/blob/v1.2.3/docs/no.md, which does not exist"
    ]


def test_the_address_is_filled_in(dist, tmp_path):
    for name in ("setup.cfg", "README.md"):
        shutil.copy2(ROOT / name, tmp_path)
    dist.fill_in(tmp_path, REPOSITORY, "1.2.3")
    metadata = configparser.ConfigParser()
    metadata.read(tmp_path / "setup.cfg", encoding="utf-8")
    assert metadata["metadata"]["url"] == REPOSITORY
    assert f"Changelog = {REPOSITORY}/blob/v1.2.3/CHANGELOG.md" in metadata["metadata"]["project_urls"]
    assert metadata["metadata"]["name"] == "transformers-litelvlm"


def test_versions_must_agree(dist):
    version = dist.version_of(ROOT)
    assert dist.disagreements(ROOT, version) == []
    assert [fault.split()[0] for fault in dist.disagreements(ROOT, "9.9.9")] == [
        "src/transformers_litelvlm/version.py",
        "CITATION.cff",
        "CHANGELOG.md",
    ]


def test_readme_has_python_lines_that_load_the_checkpoint(dist):
    code = dist.first_python((ROOT / "README.md").read_text(encoding="utf-8"))
    assert "DEFAULT_CHECKPOINT" in code
    compile(code, "README.md", "exec")


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_are_pinned_and_may_only_read(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert job.get("permissions", {"id-token": "write"}) == {"id-token": "write"}
        for step in job["steps"]:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step.get("uses", "a@" + "0" * 40))
            named = [word for word in step.get("run", "").split()[1:] if re.fullmatch(r"[a-z-]+", word)]
            assert step.get("run", "make ").startswith("make ") and set(named) <= targets
        assert set(job.get("strategy", {}).get("matrix", {}).get("target", [])) <= targets


def test_issue_templates_ask_for_the_environment():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        template = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem != "config":
            [env] = [part for part in template["body"] if part.get("id") == "env"]
            assert "litelvlm env" in env["attributes"]["label"] and env["validations"]["required"]
