"""Quality against tokens: what is drawn is what was measured, and it can be read."""

import copy
import itertools

import numpy as np
import pytest

from tests.support.sample_results import sample_results, write_results
from transformers_litelvlm.hub.results import read_results
from transformers_litelvlm.visualization.quality import draw_quality, plot_quality, spread
from transformers_litelvlm.visualization.quality_panels import panels_of


def panels(folder, *contents, metric=None):
    return panels_of([read_results(write_results(folder, c, f"{i}.json")) for i, c in enumerate(contents)], metric)


def many_methods(count):
    """Results of `count` methods at four budgets whose values at the largest one lie close together."""
    content, groups = sample_results(), []
    methods = ["litelvlm", "random", "fastv", *(f"method_{number}" for number in range(count - 3))]
    for number, budget in itertools.product(range(count), (8, 16, 32, 48)):
        group = copy.deepcopy(content["groups"][2])
        value = 0.1 + 0.008 * budget + 0.004 * number
        group |= {"method": methods[number], "method_options": {}, "budget": budget}
        group |= {"metrics": {"giou": value, "ciou": value}}
        group |= {"intervals": {name: [value - 0.03, value + 0.03] for name in ("giou", "ciou")}}
        groups.append(group)
    content["groups"] = [content["groups"][0], *groups]
    return content


def test_a_panel_has_every_method_and_option_with_its_interval(tmp_path):
    [panel] = panels(tmp_path, sample_results())
    assert panel.unpruned == (0.767, 0.758, 0.778) and panel.metric == "gIoU"
    assert panel.title == "somewhere/refshapes_tiny on RefShapes test: 1000 images, 5080 expressions"
    assert panel.size_name == "visual tokens kept of each image, of 144"
    assert {line.name: line.points for line in panel.lines} == {
        "litelvlm:context_share=0.5": [(48, 0.579, 0.566, 0.592)],
        "litelvlm (raster, original)": [(16, 0.114, 0.107, 0.121), (48, 0.148, 0.140, 0.157)],
        "litelvlm (reference, compact)": [(32, 0.106, 0.099, 0.113)],
        "random": [(48, 0.391, 0.383, 0.399)],
    }
    [other] = panels(tmp_path, sample_results(), metric="ciou")
    assert other.unpruned == (0.725, 0.711, 0.741) and other.metric == "cIoU"


def test_the_same_model_and_data_share_a_panel_and_others_do_not(tmp_path):
    first, second, elsewhere = sample_results(), sample_results(), sample_results()
    first["groups"], second["groups"] = first["groups"][:3], [second["groups"][0], *second["groups"][3:]]
    elsewhere["dataset"]["split"] = "val"
    together, apart = panels(tmp_path, first, elsewhere, second)
    assert [len(panel.lines) for panel in (together, apart)] == [4, 4]
    second["groups"][0]["metrics"]["giou"] = 0.7  # unpruned: another run
    with pytest.raises(ValueError, match=r"1\.json has another gIoU of 'none' at the same budget"):
        panels(tmp_path, first, second)


def test_fractions_become_tokens_where_their_number_is_known(tmp_path):
    content = sample_results()
    for group in content["groups"][1:]:
        group["retention_ratio"], group["budget"] = group["budget"] / 144, None
    [panel] = panels(tmp_path, content)
    assert sorted(size for line in panel.lines for size, *_ in line.points) == [16, 32, 48, 48, 48]
    content["model"]["num_visual_tokens"] = None
    [panel] = panels(tmp_path, content)
    assert panel.size_name == "fraction of visual tokens kept"
    assert max(size for line in panel.lines for size, *_ in line.points) == pytest.approx(1 / 3)
    content["groups"][1] |= {"retention_ratio": None, "budget": 48}
    with pytest.raises(ValueError, match=r"0\.json has budgets and fractions"):
        panels(tmp_path, content)


def test_a_point_is_at_what_was_kept_where_the_image_decides_that(tmp_path):
    """Methods inside the language model have many numbers, one for each layer: they stay at their budget."""
    content = sample_results()
    adaptive, inside = content["groups"][1:3]
    adaptive |= {"method": "trim", "method_options": {"adaptive": True}, "num_kept_mean": 31.5}
    inside |= {"method": "sparsevlm", "num_kept_mean": 113.0}
    content["groups"] = [content["groups"][0], adaptive, inside]
    [panel] = panels(tmp_path, content)
    assert [line.points[0][0] for line in panel.lines] == [31.5, inside["budget"]]


def test_seeds_that_were_chosen_are_lines_of_their_own(tmp_path):
    """Both were `random`, and their scores contradicted each other."""
    content = sample_results()
    groups = [group for group in content["groups"] if group["method"] == "random"][:1]
    score = {"metrics": {"giou": 0.1, "ciou": 0.1}, "intervals": {"giou": [0.0, 0.2], "ciou": [0.0, 0.2]}}
    groups.append({**groups[0], **score, "method_options": {"seed": 5}})
    content["groups"] = groups
    [panel] = panels(tmp_path, content)
    assert [line.name for line in panel.lines] == ["random", "random:seed=5"]


