"""The model card of a checkpoint: one template, for converted and for saved ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from transformers.utils import logging

from transformers_litelvlm.hub.markdown import code, plain
from transformers_litelvlm.hub.measured import TEMPLATES, render_measured
from transformers_litelvlm.hub.results import kept_tokens
from transformers_litelvlm.utils.files import write_atomically
from transformers_litelvlm.utils.hub_names import is_cached
from transformers_litelvlm.version import __version__


logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
# In the card of a checkpoint: what is true of its weights, and so of every copy that is saved.
LIMITS_BEGIN, LIMITS_END = (
    "<!-- litelvlm limits: begin (saved copies have it, too) -->",
    "<!-- litelvlm limits: end -->",
)
# What `litelvlm card` replaces once it knows more.
UNKNOWN_TRAINING = "Whether its weights were trained since they were loaded, this card does not know."
# Asked of a checkpoint whose card has no example, `widget` in its metadata.
PICTURE, SENTENCES = "photo.jpg", ("the man in the red shirt", "the dog on the left")


def write_card(folder: Path, card: str) -> None:
    """Put README.md into `folder`, all of it or nothing."""
    with write_atomically(folder) as staging:
        Path(staging, CARD_NAME).write_text(card, encoding="utf-8")


def write_missing_card(folder: Path, config: Any) -> None:
    """Write the README.md of a saved model, if the folder has none, and the pictures of its example."""
    folder = Path(folder)
    if Path(folder, CARD_NAME).exists():
        return
    write_card(folder, render_saved_card(config, name=folder.resolve().name))
    for example in read_metadata(folder / CARD_NAME).get("widget") or []:
        if not _is_address(example["src"]) and not (folder / example["src"]).exists():  # another picture of the user
            shutil.copyfile(Path(config.name_or_path, example["src"]), folder / example["src"])


def render_saved_card(config: Any, name: str | None = None) -> str:
    """The card of a model of this package that was saved, from its config with `architectures`; by default it has the
    name of the folder or repository that the model was loaded from.

    The base model is the one on the Hub that it was loaded from. If it was loaded from a folder, licence, base model,
    example and limits are those of that folder's card. What is not known is left out.
    """
    source = config.name_or_path or ""
    card = Path(source, CARD_NAME)
    known = read_metadata(card) if source and card.is_file() else {}
    base_model = source if _is_from_hub(source) else known.get("base_model")
    of_source = Path(source).name
    name = name or of_source or config.architectures[0]
    return render_card(
        config,
        name=name,
        loaded_from=base_model or (f"the folder {of_source}" if of_source not in ("", name) else None),
        license=known.get("license"),
        base_model=base_model,
        limits=_limits(card) if known else None,
        widget=_examples(known.get("widget"), card.parent),
    )


def _limits(card: Path) -> str | None:
    """The part between the marks, with them, of somebody's card; `None` if it has none."""
    _, begin, rest = card.read_text(encoding="utf-8", errors="replace").partition(LIMITS_BEGIN)
    text, end, _ = rest.partition(LIMITS_END)
    return f"{LIMITS_BEGIN}\n{text.strip()}\n{LIMITS_END}" if begin and end else None


def _examples(widget: Any, folder: Path) -> list[dict[str, str]] | None:
    """Pictures and sentences in the metadata of a card; `None` if they cannot stand in a program as they are, or a
    picture is not in the folder of the card."""
    try:
        texts = [text for example in widget for text in (example["src"], example["text"])]
    except (KeyError, TypeError):
        return None
    is_plain = texts and all(isinstance(text, str) and re.fullmatch(r"[\w ./:-]{1,200}", text) for text in texts)
    if not is_plain or not all(_is_address(src) or _is_in(folder, src) for src in texts[::2]):
        return None
    return [{"src": example["src"], "text": example["text"]} for example in widget]


def _is_address(picture: str) -> bool:
    return picture.startswith("https://")


def _is_in(folder: Path, picture: str) -> bool:
    is_name = re.fullmatch(r"[\w-]+\.(png|jpg)", picture)
    return bool(is_name) and Path(folder, picture).is_file()


