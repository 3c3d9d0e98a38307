"""The part of a card that is measured: a region between two marks, which can be written again and again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.hub.markdown import code, plain, templates
from transformers_litelvlm.hub.metadata import describe, describe_layout
from transformers_litelvlm.hub.results import CardError, MeasuredGroup, MeasuredResults, kept_tokens


BEGIN = "<!-- litelvlm card: begin (written by the command, changes in here are lost) -->"
END = "<!-- litelvlm card: end -->"
# What comes before the last part of a local absolute path; an address of the web is none. In quotes, it has spaces.
_FOLDERS = re.compile(r"""((?<=['"])/(?:[^'"/,]+/)+|(?<![\w./:~-])/(?:[^\s'"/,]+/)+)(?=[^\s'"/,])""")
TEMPLATES = templates(Path(__file__).parent, undefined=jinja2.StrictUndefined)


def render_measured(results: Sequence[MeasuredResults], pruning: PruningConfig, num_tokens: int | None) -> str:
    """The region, marks included: for every results.json the presets and all runs with 95 % intervals.

    Args:
        results: may be empty; the region then says that nothing was measured.
        pruning: setting of the checkpoint, with its presets.
        num_tokens: visual tokens of an image, `None` if its size decides.
    """
    reports = [_report(one, pruning, num_tokens) for one in results]
    has_one_method = {pruning.apply_preset(name).method for name in pruning.presets} == {pruning.method}
    return (
        TEMPLATES.get_template("measured.md.jinja")
        .render(reports=reports, method=pruning.method if has_one_method else None, begin=BEGIN, end=END)
        .rstrip("\n")
    )


def replace_region(card: str, region: str, begin: str = BEGIN, end: str = END) -> str:
    """The card with `region` in place of the one between two marks, or at its end if it has no marks. Raises CardError
    if the marks of the card are not one pair."""
    marks = card.count(begin), card.count(end)
    if marks == (0, 0):
        return f"{card.rstrip()}\n\n{region}\n"
    before, _, rest = card.partition(begin)
    old, _, after = rest.partition(end)
    if marks != (1, 1) or end in before:
        raise CardError(
            f"the card must have `{begin}` and `{end}` once each, in this order, or neither: remove what is too much"
        )
    return before + region + after


def without_folders(text: str) -> str:
    """A command, or settings, with local absolute paths shortened to their last part: a card is public."""
    return _FOLDERS.sub("", text)


def measured_presets(
    results: MeasuredResults, pruning: PruningConfig, num_tokens: int | None
) -> dict[str, MeasuredGroup | None]:
    """Every preset that keeps fewer tokens -> its group, `None` if it was not measured."""
    settings = {name: pruning.apply_preset(name) for name in pruning.presets}
    return {
        name: next((group for group in results.groups if group.is_what(setting, num_tokens)), None)
        for name, setting in settings.items()
        if setting.is_on and (num_tokens is None or setting.resolve(num_tokens) is not None)
    }


def _report(results: MeasuredResults, pruning: PruningConfig, num_tokens: int | None) -> dict[str, Any]:
    layouts = {layout for group in results.groups if (layout := describe_layout(group))}
    is_common = len(layouts) == 1  # said once
    presets = measured_presets(results, pruning, num_tokens)
    return {
        "results": results,
        "settings": without_folders(json.dumps(results.settings, sort_keys=True)),
        "command": without_folders(results.environment.get("command") or ""),
        "layout": ", ".join(layouts) if is_common else "",
        "presets": [
            (code(name).replace("|", "\\|"), kept_tokens(pruning.apply_preset(name), num_tokens), group)
            for name, group in presets.items()
        ],
        "runs": [
            (plain(describe(group, not is_common)), kept_tokens(group, num_tokens), group) for group in results.groups
        ],
    }
