"""The Markdown of an evaluation."""

from __future__ import annotations

from typing import Any


METRIC_NAMES = {"giou": "gIoU", "ciou": "cIoU", "iou": "gIoU", "j_and_f": "J&F", "j": "J", "f": "F"}
# Metrics with a column of their own beside those with intervals.
EXTRA_METRICS = {"precision@0.5": "P@0.5"}


def markdown(results: dict[str, Any]) -> str:
    """The groups and comparisons of `results.json` as tables."""
    data, model = results["dataset"], results["model"]
    sample, sentence = ("image", "sentences") if data["kind"] == "images" else ("video", "expressions")
    expected = "" if data["counts_match"] is not False else ", not the whole official split"
    tokens = "as many visual tokens as the size asks for"
    if model["num_visual_tokens"] is not None:
        tokens = f"{model['num_visual_tokens']} visual tokens"
    main = list(results["groups"][0]["intervals"])
    extra = [name for name in EXTRA_METRICS if name in results["groups"][0]["metrics"]]
    lines = [
        f"# {data['name']} {data['split']}, {model['path_or_id']}",
        "",
        f"{data['num_' + data['kind']]} {sample}s, {data['num_expressions']} {sentence}{expected}; protocol"
        f" `{data['protocol']}`; {tokens}, {model['dtype']}. Intervals: 95 %, bootstrap over {sample}s.",
        *(f"\nNote: {note}." for note in data["notes"]),
        *(f"\n{count} records are flagged `{flag}`." for flag, count in data["flags"].items()),
        "",
        *_groups_table(results, main, extra, sample),
    ]
    if results["comparisons"]:
        lines += ["", "| tokens | difference | of | value | 95 % | p (permutation) |", "|---|---|---|---|---|---|"]
        for entry in results["comparisons"]:
            size, names = entry["budget"] or entry["retention_ratio"], f"{entry['method']} - {entry['baseline']}"
            numbers = f"{entry['difference']:+.4f} | {_range(entry['interval'], '+.4f')} | {entry['p_value']:.4f}"
            lines.append(f"| {size} | {names} | {METRIC_NAMES[entry['metric']]} | {numbers} |")
    lines += [f"\nFor the server: `{run['submission']}`." for run in results["runs"] if run.get("submission")]
    lines += [f"\nLeft out: {entry['run_id']}: {entry['reason']}" for entry in results["skipped"]]
    options = " ".join(f"{name}={value}" for name, value in results["settings"].items() if name != "output_dir")
    environment = {name: value for name, value in results["environment"].items() if value is not None}
    made_by = ", ".join(
        f"{name} {value}" for name, value in environment.items() if name not in ("hardware", "command")
    )
    lines += [f"\nOptions: `{options}`.", f"\nMade by {made_by}."]
    if environment.get("command"):
        lines += ["", "```bash", environment["command"], "```"]
    return "\n".join(lines) + "\n"


def _groups_table(results: dict[str, Any], main: list[str], extra: list[str], sample: str) -> list[str]:
    titles = ["tokens", "method", "seeds"]
    for name in main:
        titles += [METRIC_NAMES[name], "95 %"]
    titles += [EXTRA_METRICS[name] for name in extra]
    titles += [f"{METRIC_NAMES[main[0]]} retained"] if main else []
    titles += ["selection, ms", f"{sample}, ms"]
    rows = [titles, ["---"] * len(titles)]
    rows += [_cells(group, results["model"]["num_visual_tokens"], main, extra) for group in results["groups"]]
    return [f"| {' | '.join(cells)} |" for cells in rows]


def _cells(group: dict[str, Any], num_tokens: int | None, main: list[str], extra: list[str]) -> list[str]:
    metrics, intervals, retained = group["metrics"], group["intervals"], group["retention"]
    cells = [
        str(group["budget"] or group["retention_ratio"] or num_tokens or "all"),
        group["name"],
        str(group["num_seeds"]),
    ]
    for name in main:
        cells += [f"{metrics[name]:.4f}", _range(intervals[name], ".4f")]
    cells += [f"{metrics[name]:.4f}" for name in extra]
    if main:
        cells.append("" if retained is None else f"{retained[main[0]]:.1%}")
    timings = group["timings_ms"]
    return cells + ["" if timings[stage] is None else f"{timings[stage]:.1f}" for stage in ("selection", "total")]


def _range(ends: list[float], style: str) -> str:
    return f"{ends[0]:{style}} to {ends[1]:{style}}"
