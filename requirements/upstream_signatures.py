"""What transformers looks like where this package touches it: parameter names, recorded and compared.

The package subclasses the insides of transformers. A release that renames a parameter there need not fail: our method
may keep its old name and ignore the new one. So `make lock` records the names, and `make test-newest` compares them
with the newest release, also where our package can no longer be imported.

    python requirements/upstream_signatures.py record     # writes upstream_signatures.json
    python requirements/upstream_signatures.py compare    # prints differences; exit code 1 if there are any
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


RECORD = Path(__file__).with_suffix(".json")
SOURCES = Path(__file__).resolve().parents[1] / "src"
PACKAGE, UPSTREAM = "transformers_litelvlm", "transformers"
# Installed in environments of their own alone. What stands on them derives from no class of transformers.
ELSEWHERE = ("gradio", "vllm")
GONE = "(gone)"


# --- what we touch ---


def signatures() -> dict[str, str]:
    """
    Dotted name to parameter names, of all that the package imports, subclasses, overrides or calls. Imports it.

    What is called is guessed from the names in our source. The layers of a model are called without being named there,
    so `forward` of every class in a modeling file counts from which we take anything.
    """
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCES.rglob("*.py"))]
    imported = dict(_imported(trees))
    found = {name: _described(thing) for name, thing in imported.items() if not isinstance(thing, type)}
    # A class goes by the name that our source has for it.
    name_of = {thing: name for name, thing in sorted(imported.items(), reverse=True) if isinstance(thing, type)}
    overridden = _overridden()
    for cls in name_of.keys() | overridden.keys():
        for method in {"__init__", "forward"} | overridden.get(cls, set()):
            if _defined_by(cls, method):
                found[f"{name_of.get(cls, _dotted(cls))}.{method}"] = _described(_member(cls, method))
    called = {node.func.attr for node in _nodes(trees, ast.Call) if isinstance(node.func, ast.Attribute)}
    called.discard("__setattr__")  # a class of any kind has it
    for cls in name_of.keys() | overridden.keys():
        for method in called:
            owner = _defined_by(cls, method)
            if owner and callable(getattr(owner, method)):
                found.setdefault(f"{name_of.get(owner, _dotted(owner))}.{method}", _described(_member(owner, method)))
    for cls in _layers([*imported.values(), *overridden]):
        found.setdefault(f"{name_of.get(cls, _dotted(cls))}.forward", _described(cls.forward))
    return dict(sorted(found.items()))


def _nodes(trees: Iterable[ast.AST], kind: type) -> Iterator[Any]:
    return (node for tree in trees for node in ast.walk(tree) if isinstance(node, kind))


def _imported(trees: list[ast.Module]) -> Iterator[tuple[str, Any]]:
    """What our source imports of transformers by name, also inside functions; no modules."""
    for node in _nodes(trees, ast.ImportFrom):
        if node.level == 0 and node.module.split(".")[0] == UPSTREAM:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                thing = resolve(name)
                if not isinstance(thing, types.ModuleType):
                    yield name, thing


def _overridden() -> dict[type, set[str]]:
    """The classes of transformers that ours derive from, and the members of each that ours replace."""
    package = importlib.import_module(PACKAGE)
    overridden: dict[type, set[str]] = {}
    for info in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
        if info.name.endswith("__main__"):
            continue
        try:
            module = importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            if error.name not in ELSEWHERE:
                raise
            continue
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == info.name:
                for base, names in _replaced_by(cls):
                    overridden.setdefault(base, set()).update(names)
    return overridden


def _replaced_by(cls: type) -> Iterator[tuple[type, set[str]]]:
    """For each direct base of ours that is upstream's, what stands before it in the method resolution order."""
    ours = [parent for parent in cls.__mro__ if _is_of(parent, PACKAGE)]
    for base in {base for parent in ours for base in parent.__bases__ if _is_of(base, UPSTREAM)}:
        before = cls.__mro__[: cls.__mro__.index(base)]
        names = {name for parent in ours if parent in before for name in vars(parent)}
        yield base, {name for name in names if not name.startswith("__") or name == "__call__"}


