"""What a person reads of a benchmark: tables in Markdown, which are readable as plain text too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers_litelvlm.benchmark.stages import SELECTOR, STAGES


NOTES = """\
How to read this. "Speed-up" is the median time of the unpruned model over that of the pruned one, both run in turn on
the same weights and inputs; brackets hold a 95 % interval. "Bound" is the same ratio in floating-point operations:
what is limited by arithmetic cannot be faster. "Of bound" is speed-up / bound. "One by one" compares with the unpruned
model called once for every sentence. "Selector" is what choosing costs: guidance text, scoring and selection, prompt
compaction; its share is of the unpruned time end to end."""


def render(result: dict[str, Any]) -> str:
    """The whole report."""
    blocks = [f"# {result['preset']}: pruned against unpruned", _setting(result), _overview(result["points"])]
    blocks += [_point(point) for point in result["points"]]
    if result["skipped"]:
        rows = [[_name(point), point["reason"].splitlines()[0]] for point in result["skipped"]]
        blocks.append("## Not possible\n\n" + table(["point", "reason"], rows))
    return "\n\n".join([*blocks, NOTES]) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up; numbers are aligned to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    is_number = [
        all(row[column][:1].isdigit() or row[column] in ("-", "") for row in rows) for column in range(len(head))
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
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    route = "`segment`, all sentences in one call" if result["has_masks"] else "`generate` of one token"
    return (
        f"{result['description']}. {result['parameters'] / 1e9:.3g} B parameters with random weights.\n"
        f"End to end is {route}. {result['device']}, {result['threads']} threads, {result['effort']['runs']} runs of"
        f" each side, load average at the end {result['load_average']:.1f}; {versions}."
    )


def _overview(points: list[dict[str, Any]]) -> str:
    head = [
        "method",
        "tokens",
        "batch",
        "sentences",
        "dtype",
        "unpruned ms",
        "pruned ms",
        "speed-up",
        "bound",
        "of bound",
    ]
    has_single = any("against_one_by_one" in point for point in points)
    has_stages = any("selector" in point for point in points)
    head += ["one by one"] * has_single + ["selector"] * has_stages
    rows = []
    for point in points:
        times, flops = point["end_to_end"], point["flops"]
        row = [
            point["method"],
            f"{point['budget']} of {point['num_visual_tokens']}",
            str(point["batch_size"]),
            str(point["sentences"]),
            point["dtype"],
            number(times["unpruned"]["median_ms"]),
            number(times["pruned"]["median_ms"]),
            _speedup(times),
            f"{flops['bound']:.2f}x",
            f"{flops['share_of_bound']:.0%}",
        ]
        row += [_speedup(point["against_one_by_one"]) if "against_one_by_one" in point else "-"] * has_single
        row += [f"{point['selector']['share_of_unpruned']:.2%}" if "selector" in point else "-"] * has_stages
        rows.append(row)
    return "## End to end\n\n" + table(head, rows)


def _point(point: dict[str, Any]) -> str:
    blocks = [f"## {_name(point)}"]
    blocks.append(_stage_table(point))
    if "decode_ms_per_token" in point:
        decode = point["decode_ms_per_token"]
        blocks.append(
            f"Decode per token: unpruned {number(decode['unpruned'])} ms, pruned {number(decode['pruned'])} ms."
        )
    if "memory" in point:
        blocks.append(_memory_table(point["memory"]))
    return "\n\n".join(blocks)


def _stage_table(point: dict[str, Any]) -> str:
    """Times and operations of the stages; without times where they were not measured."""
    flops, timed = point["flops"]["stages"], point.get("stages")
    head = ["stage", "unpruned GFLOP", "pruned GFLOP"]
    rows = [
        [name, *(_giga(value) for value in flops[name])] for name in STAGES if any(v is not None for v in flops[name])
    ]
    rows.append(["end to end", *(_giga(point["flops"][side]) for side in ("unpruned", "pruned"))])
    if timed is None:
        return table(head, rows)
    head[1:1] = ["unpruned ms", "pruned ms"]
    for row in rows[:-1]:
        row[1:1] = [_milliseconds(timed[side]["stages"].get(row[0])) for side in ("unpruned", "pruned")]
    rows[-1][1:1] = [_milliseconds(point["end_to_end"][side]) for side in ("unpruned", "pruned")]
    unexplained = [number(timed[side]["unexplained_ms"]) for side in ("unpruned", "pruned")]
    rows.append(["end to end less stages", *unexplained, "", ""])
    share = point["selector"]["share_of_unpruned"]
    note = (
        f"Selector ({' + '.join(SELECTOR)}): {number(point['selector']['ms'])} ms, {share:.2%} of unpruned end to end."
    )
    return table(head, rows) + "\n\n" + note


def _memory_table(memory: dict[str, dict[str, int]]) -> str:
    pruned = memory["pruned"]
    head = [
        "beside weights and inputs, MB",
        "prefill",
        "pruned / this",
        "whole",
        "pruned / this",
        "KV cache",
        "pruned / this",
    ]
    rows = []
    for name, sizes in memory.items():
        row = [name.replace("_", " ")]
        for key in ("prefill_bytes", "whole_bytes", "cache_bytes"):
            row += [number(sizes[key] / 1e6), f"{pruned[key] / sizes[key]:.2f}"]
        rows.append(row)
    return table(head, rows)


def _name(point: dict[str, Any]) -> str:
    return (
        f"{point['method']}, {point['budget']} of {point['num_visual_tokens']} tokens, batch {point['batch_size']},"
        f" {point['sentences']} sentence{'s' * (point['sentences'] > 1)}, {point['dtype']}"
    )


def number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.3f}"


def _speedup(times: dict[str, Any]) -> str:
    low, high = times["speedup_interval_95"]
    return f"{times['speedup']:.2f}x [{low:.2f}, {high:.2f}]"


def _giga(flops: int | None) -> str:
    return "-" if flops is None else number(flops / 1e9)


def _milliseconds(times: dict[str, Any] | None) -> str:
    if times is None:
        return "-"
    return f"{number(times['median_ms'])} [{number(times['min_ms'])}, {number(times['max_ms'])}]"