def render_card(
    config: Any,
    name: str,
    template: str = "card.md.jinja",
    license: str | None = None,
    base_model: str | list[str] | None = None,
    title: str | None = None,
    widget: list[dict[str, str]] | None = None,
    limits: str | None = None,
    **more: Any,
) -> str:
    """A whole card, in which nothing is measured yet; `widget` has examples for the metadata, `src` and `text` of
    each, `limits` are those of the weights, and `more` is for the template."""
    model_class = config.architectures[0]
    writes_masks, answers = model_class.endswith("Segmentation"), model_class.endswith("Generation")
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation" if writes_masks else "image-text-to-text" if answers else None,
        license=license,
        base_model=base_model,
        widget=widget,
        tags=["visual-token-pruning", "litelvlm", *(["referring-segmentation"] if writes_masks else [])],
    )
    return TEMPLATES.get_template(template).render(
        card_data=data.to_yaml(),
        name=name,
        title=title or config.family_title,
        base_model=base_model,
        writes_masks=writes_masks,
        answers=answers,
        model_class=model_class,
        question=config.example_question,
        picture=widget[0]["src"] if widget else PICTURE,
        takes_photo=answers or (writes_masks and not widget),
        sentences=[example["text"] for example in widget] if widget else SENTENCES,
        setting=describe_setting(config),
        limits=limits,
        num_tokens=config.num_visual_tokens,
        presets=describe_presets(config),
        pruning=config.pruning_config,
        unknown_training=UNKNOWN_TRAINING,
        measured=render_measured([], config.pruning_config, config.num_visual_tokens),
        version=__version__,
        **more,
    )


def describe_setting(config: Any) -> str | None:
    """The setting of config.json in words; `None` if it prunes nothing."""
    pruning, num_tokens = config.pruning_config, config.num_visual_tokens
    if not pruning.is_on:
        return None
    options = "".join(f", {name}={value}" for name, value in pruning.method_options.items())
    then = "" if pruning.then is None else f", then {plain(pruning.then)}"
    return (
        f"{plain(kept_tokens(pruning, num_tokens))} visual tokens, chosen by {code(pruning.method + options)}{then}, "
        f"in {pruning.resolved_token_order} order with {pruning.resolved_position_ids} positions"
    )


def describe_presets(config: Any) -> list[tuple[str, str]]:
    """Name and meaning of every preset that `config` can follow, as a card has them."""
    described, pruning, num_tokens = [], config.pruning_config, config.num_visual_tokens
    for name, changes in pruning.presets.items():
        try:
            config.check_pruning(pruning.apply_preset(name))
        except ValueError:
            continue
        kept = []
        ratio, budget = changes.get("retention_ratio"), changes.get("budget")
        if ratio is not None or budget is not None:
            if num_tokens is not None:
                budget = pruning.apply_preset(name).resolve(num_tokens) or num_tokens
                kept = [f"{budget} of {num_tokens} visual tokens"]
            else:
                kept = [f"{budget} visual tokens" if budget is not None else f"{ratio:.3g} of the visual tokens"]
        others = [
            f"{key} = {value}"
            for key, value in changes.items()
            if key not in ("budget", "retention_ratio") and value is not None
        ]
        described.append((name, ", ".join(kept + others)))
    return described


def read_metadata(file: Path) -> dict[str, Any]:
    """Metadata of somebody's card; none if they cannot be read, which is no reason to lose a checkpoint."""
    try:
        return ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:
        logger.warning(f"The metadata of {file} cannot be read ({error}): licence and base model are left out.")
        return {}


def _is_from_hub(source: str) -> bool:
    """Whether a config's `name_or_path` is an id: what was loaded from the Hub is in its cache, no folder is."""
    if not source or Path(source).exists():
        return False
    try:
        return is_cached(source)
    except HFValidationError:
        return False


def add_tags(card_of: str | Path, tags: list[str], file: Path, token: bool | str | None = None) -> None:
    """Write the card of a folder or repository to `file`, with `tags` added."""
    card = ModelCard.load(card_of, token=token)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags])) or None
    card.save(file)
