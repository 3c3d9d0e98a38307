"""The options of an evaluation: one dataclass, from which the command line is made."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar


DESCRIPTION = (
    "Measure pruning methods at several budgets on a data set for referring segmentation. Writes results.json, a"
    " Markdown table, and one record per sentence. After an interruption, start it again with the same options, and it"
    " continues."
)
PROTOCOLS = ("all", "glamm", "annotators")
# Those of models/quantization.py, which imports torch.
QUANTIZATIONS = ("none", "int8", "int4")
ON_UNREADABLE = ("stop", "continue")


def option(help_text: str, default: Any = dataclasses.MISSING, **metadata: Any) -> Any:
    """A field of [`EvaluationArguments`], or of a subclass, with what `argparse` wants to know of it."""
    metadata["help"] = help_text
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataArguments:
    """On which model and data something is measured, and where the results go.

    Args:
        output_dir: folder of the results. A run that was interrupted goes on there.
        model: checkpoint folder or Hub id; the bundled checkpoint by default.
        dataset: a data set of [`load_split`].
        split: its split.
        source: folder, file or Hub id of the data; the data set's own by default.
        max_images: only the first images, or videos.
        batch_size: images or videos that one process takes, and saves, at a time. No result depends on it.
        imports: files and modules that register pruning methods, see [`import_methods`]; every process imports them.

    Raises:
        ValueError: an option is out of range; names it and its value.
    """

    output_dir: str = option(
        "folder of the results; give the same one to continue after an interruption", metavar="DIR"
    )
    model: str | None = option("checkpoint folder or Hub id (default: the bundled one)", None, metavar="PATH")
    dataset: str = option("name of a data set, see docs/data.md", "refshapes", metavar="NAME")
    split: str = option("its split", "test", metavar="NAME")
    source: str | None = option("folder, file or Hub id of the data (default: the set's own)", None, metavar="PATH")
    max_images: int | None = option("only the first images, or videos", None, metavar="N")
    batch_size: int = option("images or videos that a process takes, and saves, at a time", 8, metavar="N")
    imports: list[str] = option("see [`add_imports`]", [])

    def __post_init__(self) -> None:
        for name in ("max_images", "batch_size"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
        for name in ("methods", "budgets", "seeds", "imports"):
            values = getattr(self, name, [])
            if not isinstance(values, list) or len(set(values)) != len(values):
                raise ValueError(f"`{name}` must be a list without repetition, got {values!r}.")
        for budget in getattr(self, "budgets", []):
            if not (type(budget) is int and budget >= 1 or type(budget) is float and 0 < budget < 1):
                raise ValueError(f"`budgets` must be integers of at least 1 or fractions below 1, got {budget!r}.")
        seeds = getattr(self, "seeds", [0])
        if any(type(seed) is not int or seed < 0 for seed in seeds) or not seeds:
            raise ValueError(f"`seeds` must be one or more non-negative integers, got {seeds!r}.")


@dataclass(frozen=True)
class EvaluationArguments(DataArguments):
    """What to measure.

    Everything about the model (prompts, layout, number format) is the checkpoint's to say; devices and processes are
    those of `accelerate launch`.

    Args:
        methods: `NAME` or `NAME:KEY=VALUE,...`, the values in JSON. Keys are options of the method, or `token_order`
            and `position_ids` of [`PruningConfig`]. `"none"` is the unpruned model, which the others are compared
            with; the first other one is tested against the rest.
        budgets: visual tokens kept per image, or, below 1, the fraction of them.
        seeds: one run each for methods with a `seed`; under the protocol `"glamm"` for every method.
        protocol: `"all"`: every sentence, in a dialogue of its own. `"glamm"`: at most three random sentences of an
            image, in one dialogue, asked by random templates, as GLaMM and LiteLVLM evaluate, but seeded.
            `"annotators"`: Ref-DAVIS17 as ReferFormer scores it, all objects of a video together, for each of four
            annotators.
        mask_model: a stock mask model, folder or Hub id, that is prompted with the boxes that `model` answers with,
            see [`BoxSegmentation`]; then the accuracy of boxes is measured, too.
        quantization: of the language model's weights, `"none"`, `"int8"` or `"int4"`, see [`quantization_config`].
        on_unreadable: at an image that cannot be read, `"stop"`, or `"continue"`: its sentences, or all expressions
            of its video, count as wrong and are flagged.
        The rest as [`DataArguments`].

    Raises:
        ValueError: an option is out of range; names it and its value.
    """

    methods: list[str] = option(
        "pruning methods, NAME or NAME:KEY=VALUE,... ; none is the unpruned model",
        ["none", "litelvlm", "random"],
        metavar="METHOD",
    )
    budgets: list[int | float] = option(
        "visual tokens kept per image; below 1, the fraction of them", [0.3333, 0.2222, 0.1111], metavar="N"
    )
    seeds: list[int] = option("one run per seed for methods that use one", [0, 1, 2], metavar="SEED")
    protocol: str = option(
        "all: every sentence in its own dialogue; glamm: at most three random ones per image in one dialogue;"
        " annotators: Ref-DAVIS17, all objects of a video together",
        "all",
        choices=PROTOCOLS,
    )
    mask_model: str | None = option(
        "SAM or SAM 2, folder or Hub id, for a model that answers with boxes", None, metavar="PATH"
    )
    quantization: str = option("of the language model's weights", "none", choices=QUANTIZATIONS)
    on_unreadable: str = option(
        "stop at an image that cannot be read, or count its sentences as wrong", "stop", choices=ON_UNREADABLE
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        of_names = {"protocol": PROTOCOLS, "quantization": QUANTIZATIONS, "on_unreadable": ON_UNREADABLE}
        for name, choices in of_names.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if not self.methods:
            raise ValueError("`methods` is empty: name at least one, `none` for the unpruned model.")


Options = TypeVar("Options", bound=DataArguments)


def add_arguments(parser: argparse.ArgumentParser, kind: type[DataArguments] = EvaluationArguments) -> None:
    """Add an option for every field of [`DataArguments`] or a subclass."""
    kinds = {"list[str]": str, "list[int | float]": _number, "list[int]": int}
    kinds |= {"int": int, "int | None": int, "float": float}
    for entry in dataclasses.fields(kind):
        if entry.name == "imports":
            add_imports(parser)
            continue
        keywords: dict[str, Any] = dict(entry.metadata)
        if entry.type == "bool":
            parser.add_argument("--" + entry.name.replace("_", "-"), action="store_true", **keywords)
            continue
        if str(entry.type).startswith("list"):
            keywords["nargs"] = "+"
        if entry.default_factory is not dataclasses.MISSING:
            keywords["default"] = entry.default_factory()
        else:
            keywords["required"] = entry.default is dataclasses.MISSING
            keywords["default"] = None if keywords["required"] else entry.default
        if keywords["default"] is not None:
            keywords["help"] += " (default: %(default)s)"
        keywords["type"] = kinds.get(str(entry.type), str)
        parser.add_argument("--" + entry.name.replace("_", "-"), **keywords)


def add_imports(parser: argparse.ArgumentParser) -> None:
    """Add the option `--import` of all sub-commands that use pruning methods."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE_OR_MODULE",
        help="a Python file (*.py) or module that registers pruning methods, to be imported first; repeatable",
    )


def from_namespace(namespace: argparse.Namespace, kind: type[Options]) -> Options:
    """The options that [`add_arguments`] parsed."""
    return kind(**{entry.name: getattr(namespace, entry.name) for entry in dataclasses.fields(kind)})


def as_command_line(args: DataArguments) -> list[str]:
    """Words that [`add_arguments`] reads as these options."""
    words = []
    for name, value in vars(args).items():
        if name == "imports":
            words += [f"--import={source}" for source in value]
        elif value is True:
            words.append("--" + name.replace("_", "-"))
        elif value is not None and value is not False:
            words.append("--" + name.replace("_", "-"))
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return words


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)
