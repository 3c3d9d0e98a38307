"""What a person reads of a benchmark: tables in Markdown, which are readable as plain text too; and its files."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import Any

from transformers_litelvlm.benchmark.grid import apart, describe, kept, sides
from transformers_litelvlm.benchmark.plot import plot
from transformers_litelvlm.benchmark.stages import SELECTOR, STAGES
from transformers_litelvlm.benchmark.timing import machine_line
from transformers_litelvlm.utils.files import to_json, write_atomically


LARGEST_GAP = 0.1  # of the time end to end, beyond which the report remarks on unaccounted time

# How to read a report: by what of a point it explains, "" always.
NOTES = {
    "": 'How to read this. "Speed-up" is the median time of the unpruned model divided by that of the pruned one, in'
    " alternating runs with the same weights and inputs; brackets hold a 95 % interval, which a few runs give only"
    ' roughly. "Bound" is the ratio of their floating-point operations, which caps the speed-up where arithmetic takes'
    ' the time. "Of bound" is speed-up / bound; it can be above 100 % where something else takes the time, as in tiny'
    " models. With a large model, a value far from 100 % may mean that the machine was busy: measure again.",
    "roofline": '"Roofline bound" is the ratio of the shortest times that both could take on this device, where every'
    " operation also reads its weights once.",
    "against_stock": '"Against stock" compares with one call of the stock class of Transformers that keeps all hidden'
    " states.",
    "against_one_by_one": '"One by one" compares with the unpruned model called once for every sentence.',
    "selector": '"Selector" is what choosing tokens costs: guidance text, scoring and selection, prompt compaction;'
    ' its share is of the unpruned time end to end ("with tower": the method runs the vision tower itself).',
    "stages": '"Unaccounted time" is the time end to end minus the sum of the stages.',
}

NOTES_ON_QUANTIZATION = """\
"Weights" are all parameters and buffers. For quantized weights, their scales are included. "Activations" is the
activation memory of a call: the largest memory that tensors take at one moment, without weights and inputs. "Share of
unpruned, unquantized" is weights + activations, divided by weights + activations of the unpruned model without
quantization. Speed-ups compare runs of one quantization only."""


def render(result: dict[str, Any], max_details: int | None = None) -> str:
    """The report, with stages and memory of all points, or of the first `max_details`."""
    return "\n\n".join([*sections(result, max_details), notes(result["points"])]) + "\n"


def sections(result: dict[str, Any], max_details: int | None = None) -> list[str]:
    """Those of [`render`], without its last one, how to read it."""
    blocks = [f"# {result['model']}: pruned against unpruned", _setting(result)]
    if not result.get("is_complete", True):
        blocks.insert(1, "**Stopped before the end**: these are the points that were measured by then.")
    if result["points"]:
        blocks.append(overview(result["points"]))
    if any("quantization" in point for point in result["points"]):
        blocks.append(_quantizations(result["points"]))
    detailed = result["points"][:max_details] if result["effort"]["parts"] else []
    blocks += [_point(point) for point in detailed]
    if detailed and len(detailed) < len(result["points"]):
        blocks.append(
            "Stages and memory of the other points: --output-dir writes them to benchmark.md, --json prints them."
        )
    if result["skipped"]:
        rows = [[describe(point), point["reason"].splitlines()[0]] for point in result["skipped"]]
        blocks.append("## Not possible\n\n" + table(["point", "reason"], rows))
    return blocks


def notes(points: list[dict[str, Any]]) -> str:
    """How to read what is there of the points."""
    found = {name for point in points for name in point}
    return textwrap.fill(" ".join(text for name, text in NOTES.items() if name in ("", *found)), 119)


def write_benchmark(result: dict[str, Any], folder: str | os.PathLike) -> None:
    """Write benchmark.json, benchmark.md and benchmark.png into `folder`, all or none; files of these names are
    replaced."""
    with write_atomically(folder) as staging:
        (staging / "benchmark.json").write_text(to_json(result, indent=2) + "\n", encoding="utf-8")
        (staging / "benchmark.md").write_text(render(result), encoding="utf-8")
        plot(result, staging / "benchmark.png")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up; numbers are aligned to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    is_number = [
        all(row[column].lstrip("-")[:1].isdigit() or row[column] in ("-", "") for row in rows)
        for column in range(len(head))
    ]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, is_number, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = (f"{'-' * (width + 1)}:" if right else "-" * (width + 2) for width, right in zip(widths, is_number))
    return "\n".join([line(head), f"|{'|'.join(rule)}|", *map(line, rows)])


def _setting(result: dict[str, Any]) -> str:
    theirs, runs = result.get("third_party_methods", {}), result["effort"]["runs"]
    route = "`segment`, all sentences in one call" if result["has_masks"] else "`generate` of one token"
    return (
        f"{result['description']}. {result['parameters'] / 1e6:,.1f} million parameters.\n"
        f"End to end is {route}; {runs} run{'s' * (runs > 1)} of each side. {machine_line(result)}."
        + "".join(f"\nNot bundled: `{name}`, from `{known['provided_by']}`." for name, known in theirs.items())
    )


def overview(points: list[dict[str, Any]]) -> str:
    """The table of the times end to end, a row for each point."""
    found = {name for point in points for name in point}
    rows = []
    for point in points:
        times, flops = point["end_to_end"], point["flops"]
        row = {
            "method": point["method"],
            "tokens": f"{point['budget']} of {point['num_visual_tokens']}{kept(point)}",
            "batch": str(point["batch_size"]),
            "sentences": str(point["sentences"]),
            "dtype": point["dtype"],
            **({"quantization": point["quantization"]} if "quantization" in found else {}),
            "unpruned ms": number(times["unpruned"]["median_ms"]),
            "pruned ms": number(times["pruned"]["median_ms"]),
            "speed-up": _speedup(times),
            "bound": f"{flops['bound']:.2f}x",
            "of bound": f"{flops['share_of_bound']:.0%}",
        }
        if "roofline" in found:
            roofline = point.get("roofline")
            row["roofline bound"] = "-" if roofline is None else f"{roofline['bound']:.2f}x"
            row["of lower bound"] = "-" if roofline is None else f"{roofline['share_of_lower_bound']:.0%}"
        if "against_stock" in found:
            row["against stock"] = _speedup(point["against_stock"]) if "against_stock" in point else "-"
        if "against_one_by_one" in found:
            row["one by one"] = _speedup(point["against_one_by_one"]) if "against_one_by_one" in point else "-"
        if "selector" in found:
            row["selector"] = _selector_share(point)
        rows.append(row)
    return "## End to end\n\n" + table(list(rows[0]), [list(row.values()) for row in rows])


def _quantizations(points: list[dict[str, Any]]) -> str:
    """Memory and speed of every quantization, the unpruned model before the pruned ones."""
    head = ["method", "tokens", "batch", "sentences", "dtype", "quantization", "weights MB", "activations MB"]
    head += ["weights + activations MB", "share of unpruned, unquantized"]
    head += ["KV cache MB", "end to end ms", "decode ms per token"]
    both = {
        apart(point): point["weight_bytes"] + point["memory"]["unpruned"]["whole_bytes"]
        for point in points
        if point["quantization"] == "none" and "memory" in point
    }
    rows = []
    for side, point in sides(points):
        is_pruned = side == "pruned"
        row = [point["method"] if is_pruned else "-", str(point["budget" if is_pruned else "num_visual_tokens"])]
        row += [str(point[name]) for name in ("batch_size", "sentences", "dtype", "quantization")]
        row += [number(point["weight_bytes"] / 1e6), *_memory_cells(point, side, both.get(apart(point)))]
        row += [number(point["end_to_end"][side]["median_ms"])]
        row += [number(point["decode_ms_per_token"][side]) if "decode_ms_per_token" in point else "-"]
        rows.append(row)
    return "## Quantization\n\n" + table(head, rows) + "\n\n" + NOTES_ON_QUANTIZATION


def _memory_cells(point: dict[str, Any], side: str, unpruned: int | None) -> list[str]:
    """Activations of a call, weights and activations together, their share of the `unpruned` bytes, and the cache."""
    if "memory" not in point:
        return ["-"] * 4
    memory = point["memory"][side]
    both = point["weight_bytes"] + memory["whole_bytes"]
    share = "-" if unpruned is None else f"{both / unpruned:.1%}"
    return [number(memory["whole_bytes"] / 1e6), number(both / 1e6), share, number(memory["cache_bytes"] / 1e6)]


def _point(point: dict[str, Any]) -> str:
    blocks = [f"## {describe(point)}"]
    if "stages" in point:
        blocks.append(_stage_table(point))
    if "decode_ms_per_token" in point:
        decode = point["decode_ms_per_token"]
        blocks.append(
            f"Decode per token: unpruned {number(decode['unpruned'])} ms, pruned {number(decode['pruned'])} ms."
        )
    if "memory" in point:
        blocks.append(_memory_table(point["memory"]))
    if "left_out" in point:
        blocks += [f"Not measured: {part}, {reason[:300]}" for part, reason in point["left_out"].items()]
    if "switches" in point:
        rows = [
            [name, *(number(times[side]["median_ms"]) for side in ("unpruned", "pruned")), _speedup(times)]
            for name, times in point["switches"].items()
        ]
        blocks.append(table(["switch, pruned", "off, ms", "on, ms", "gain"], rows))
    return "\n\n".join(blocks)


def _stage_table(point: dict[str, Any]) -> str:
    sides = [point["stages"]["unpruned"], point["stages"]["pruned"]]
    rows = []
    for name in STAGES:
        stages = [side["stages"].get(name) for side in sides]
        if any(stages):
            rows.append([name, *map(_milliseconds, stages), *map(_giga, stages)])
    whole = [{**point["end_to_end"][side], "flops": point["flops"][side]} for side in ("unpruned", "pruned")]
    rows.append(["end to end", *map(_milliseconds, whole), *map(_giga, whole)])
    rows.append(["unaccounted time", *(number(side["unexplained_ms"]) for side in sides), "", ""])
    selector = point["selector"]
    return (
        table(["stage", "unpruned ms", "pruned ms", "unpruned GFLOP", "pruned GFLOP"], rows)
        + f"\n\nSelector ({' + '.join(SELECTOR)}): {number(selector['ms'])} ms,"
        f" {selector['share_of_unpruned']:.2%} of unpruned end to end." + _contradictions(point)
    )


def _contradictions(point: dict[str, Any]) -> str:
    """Says where the stages do not add up to the time end to end; empty if they do."""
    apart = [
        f"{side} {number(stages['sum_ms'])} ms of {number(point['end_to_end'][side]['median_ms'])} ms end to end"
        for side, stages in point["stages"].items()
        if abs(stages["unexplained_ms"]) > LARGEST_GAP * point["end_to_end"][side]["median_ms"]
    ]
    if not apart:
        return ""
    return (
        f"\n\nThe stages do not add up (sum of stages: {', '.join(apart)}). They are timed in runs of their own:"
        " likely the machine was busy meanwhile (measure again when it is idle), or the model is too small for its"
        " times to mean anything."
    )


def _memory_table(memory: dict[str, dict[str, int]]) -> str:
    pruned = memory["pruned"]
    head = ["activation memory, MB"]
    for name in ("prefill", "whole", "KV cache"):
        head += [name, "pruned / this"]
    rows = []
    for name, sizes in memory.items():
        row = [name.replace("_", " ")]
        for key in ("prefill_bytes", "whole_bytes", "cache_bytes"):
            row += [number(sizes[key] / 1e6), f"{pruned[key] / sizes[key]:.2f}"]
        rows.append(row)
    return table(head, rows)


def number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.3f}"


def _selector_share(point: dict[str, Any]) -> str:
    if "selector" not in point:
        return "-"
    with_tower = " (with tower)" if point["selector"]["includes_vision_tower"] else ""
    return f"{point['selector']['share_of_unpruned']:.2%}{with_tower}"


def _speedup(times: dict[str, Any]) -> str:
    low, high = times["speedup_interval_95"]
    return f"{times['speedup']:.2f}x" + (f" [{low:.2f}, {high:.2f}]" if low < high else "")  # none of one run


def _giga(stage: dict[str, Any] | None) -> str:
    return "-" if stage is None else number(stage["flops"] / 1e9)


def _milliseconds(times: dict[str, Any] | None) -> str:
    if times is None:
        return "-"
    low, high = times["min_ms"], times["max_ms"]
    return number(times["median_ms"]) + (f" [{number(low)}, {number(high)}]" if low < high else "")
