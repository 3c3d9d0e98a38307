"""What we take from transformers: by one module, in a tested window, and no argument that it renames is lost."""

import ast
import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import transformers

import transformers_litelvlm
from tests.support.families import FAMILIES, family_params
from tests.support.matrix import matrix
from transformers_litelvlm.models import upstream
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation
from transformers_litelvlm.models.pruned_config import PRUNING_KEYWORDS


SOURCE = Path(transformers_litelvlm.__file__).parent
# What the documentation of transformers lists outside its top level.
DOCUMENTED = {
    "transformers.utils": {"logging", "ModelOutput"},
    "transformers.pipelines": {"PIPELINE_REGISTRY"},
    "transformers.modeling_outputs": {"BaseModelOutput", "BaseModelOutputWithPooling"},
}


def imports_of(path):
    """Module and name of everything that a file imports from transformers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "transformers")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
            yield from ((node.module, alias.name) for alias in node.names)


def test_insides_of_transformers_are_imported_in_one_module():
    others = [path for path in SOURCE.rglob("*.py") if path.name != "upstream.py"]
    found = {
        f"{path.relative_to(SOURCE)}: {module}.{name}"
        for path in others
        for module, name in imports_of(path)
        if name not in DOCUMENTED.get(module, ()) and (module != "transformers" or (name or "").startswith("_"))
        if (module, name) != ("transformers", None)
    }
    assert not found
    assert len(list(imports_of(SOURCE / "models" / "upstream.py"))) > 20  # the parser does see them


def test_all_that_is_imported_from_the_insides_of_transformers_is_used():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
    used = {node.id for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imports = [node for node in trees[Path(upstream.__file__)].body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname or alias.name for node in imports for alias in node.names} - used == set()


def test_no_old_names_of_upstream_are_left():
    # `takes_old_cache_name` is for callers who still say `past_key_values`.
    text = {path: path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py") if path.name != "upstream.py"}
    assert not [path for path, source in text.items() if re.search("past_key_values|image_hidden_states", source)]


def test_the_window_is_the_one_of_setup_cfg():
    bounds = f"transformers>={upstream.FIRST_TESTED},<{upstream.FIRST_UNTESTED}"
    assert bounds in (Path(__file__).parents[2] / "setup.cfg").read_text(encoding="utf-8").split()


@pytest.mark.slow
@pytest.mark.parametrize("version", matrix(["5.22.3", "5.25.0"], "5.25.0".__eq__))
def test_a_transformers_outside_the_window_warns_once(version):
    program = (  # modules of transformers are loaded when they are used, and while they are, the version is set again
        "import sys; from transformers import LlavaModel, Pipeline; "
        f"sys.modules['transformers'].__version__ = {version!r}; import transformers_litelvlm"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    warned = [line for line in result.stderr.splitlines() if "was tested with transformers" in line]
    assert result.returncode == 0 and len(warned) == 1, result.stderr
    assert (
        f"transformers {version} is installed" in warned[0] and "pip install 'transformers>=5.24,<5.25'" in warned[0]
    )


@pytest.mark.parametrize("version", ["5.24.0", "5.24.7", "5.24.0.dev0"])
def test_a_transformers_inside_the_window_is_silent(version):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upstream.warn_outside_window(version)


# As `python -W error`, but older versions of torchao warn of themselves.
IMPORT_WITHOUT_WARNINGS = """
import warnings
warnings.filterwarnings("error")
warnings.filterwarnings("ignore", module="torchao")
import transformers_litelvlm
"""


@pytest.mark.slow
def test_the_package_imports_without_any_warning():
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT_WARNINGS], capture_output=True, text=True, timeout=120
    )
    # torchao, which transformers imports if it is there, logs what it cannot load.
    own = [line for line in result.stderr.splitlines() if "torchao" not in line and "torch/utils/_pytree" not in line]
    assert (result.returncode, own) == (0, [])


# ---- arguments ------------------------------------------------------------------------------------------------------

# Arguments of methods that upstream has too, which are ours.
GUIDANCE = {"guidance_input_ids", "guidance_attention_mask", "guidance_pixel_values", "pruning_config"}
OURS = {
    "forward": {*GUIDANCE, "num_tiles"},
    "get_image_features": {*GUIDANCE, "num_tiles"},
    "get_video_features": GUIDANCE,
    "from_pretrained": {"output_loading_info", "guidance_model", "guidance_tokenizer", *PRUNING_KEYWORDS},
    "__call__": {"expressions"},
    "__init__": {
        *("guidance_tokenizer", "guidance_image_processor", "mask_image_processor", "mask_image_size", "seg_token"),
        *("question_templates", "answer_templates", "user_marker", "assistant_marker"),
        *("lowercase_expressions", "normalize_expressions", "one_expression_per_dialogue", "knows_scenes_alone"),
        "grounding_media",
    },
    "apply_chat_template": {"processor_kwargs"},
    "save_pretrained": {"push_to_hub"},
    "push_to_hub": {"max_shard_size", "tags"},
    "generate": {"pruning_config"},
    "_preprocess": set(),
}


def our_classes():
    for family in FAMILIES:
        yield from (family.base_class, family.model_class, family.processor_class)
        if family.config_class in AutoModelForReferringSegmentation._model_mapping:
            yield AutoModelForReferringSegmentation._model_mapping[family.config_class]


def overridden():
    """Each method of ours that a class of transformers defines too, with upstream's."""
    for cls in our_classes():
        for name in sorted({name for parent in cls.__mro__ for name in vars(parent)}):
            if name.startswith("__") and name not in ("__init__", "__call__"):
                continue
            definitions = [(parent, vars(parent)[name]) for parent in cls.__mro__ if name in vars(parent)]
            ours, *_ = definitions
            theirs = next((each for each in definitions if each[0].__module__.startswith("transformers.")), None)
            if not ours[0].__module__.startswith("transformers_litelvlm") or theirs is None:
                continue
            functions = [getattr(each, "__func__", each) for _, each in (ours, theirs)]
            if all(map(inspect.isfunction, functions)):
                yield ours[0].__name__, name, *functions


