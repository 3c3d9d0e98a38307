"""`make docs`: links and paths exist, public names are in docs/api.md, every method is in docs/methods.md."""

import importlib
import re
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links and pictures of a page that lead nowhere."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    faults = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            faults.append(f"{page.relative_to(ROOT)}: link to {link}, which does not exist")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            faults.append(f"{page.relative_to(ROOT)}: link to {link}, no such heading")
    return faults


def absent_paths(page: Path) -> list[str]:
    """Files and folders in a folder that a page names and that do not exist; not those with a placeholder."""
    if page.name == "CHANGELOG.md":  # it also tells what is gone
        return []
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`((?:\w+/)+\w+(?:/|\.py|\.json|\.safetensors))`", text))
    roots = (ROOT, ROOT / "src", ROOT / "src" / "transformers_litelvlm")
    return [
        f"{page.relative_to(ROOT)}: names {path}, which does not exist"
        for path in sorted(named)
        if not any((root / path).exists() for root in roots)
    ]


# Words that docs/glossary.md has another one for.
REPLACED = {
    r"surviv\w+": "kept",
    "behind": "after",
    "stayed": "remained",
    "look-ups?": "search",
    "rivals?": "other methods",
    "visual embeddings?": "visual tokens",
}
LONGEST_LINE = 119


def wording(page: Path) -> list[str]:
    """Words that the glossary replaces, and lines of prose that are too long; code, tables and links aside."""
    name = page.relative_to(ROOT)
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)
    faults = [
        f"{name}: {found!r}, say {better!r} as in docs/glossary.md"
        for word, better in REPLACED.items()
        for found in set(re.findall(rf"(?<!\")\b{word}\b(?!\")", prose))
    ]
    lines = [line for line in prose.split("\n") if len(line) > LONGEST_LINE and not line.startswith(("|", " ", "!"))]
    return faults + [f"{name}: longer than {LONGEST_LINE} characters: {line}" for line in lines]


def absent_names() -> list[str]:
    """Names with a module, in the first column of docs/api.md, that cannot be imported from it."""
    faults = []
    for row in re.findall(r"^\| (`.+?) \|", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE):
        module = None
        for name in re.findall(r"`([\w.]+)`", row):
            path, _, attribute = name.rpartition(".")
            module = path or module
            if module is None:
                continue
            try:
                found = importlib.import_module(f"transformers_litelvlm.{module}")
                if not hasattr(found, attribute):
                    importlib.import_module(f"transformers_litelvlm.{module}.{attribute}")
            except ImportError:
                faults.append(f"docs/api.md: `{module}.{attribute}` cannot be imported")
    return faults


def undocumented_names() -> list[str]:
    """Public names not in docs/api.md, methods that docs/methods.md does not list, pages missing from the index."""
    import transformers_litelvlm
    from transformers_litelvlm.pruning.registry import list_pruners

    api = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    methods = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    faults = [
        f"docs/api.md: `{name}` is public but not described"
        for name in transformers_litelvlm.__all__
        if f"`{name}" not in api
    ]
    faults += [f"docs/methods.md: no line for `{name}`" for name in list_pruners() if f"| `{name}`" not in methods]
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    faults += [f"docs/index.md: no link to {page}" for page in sorted(pages) if f"({page})" not in index]
    unexplained = set(list_pruners()) - {"none", "random"}
    faults += [f"docs/methods: no page for {name}" for name in unexplained if f"methods/{name}.md" not in pages]
    return faults


if __name__ == "__main__":
    all_pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    problems = [fault for page in all_pages for fault in broken_links(page) + absent_paths(page)]
    problems += [fault for page in (ROOT / "docs").rglob("*.md") for fault in wording(page)]
    problems += absent_names() + undocumented_names()
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(all_pages)} pages: links resolve, public names are described")