def _layers(things: Iterable[Any]) -> Iterator[type]:
    """The classes with a `forward` of their own in the modeling files that `things` come from."""
    for name in {getattr(thing, "__module__", "") or "" for thing in things}:
        if name.startswith(f"{UPSTREAM}.models.") and ".modeling_" in name:
            for cls in vars(sys.modules[name]).values():
                if isinstance(cls, type) and cls.__module__ == name and "forward" in vars(cls):
                    yield cls


def _is_of(cls: type, package: str) -> bool:
    return cls.__module__.split(".")[0] == package


def _dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _defined_by(cls: type, name: str) -> type | None:
    """The class of transformers that gives `cls` this method or property; `None` where torch or Python does."""
    owner = next((parent for parent in cls.__mro__ if name in vars(parent)), None)
    if owner is None or not _is_of(owner, UPSTREAM):
        return None
    member = inspect.getattr_static(cls, name)
    return owner if isinstance(member, property) or inspect.isroutine(getattr(cls, name)) else None


# --- what it looks like ---


def resolve(name: str) -> Any:
    """What a dotted name leads to, [`GONE`] where that is nothing."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:end]))
        except Exception:  # no module, or one that fails
            continue
        for position, part in enumerate(parts[end:], end):
            is_last = position == len(parts) - 1
            try:
                thing = _member(thing, part) if is_last and isinstance(thing, type) else getattr(thing, part)
            except Exception:  # an attribute of transformers may be an import
                return GONE
        return thing
    return GONE


def _member(cls: type, name: str) -> Any:
    """A method, or a property as it is."""
    static = inspect.getattr_static(cls, name)
    return static if isinstance(static, property) else getattr(cls, name)


def _described(thing: Any) -> str:
    """The names of the parameters, without `self`; a word in brackets for what has none."""
    if thing is GONE:
        return GONE
    if isinstance(thing, property):
        return "(property)"
    if isinstance(thing, type):
        return "(class)"
    if not callable(thing):
        return "(constant)"
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    try:
        parameters = inspect.signature(thing).parameters.values()
    except ValueError:
        return "(no signature)"
    return ", ".join(stars.get(each.kind, "") + each.name for each in parameters if each.name != "self")


# --- record and compare ---


def read_record() -> dict[str, Any]:
    """`transformers`, the version that was recorded, and `signatures`."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def differences(recorded: dict[str, str]) -> list[str]:
    """A line for each recorded name that the installed transformers lacks, or has with other parameters."""
    lines = []
    for name, before in recorded.items():
        now = _described(resolve(name))
        if now != before:
            lines.append(f"{name}: {_difference(before, now)}")
    return lines


def _difference(before: str, now: str) -> str:
    if now == GONE:
        return "gone"
    if "(" in before + now:
        return f"was {before or 'without parameters'}, is {now or 'without parameters'}"
    old, new = before.split(", "), now.split(", ")
    gone, added = [name for name in old if name not in new], [name for name in new if name not in old]
    parts = [f"gone {', '.join(gone)}"] if gone else []
    parts += [f"new {', '.join(added)}"] if added else []
    return "; ".join(parts) or f"other order, {now}"


def record() -> int:
    """Writes the file."""
    content = {UPSTREAM: importlib.import_module(UPSTREAM).__version__, "signatures": signatures()}
    RECORD.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{RECORD}: {len(content['signatures'])} names of {UPSTREAM} {content[UPSTREAM]}")
    return 0


def compare() -> int:
    """Prints what differs; 1 if anything does, or if our package cannot be imported."""
    recorded = read_record()
    version = importlib.import_module(UPSTREAM).__version__
    failed = False
    try:
        importlib.import_module(PACKAGE)
    except Exception as error:
        failed = True
        print(f"{PACKAGE} cannot be imported with {UPSTREAM} {version}: {type(error).__name__}: {error}")
    lines = differences(recorded["signatures"])
    versions = f"{UPSTREAM} {recorded[UPSTREAM]} (recorded) and {version} (installed)"
    print(f"{len(lines)} of {len(recorded['signatures'])} names differ between {versions}{':' if lines else '.'}")
    for line in lines:
        print(f"  {line}")
    return int(failed or bool(lines))


if __name__ == "__main__":
    commands = {"record": record, "compare": compare}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(f"usage: upstream_signatures.py {'|'.join(commands)}")
    sys.exit(commands[sys.argv[1]]())
