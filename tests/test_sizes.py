"""Sizes that keep the code readable: of functions, of their arguments, and of the package."""

import ast
from pathlib import Path

import transformers_litelvlm


SOURCE = Path(transformers_litelvlm.__file__).parent
LARGEST_FUNCTION, MOST_PARAMETERS, LARGEST_PACKAGE = 60, 8, 36_200
# Upstream's signatures: constructors and `from_pretrained` with arguments of ours, and a method that upstream calls.
UPSTREAM = {
    "models/auto.py: AutoModelForReferringSegmentation.from_pretrained",
    "models/loading.py: GuidedLoadingMixin.from_pretrained",
    "models/internvl_lite/processing_internvl_lite.py: InternVLLiteProcessor.__init__",
    "models/llava_lite/processing_llava_lite.py: LlavaLiteProcessor.__init__",
    "models/qwen2_5_vl_lite/processing_qwen2_5_vl_lite.py: Qwen2_5_VLLiteProcessor.__init__",
    "models/qwen3_vl_lite/processing_qwen3_vl_lite.py: Qwen3_VLLiteProcessor.__init__",
    "models/qwen2_5_vl_lite/video_processing_qwen2_5_vl_lite.py: Qwen2_5_VLLiteVideoProcessor._preprocess",
}


def functions():
    """Name, number of lines without the docstring, and number of parameters."""
    for path in sorted(SOURCE.rglob("*.py")):
        classes = [ast.parse(path.read_text(encoding="utf-8"))]
        for parent in classes:
            for node in ast.iter_child_nodes(parent):
                if isinstance(node, ast.ClassDef):
                    classes.append(node)
                elif isinstance(node, ast.FunctionDef):
                    classes.append(node)
                    owner = f"{parent.name}." if isinstance(parent, ast.ClassDef) else ""
                    arguments = node.args
                    names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                    count = len([name for name in names if name.arg not in ("self", "cls")])
                    start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
                    yield f"{path.relative_to(SOURCE)}: {owner}{node.name}", node.end_lineno - start + 1, count


def test_functions_are_short():
    assert {name: lines for name, lines, _ in functions() if lines > LARGEST_FUNCTION} == {}


def test_functions_have_few_parameters():
    many = {name: count for name, _, count in functions() if count > MOST_PARAMETERS}
    assert {name: count for name, count in many.items() if name not in UPSTREAM} == {}


def test_the_package_is_no_larger_than_it_has_to_be():
    total = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE.rglob("*.py"))
    assert total <= LARGEST_PACKAGE
