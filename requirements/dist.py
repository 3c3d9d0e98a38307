"""`make dist`: builds the sdist and the wheel, and checks them as someone who installs them would.

What is built is a copy of the tracked files in which the address of the repository is filled in: as the project's
address, and in the links of README.md, which lead nowhere on a package index if they are relative. Then: every link
of the description, `twine check`, and a fresh environment in an empty folder that runs README's first Python lines.

    python requirements/dist.py --repository https://github.com/ORGANISATION/transformers_litelvlm

Exit codes: 0 dist/ has both files; 1 one of the checks failed; 2 wrong use.
"""

from __future__ import annotations

import argparse
import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
# A link or a picture of Markdown, up to its target.
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def main() -> int:
    """Builds and checks, and says what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", default="", help="https address of the repository; default: of origin")
    parser.add_argument("--python", default="python3.13", help="the Python of the fresh environment")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    repository = (args.repository or _origin()).removesuffix(".git").rstrip("/")
    if not re.fullmatch(r"https://[^/\s]+/\S+", repository):
        parser.error(
            f"the address of the repository is {repository!r}, and links of the description need one that starts "
            "with https://. Name it: make dist REPOSITORY=https://github.com/ORGANISATION/transformers_litelvlm"
        )
    if shutil.which(args.python) is None:
        parser.error(f"--python {args.python} was not found. Name another: make dist DIST_PYTHON=python3.12")
    with tempfile.TemporaryDirectory() as folder:
        return _build_and_check(Path(folder), repository, args.python, args.output)


def _build_and_check(folder: Path, repository: str, python: str, output: Path) -> int:
    version = version_of(ROOT)
    source, built = folder / "source", folder / "built"
    copy_tracked(source)
    fill_in(source, repository, version)
    faults = disagreements(source, version)
    # The wheel is built from the sdist, so this proves that the sdist is complete, too.
    _run(sys.executable, "-m", "build", "--outdir", built, source)
    files = sorted(built.iterdir())
    _run(sys.executable, "-m", "twine", "check", "--strict", *files)
    [wheel] = built.glob("*.whl")
    description = description_of(wheel)
    faults += broken_links(description, repository, version)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        return 1
    _try_out(wheel, description, python, folder)
    output.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy2(file, output)
        print(f"{output / file.name}: {file.stat().st_size / 1e6:.1f} MB")
    return 0


def version_of(root: Path) -> str:
    """The version in setup.cfg."""
    metadata = configparser.ConfigParser()
    metadata.read(root / "setup.cfg", encoding="utf-8")
    return metadata["metadata"]["version"]


def disagreements(root: Path, version: str) -> list[str]:
    """Where else the version is written, and is another."""
    expected = {
        "src/transformers_litelvlm/version.py": f'__version__ = "{version}"',
        "CITATION.cff": f"\nversion: {version}\n",
        "CHANGELOG.md": f"\n## [{version}] - ",
    }
    return [
        f"{path} lacks {text.strip()!r}, as setup.cfg has version {version}"
        for path, text in expected.items()
        if text not in (root / path).read_text(encoding="utf-8")
    ]


def copy_tracked(target: Path) -> None:
    """The tracked files as they lie here: what is not committed would not be in a clone."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def fill_in(root: Path, repository: str, version: str) -> None:
    """Address of the repository in the metadata, and in the relative links of README.md."""
    setup = root / "setup.cfg"
    urls = {
        "Documentation": f"{repository}/blob/v{version}/docs/index.md",
        "Changelog": f"{repository}/blob/v{version}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    lines = f"url = {repository}\nproject_urls =\n" + "".join(f"    {name} = {url}\n" for name, url in urls.items())
    setup.write_text(setup.read_text(encoding="utf-8").replace("[metadata]\n", f"[metadata]\n{lines}", 1), "utf-8")
    readme = root / "README.md"
    readme.write_text(absolute_links(readme.read_text(encoding="utf-8"), repository, version), encoding="utf-8")


def absolute_links(text: str, repository: str, version: str) -> str:
    """The text with links into the repository that hold everywhere: pages as pages, pictures as files."""

    def absolute(match: re.Match) -> str:
        target = match[2]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        kind = "raw" if Path(target).suffix in (".png", ".svg", ".jpg", ".gif") else "blob"
        return f"{match[1]}{repository}/{kind}/v{version}/{target}{match[3]}"

    return LINK.sub(absolute, text)


def broken_links(description: str, repository: str, version: str) -> list[str]:
    """Links that are relative, or lead into the repository to where nothing is."""
    faults = []
    for _, target, _ in LINK.findall(description):
        path = re.sub(rf"^{re.escape(repository)}/(blob|raw)/v{re.escape(version)}/", "", target)
        if path == target and not re.match(r"https://|#", target):
            faults.append(f"the description links to {target}, which is relative")
        elif path != target and not (ROOT / path.partition("#")[0]).exists():
            faults.append(f"the description links to {target}, which does not exist")
    return faults


def description_of(wheel: Path) -> str:
    """What a package index shows."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name)).get_payload()


def first_python(description: str) -> str:
    """README's first Python lines."""
    return re.search(r"^```python\n(.*?)^```", description, re.MULTILINE | re.DOTALL)[1]


def _try_out(wheel: Path, description: str, python: str, folder: Path) -> None:
    """Install the wheel into a fresh environment, and run README's lines in an empty folder, without network."""
    environment, empty = folder / "environment", folder / "empty"
    empty.mkdir()
    _run(python, "-m", "venv", environment)
    installed = environment / "bin" / "python"
    _run(installed, "-m", "pip", "install", "--quiet", "-c", ROOT / "requirements" / "locked.txt", wheel)
    _run(installed, "-m", "pip", "check")
    _run(environment / "bin" / "litelvlm", "--version", cwd=empty)
    _run(installed, "-c", first_python(description), cwd=empty)


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    shown = [str(word) if "\n" not in str(word) else "README's lines" for word in command]
    print("+", " ".join(shown), flush=True)
    outcome = subprocess.run([str(word) for word in command], cwd=cwd, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if outcome.returncode:
        raise SystemExit(f"error: this failed with exit code {outcome.returncode}: {' '.join(shown)}")


def _origin() -> str:
    """Address of the remote `origin`, an ssh one as https; empty where there is none."""
    command = ["git", "remote", "get-url", "origin"]
    address = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", address)


if __name__ == "__main__":
    sys.exit(main())
