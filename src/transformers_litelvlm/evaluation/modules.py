"""The scores as modules of the `evaluate` library, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers_litelvlm.utils.extras import needs_extra


MODULES = ("ciou", "giou", "precision_at_iou", "j_and_f")


def module_path(name: str) -> str:
    """The file of a module, for `evaluate.load(module_path("giou"))`.

    Args:
        name: one of `MODULES`.

    Raises:
        ValueError: unknown name; lists the known ones.
    """
    if name not in MODULES:
        raise ValueError(f"`name` must be one of {', '.join(MODULES)}, got {name!r}.")
    return str(Path(__file__).parent / "evaluate_modules" / f"{name}.py")


def load_module(name: str, **options: Any) -> Any:
    """A module, to be used alone or in `evaluate.combine`.

    Args:
        name: one of `MODULES`.
        options: of `evaluate.load`: `config_name="ignore"` for references with ignore regions, `num_process`,
            `process_id`, `experiment_id` for several processes, ...

    Returns:
        The module.

    Example:
        >>> import evaluate
        >>> from transformers_litelvlm.data import encode_mask, generate_scene
        >>> mask = encode_mask(generate_scene("test", 0).mask(0))
        >>> both = evaluate.combine([load_module("ciou"), load_module("giou")])
        >>> both.compute(predictions=[mask], references=[mask])
        {'ciou': 1.0, 'giou': 1.0}
    """
    with needs_extra("eval", "A module of `evaluate`"):
        import evaluate

    return evaluate.load(module_path(name), **options)
