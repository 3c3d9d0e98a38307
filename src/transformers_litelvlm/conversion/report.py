"""What a conversion did with every tensor."""

from __future__ import annotations

import importlib.metadata
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from transformers_litelvlm.conversion.renaming import Plan
from transformers_litelvlm.version import __version__


@dataclass
class ConversionReport:
    """What a conversion did, as in `conversion_report.json`.

    Attributes:
        family: kind of checkpoint.
        sources: per part, where it came from.
        versions: packages that made the result.
        mapped: per part, source name -> parameter.
        dropped: per part and reason, the source names left out.
        tied: parameters that are not stored -> the stored parameter they are the same as.
        missing: parameters that nothing fills; a conversion with any does not get this far.
        dtypes: number of stored parameters per dtype.
        total_parameters: number of values.
        total_size: bytes of all values.
        files: the files of weights.
    """

    family: str
    sources: dict[str, dict[str, str | None]]
    versions: dict[str, str]
    mapped: dict[str, dict[str, str]]
    dropped: dict[str, dict[str, list[str]]]
    tied: dict[str, str]
    missing: list[str]
    dtypes: dict[str, int]
    total_parameters: int
    total_size: int
    files: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def summary(self) -> str:
        """A few lines for people."""
        lines = []
        for label, mapped in self.mapped.items():
            dropped = self.dropped[label]
            count = sum(map(len, dropped.values()))
            source = self.sources[label]["path_or_id"]
            lines.append(f"{label} ({source}): {len(mapped)} tensors used, {count} dropped")
            lines += [f"  {len(names)} dropped: {reason}" for reason, names in dropped.items()]
        lines.append(f"tied, so not stored: {', '.join(self.tied) or 'none'}")
        lines.append(f"missing: {', '.join(self.missing) or 'none'}")
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        files = "1 file" if len(self.files) == 1 else f"{len(self.files)} files"
        lines.append(
            f"written: {sum(self.dtypes.values())} tensors ({dtypes}), {readable(self.total_size)} in {files}"
        )
        return "\n".join(lines)


def make_report(family: str, parts: list[Any], plan: Plan, files: list[str]) -> ConversionReport:
    """The report of a plan that was carried out."""
    mapped: dict[str, dict[str, str]] = {part.label: {} for part in parts}
    for move in plan.moves:
        names = mapped[move.part.label]
        names[move.source] = f"{names[move.source]}, {move.target}" if move.source in names else move.target
    dropped: dict[str, dict[str, list[str]]] = {part.label: {} for part in parts}
    for label, reasons in plan.dropped.items():
        for name, reason in reasons.items():
            dropped[label].setdefault(reason, []).append(name)
    filled = {move.target for move in plan.moves}
    return ConversionReport(
        family=family,
        sources={part.label: part.source.describe() for part in parts},
        versions={
            "transformers_litelvlm": __version__,
            **{name: importlib.metadata.version(name) for name in ("transformers", "torch", "safetensors")},
        },
        mapped=mapped,
        dropped=dropped,
        tied=plan.tied,
        missing=[name for name in plan.targets if name not in filled],
        dtypes=dict(Counter(str(info.dtype).removeprefix("torch.") for info in plan.targets.values())),
        total_parameters=sum(math.prod(info.shape) for info in plan.targets.values()),
        total_size=sum(info.nbytes for info in plan.targets.values()),
        files=files,
    )


def readable(size: int) -> str:
    """A number of bytes for people, in powers of 1000 as the Hub shows them."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} bytes"
