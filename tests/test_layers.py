"""Who may import whom: a part of the package imports parts of the layers before it, and nothing else."""

import ast
from pathlib import Path

import pytest

import transformers_litelvlm


PACKAGE = "transformers_litelvlm"
ROOT = Path(transformers_litelvlm.__file__).parent
# The parts of a layer do not import each other. `__init__` stands for the public names of the package.
LAYERS = (
    ("version",),
    ("utils", "pruning"),
    ("configuration_pruning",),
    ("hub",),
    ("models",),
    ("conversion", "data", "pipelines", "visualization"),
    ("__init__",),
    ("evaluation",),
    ("analysis", "benchmark", "calibration"),
    ("serving",),
    ("demo", "integrations"),
    ("cli",),
)
LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}


def module_of(file: Path) -> str:
    return ".".join((PACKAGE, *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


TREES = {module_of(file): ast.parse(file.read_text(encoding="utf-8")) for file in sorted(ROOT.rglob("*.py"))}


def targets(node: ast.AST, module: str) -> list[str]:
    """Names that a piece of code imports: by a statement, anywhere, or as a text that is the name of a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        beginning = module.split(".")[: -node.level] if node.level else []
        base = ".".join([*beginning, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
        return [node.value.partition(":")[0]]
    return []


def imports(module: str) -> dict[str, int]:
    """The modules of this package that a module imports, with the line of each."""
    found = {}
    for node in ast.walk(TREES[module]):
        for name in targets(node, module):
            if name.split(".")[0] != PACKAGE or (name == PACKAGE and isinstance(node, ast.Constant)):
                continue
            while name not in TREES:  # a name in a module
                name = name.rpartition(".")[0]
            found.setdefault(name, node.lineno)
    return found


def part_of(module: str) -> str:
    return (module.split(".") + ["__init__"])[1]


def test_every_part_has_a_layer():
    assert {part_of(module) for module in TREES} <= set(LAYER_OF)


@pytest.mark.parametrize("part", [part for part in LAYER_OF if any(part_of(module) == part for module in TREES)])
def test_layers(part):
    wrong = [
        f"{module}:{line} imports {name}"
        for module in TREES
        if part_of(module) == part
        for name, line in imports(module).items()
        if part_of(name) != part and LAYER_OF[part_of(name)] >= LAYER_OF[part]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_is_computed():
    """What is imported by a computed name, nothing can check. What a user names is no part of the package."""
    computed = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        if module != f"{PACKAGE}.pruning.importing"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__", "spec_from_file_location")
        and not all(isinstance(argument, ast.Constant) for argument in node.args)
    ]
    assert not computed, computed


def test_no_cycles():
    """Not even those that imports in functions hide."""
    graph = {module: set(imports(module)) - {module, PACKAGE} for module in TREES}
    while free := {module for module, needed in graph.items() if not needed & graph.keys()}:
        graph = {module: needed for module, needed in graph.items() if module not in free}
    assert not graph, {module: sorted(needed & graph.keys()) for module, needed in graph.items()}
