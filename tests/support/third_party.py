"""Pruning methods of strangers, in files and in packages that look installed."""

from __future__ import annotations

from pathlib import Path


METHOD = """
from dataclasses import dataclass

import torch

from transformers_litelvlm.pruning import Selection, TokenPruner, register_pruner


@register_pruner("{name}")
@dataclass(frozen=True)
class {cls}(TokenPruner):
    \"\"\"Keep the first tokens.\"\"\"

    start: int = 0

    def select(self, evidence, budget):
        return Selection((self.start + torch.arange(budget)).expand(len(evidence.features), -1))
"""


def method_code(name: str, cls: str = "FirstTokens") -> str:
    """A module with a method of that name."""
    return METHOD.format(name=name, cls=cls)


def install(folder: Path, distribution: str, entry_points: str, **modules: str) -> None:
    """Put a distribution, version 1.2, and its modules into a folder that is on `sys.path`.

    Args:
        entry_points: lines `NAME = VALUE` of the group.
        modules: code by name.
    """
    info = folder / f"{distribution}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[litelvlm.pruners]\n{entry_points}\n")
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)