CASES = {f"{cls}.{name}": (name, ours, theirs) for cls, name, ours, theirs in overridden()}


@pytest.mark.parametrize("case", CASES)
def test_no_argument_of_upstream_is_lost(case):
    """When upstream renames an argument, ours is one that upstream does not have: then this fails."""
    name, ours, theirs = CASES[case]
    own, parent = (inspect.signature(function).parameters for function in (ours, theirs))
    kinds = {kind: {n for n, p in own.items() if p.kind == kind} for kind in {p.kind for p in own.values()}}
    variable = kinds.get(inspect.Parameter.VAR_KEYWORD, set()) | kinds.get(inspect.Parameter.VAR_POSITIONAL, set())
    named = set(own) - variable
    invented = named - set(parent) - OURS.get(name, set())
    assert not invented, f"{case} has arguments that upstream does not know: {sorted(invented)}"
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        assert set(parent) <= set(own) or all(
            parent[n].kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            for n in set(parent) - set(own)
        )


def test_forward_is_among_the_methods_compared():
    assert {f"{family.base_class.__name__}.forward" for family in FAMILIES} <= set(CASES)


@pytest.mark.parametrize("family", family_params(FAMILIES), ids=lambda family: family.name)
def test_the_old_name_of_the_cache_works_and_says_so(family, no_upstream_deprecation):
    model = family.model().eval()
    inputs = family.row(1)
    first, again = (model(**inputs, use_cache=True) for _ in range(2))
    new = {"input_ids": inputs["input_ids"][:, -1:]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        old = model(**new, past_key_values=first.cache).logits
    messages = [str(w.message) for w in caught] + no_upstream_deprecation.messages
    assert any("`past_key_values` is deprecated" in message for message in messages)
    no_upstream_deprecation.messages.clear()
    assert old.equal(model(**new, cache=again.cache).logits)


def test_transformers_is_the_one_of_the_window():
    upstream.warn_outside_window(transformers.__version__)
