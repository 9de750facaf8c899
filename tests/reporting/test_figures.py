"""Promises of the figures: same bytes for same data, text stays text, page colours, no harm from bad values."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
import threading
import warnings
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest

from chatloom.reporting.bars import calibration, funnel, histogram, intervals
from chatloom.reporting.figure import METHODS, SERIES, color_of, spread, text_width
from chatloom.reporting.html import Html
from chatloom.reporting.plots import Line, against_kl, best_of_n, curves, exponential_mean, thin

NASTY = 'a</text><script>alert("$x_1$")</script>\x00\x1b 中文'


def every_figure(name: str = "loss 损失") -> dict[str, Html]:
    steps = list(range(1, 300))
    bins = [
        {"low": 0.4, "high": 0.7, "n": 10, "confidence": 0.55, "accuracy": 0.5},
        {"low": 0.8, "high": 0.95, "n": 90, "confidence": 0.9, "accuracy": 0.88},
    ]
    return {
        "curves": curves(
            [
                Line(name, steps, [1 / s for s in steps], smooth=0.9),
                Line("held out", [1, 299], [1.0, 0.1], dashed=True),
            ],
            description=name,
            y=name,
            x=name,
            levels={name: 0.5},
            marks={name: 100},
            log_y=True,
        ),
        "against_kl": against_kl(
            [
                {"name": name, "kl": [0, 1, 2], "y": [0.1, 0.2, 0.3], "low": 0.2, "high": 0.4},
                {"name": "sft", "kl": [0], "y": [0.1]},
            ],
            description=name,
            y=name,
        ),
        "best_of_n": best_of_n([1, 4, 16], [Line(name, [1, 4, 16], [0.1, 0.3, 0.4])], description=name, y=name),
        "funnel": funnel([{"name": name, "kept": 10, "dropped": 2}], description=name, unit=name),
        "calibration": calibration(bins, description=name),
        "intervals": intervals(
            [{"name": name, "value": 0.5, "low": 0.4, "high": 0.6}], description=name, reference=0.5, x=name
        ),
        "histogram": histogram({name: [1, 2, 2, 3], "sft": [2.5, 3.5]}, description=name, x=name),
    }


@pytest.fixture(scope="module")
def figures() -> dict[str, Html]:
    return every_figure()


def test_every_figure_is_well_formed_svg_that_names_itself(figures: dict[str, Html]) -> None:
    for svg in figures.values():
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"] == "loss 损失"
        assert "width" in root.attrib
        assert "viewBox" in root.attrib


def test_text_stays_text_and_brings_no_font(figures: dict[str, Html]) -> None:
    for name, svg in figures.items():
        if name != "calibration":
            assert "损失</text>" in svg, name
        assert "font-family" not in svg
        assert "DejaVu" not in svg


def test_colours_come_from_the_page(figures: dict[str, Html]) -> None:
    for svg in figures.values():
        fixed = re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg)
        assert set(fixed) <= {"#ffffff"}, fixed
        assert "var(--" in svg


def test_figures_ask_the_network_for_nothing_and_hold_no_style_or_script(figures: dict[str, Html]) -> None:
    for svg in figures.values():
        addresses = set(re.findall(r"https?://[^\"' ]+", svg))
        assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        assert "<style" not in svg
        assert "<script" not in svg


def test_no_two_figures_of_a_page_share_an_id(figures: dict[str, Html]) -> None:
    ids = [name for svg in figures.values() for name in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in figures.values():
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
        assert used <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_the_same_data_gives_the_same_bytes_in_this_process_and_another(figures: dict[str, Html]) -> None:
    assert every_figure() == figures
    code = (
        "import hashlib, sys; from chatloom.reporting.plots import Line, curves\n"
        "print(hashlib.sha256(curves([Line('a', [1, 2, 3], [1, 5, 2])], description='d').encode()).hexdigest())\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    assert len(found) == 1


def test_labels_of_any_content_are_shown_not_obeyed() -> None:
    for svg in every_figure(NASTY).values():
        ElementTree.fromstring(svg)
        assert "<script" not in svg
        assert "alert(" in svg


def test_drawing_leaves_the_global_settings_alone_and_warns_of_nothing() -> None:
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every_figure("中文")
    assert dict(matplotlib.rcParams) == before


def test_figures_can_be_drawn_from_several_threads() -> None:
    results: list[str] = []
    draw = lambda: results.append(curves([Line("a", [1, 2], [1, 2])], description="d"))
    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1


def test_values_that_are_not_finite_are_left_out_and_an_empty_figure_says_so() -> None:
    holes = curves([Line("a", [1, 2, 3, 4], [1.0, math.nan, math.inf, 2.0])], description="d")
    assert holes == curves([Line("a", [1, 4], [1.0, 2.0])], description="d")
    empty = "no values were recorded"
    assert empty in curves([Line("a", [1], [math.nan])], description="d")
    assert empty in curves([Line("a", [1, 2], [0.0, -1.0])], description="d", log_y=True)
    assert empty in curves([], description="d")
    assert empty in against_kl([], description="d")
    assert empty in best_of_n([1, 2], [], description="d")
    assert empty in best_of_n([1, 2], [Line("a", [1, 2], [math.nan, math.nan])], description="d")
    assert empty in funnel([], description="d")
    assert empty in calibration([], description="d")
    assert empty in intervals([{"name": "a", "value": None}], description="d")
    assert empty in histogram({"a": [math.nan]}, description="d")


def test_one_value_constant_values_and_extreme_values_can_be_drawn() -> None:
    for values in ([3.0], [0.0, 0.0], [1e-300, 1e300], [-1e9, 1e9], [5e-8, 6e-8]):
        steps = list(range(len(values)))
        ElementTree.fromstring(curves([Line("a", steps, values)], description="d", levels={"b": values[0]}))
        ElementTree.fromstring(histogram({"a": values}, description="d"))
        ElementTree.fromstring(
            against_kl([{"name": "a", "kl": [abs(v) for v in values], "y": values}], description="d")
        )
    ElementTree.fromstring(funnel([{"name": "a", "kept": 0}], description="d"))


@pytest.mark.parametrize(
    ("values", "some"),
    [
        ([1 + 1e-4 * i for i in range(9)], {"1", "1.0002"}),  # near 1 three digits would all say 1
        ([-0.7, -0.4], {"−0.7", "−0.4"}),  # a minus as in the tables
        ([900.2, 900.9], {"900.2", "900.8"}),
        ([300, 900], {"400", "800"}),
        ([7000, 12_000], {"8,000", "10k"}),
        ([2e-6, 9.5e-6], {"2e−6", "8e−6"}),
    ],
)
def test_numbers_of_an_axis_tell_its_ticks_apart(values: list[float], some: set[str]) -> None:
    svg = curves([Line("train", list(range(len(values))), values)], description="near")
    texts = [item.text for item in ElementTree.fromstring(svg).iter() if item.tag.endswith("text") and item.text]
    assert some <= set(texts)


def test_a_hundred_thousand_steps_make_a_small_figure() -> None:
    steps = np.arange(100_000)
    svg = curves([Line("loss", steps, np.random.default_rng(0).normal(size=100_000), smooth=0.9)], description="d")
    assert len(svg) < 120_000


def test_thinning_keeps_the_ends_and_every_spike() -> None:
    x, y = np.arange(10_000.0), np.zeros(10_000)
    y[4321], y[9876] = 100.0, -50.0
    xs, ys = thin(x, y, 200)
    assert len(xs) <= 404
    assert (xs[0], xs[-1], ys.max(), ys.min()) == (0.0, 9999.0, 100.0, -50.0)
    assert (np.diff(xs) > 0).all()


def test_the_running_mean_is_not_pulled_towards_zero_at_the_start() -> None:
    assert exponential_mean([4.0, 4.0, 4.0], 0.9) == pytest.approx([4.0, 4.0, 4.0])
    assert exponential_mean([1.0, 2.0], 0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 2) / 0.75])


def test_names_of_lines_never_cover_each_other() -> None:
    for wanted in ([5.0, 5.0, 5.0], [98, 99, 100], [0, 1, 50, 51, 52], [40.0], [100.0, 0.0]):
        placed = spread(wanted, 14, 0, 100)
        ordered = sorted(placed)
        assert all(b - a >= 14 - 1e-9 for a, b in itertools.pairwise(ordered))
        assert [i for i, _ in sorted(enumerate(wanted), key=lambda item: item[1])] == sorted(
            range(len(placed)), key=placed.__getitem__
        )
    assert spread([200.0], 14, 0, 100) == [100]
    assert max(spread([98, 99, 100], 14, 0, 100)) <= 100


def test_a_method_has_one_colour_everywhere() -> None:
    assert color_of("PPO") == color_of("ppo@seed2") == METHODS["ppo"]
    assert color_of("best-of-16") == METHODS["best_of_n"]
    assert color_of("something", 8) == SERIES[2]


def test_chinese_is_given_the_width_it_takes() -> None:
    assert text_width("奖励模型") == 48
    assert text_width("reward") < 48