def test_files_without_what_is_asked(tmp_path):
    content = sample_results()
    content["groups"] = content["groups"][:1]
    with pytest.raises(ValueError, match=r"0\.json has no pruned runs: measure some, `litelvlm evaluate"):
        panels(tmp_path, content)
    with pytest.raises(ValueError, match=r"0\.json: `metric` must be one of giou, ciou, got 'j_and_f'"):
        panels(tmp_path, sample_results(), metric="j_and_f")
    with pytest.raises(ValueError, match=r"`output` must end in \.png or \.svg, got 'a\.gif'"):
        plot_quality([write_results(tmp_path)], tmp_path / "a.gif")


@pytest.mark.parametrize("count", [3, 18, 40])
def test_labels_do_not_overlap_and_stand_beside_the_axes(tmp_path, count):
    pytest.importorskip("matplotlib")
    figure = draw_quality(panels(tmp_path, many_methods(count)))
    figure.draw_without_rendering()
    [axes] = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text().startswith("0.")]
    assert len(boxes) == count + 1
    right = axes.get_window_extent().x1
    assert all(box.x0 > right and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
    for one, other in itertools.combinations(boxes, 2):
        assert one.y1 <= other.y0 or other.y1 <= one.y0
    # Every text is at least 5 points high when a page shows the picture at half its size.
    assert min(text.get_fontsize() for text in axes.texts if text.get_text()) >= 10


def test_lines_can_be_told_apart_and_say_what_was_measured(tmp_path):
    pytest.importorskip("matplotlib")
    made = panels(tmp_path, many_methods(18))
    [axes] = draw_quality(made).axes
    drawn = [container.lines[0] for container in axes.containers]
    styles = [(line.get_color(), line._dash_pattern, line.get_marker()) for line in drawn]
    assert len({str(style[:2]) for style in styles}) == 18, "by colour and dashes alone"
    for line, measured, container in zip(drawn, made[0].lines, axes.containers, strict=True):
        sizes, values, low, high = np.array(measured.points).T
        np.testing.assert_allclose(line.get_ydata(), values)
        assert np.abs(np.log2(line.get_xdata() / sizes)).max() <= 0.1 + 1e-9, "near its budget"
        ends = np.array([segment[:, 1] for segment in container.lines[2][0].get_segments()])
        np.testing.assert_allclose(ends, np.stack((low, high), axis=1))
    hollow = [line.get_markerfacecolor() == "white" for line in drawn]
    assert [line.name for line, is_hollow in zip(made[0].lines, hollow) if is_hollow] == ["fastv"]
    greys = {line.name for line, shown in zip(made[0].lines, drawn) if shown.get_color() == "#5f6368"}
    assert greys == {"random"}
    low, high = axes.get_ylim()
    numbers = [number for line in made[0].lines for point in line.points for number in point[2:]]
    numbers += made[0].unpruned
    assert low <= min(numbers) and max(numbers) <= high
    assert (max(numbers) - min(numbers)) / (high - low) > 0.85, "the axis is not wasted"


def test_every_line_has_a_key_in_its_own_colour(tmp_path):
    pytest.importorskip("matplotlib")
    [axes] = draw_quality(panels(tmp_path, many_methods(18))).axes
    keys = [line for line in axes.lines if line.get_transform() == axes.transAxes]
    texts = [text for text in axes.texts if text.get_text().startswith("0.")]
    colours = {container.get_label(): container.lines[0].get_color() for container in axes.containers}
    assert len(keys) == len(texts) == 19
    for key, text in zip(keys, texts, strict=True):
        name = text.get_text().split()[1]
        assert key.get_color() == text.get_color() == colours.get(name, "#202124")


@pytest.mark.parametrize("suffix", ["png", "svg", "PNG"])
def test_the_file_is_opaque(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    from PIL import Image

    path = tmp_path / f"made.{suffix}"
    content = sample_results()
    content["model"]["path_or_id"] = "some/$model$_of_mine"  # is no formula
    plot_quality([write_results(tmp_path, content)], path)
    if suffix == "svg":
        assert path.read_text().lstrip().startswith("<?xml") and "fill: #ffffff" in path.read_text()
        return
    pixels = np.asarray(Image.open(path).convert("RGBA"))
    assert pixels[..., 3].min() == 255 and pixels[0, 0].tolist() == [255] * 4


def test_spread_keeps_order_and_distance_and_moves_little():
    wanted = np.array([0.0, 1.0, 1.1, 1.2, 5.0])
    places = spread(wanted, 0.5, 0.0, 5.0)
    np.testing.assert_allclose(places, [0.0, 0.6, 1.1, 1.6, 5.0])
    crowded = spread(np.full(5, 4.9), 0.5, 0.0, 5.0)
    np.testing.assert_allclose(crowded, [3.0, 3.5, 4.0, 4.5, 5.0])
    np.testing.assert_allclose(spread(np.array([2.0]), 0.5, 0.0, 5.0), [2.0])
