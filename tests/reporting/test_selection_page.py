"""Promises of a selection's page: one file, all text of documents and rules escaped, same bytes for same data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import selecting
from reading_pages import NASTY, Page

from chatloom.corpus.record import Document
from chatloom.corpus.selection.choice import SelectionSettings
from chatloom.corpus.settings import LanguageSettings
from chatloom.reporting.amounts import amount, excerpt, level_bars, marked, shade_table, share
from chatloom.reporting.selection import render_selection_page
from chatloom.reporting.spreads import spreads

TYPES = {
    "language": pa.string(),
    "topic": pa.string(),
    "quality": pa.float64(),
    "waste": pa.list_(pa.int64()),
    "waste_kinds": pa.list_(pa.int8()),
    "clean": pa.bool_(),
    "cluster": pa.string(),
    "cluster_size": pa.int64(),
    "duplicate_kind": pa.string(),
    "similarity": pa.float64(),
}
HARM = NASTY.replace("\x00", "")  # what Parquet and JSON let through to the page


def documents(word: str) -> list[Document]:
    """Documents that go by every kind of rule, stay, are edited and are copies; `word` is in each of their texts."""
    found = []
    for number in range(30):
        text = f"{word} document {number} 中文 {number % 5}"
        labels: dict[str, Any] = dict.fromkeys(TYPES)
        labels |= {"language": ["en", "zh", word][number % 3], "topic": word, "quality": number / 30, "clean": True}
        labels |= {"waste": [0, 3], "waste_kinds": [1], "cluster_size": 1}
        if number < 12:
            kind = ["near", "url"][number // 4 % 2] if number % 4 else None
            labels |= {"cluster": f"{word} {number // 4}", "cluster_size": 4, "duplicate_kind": kind, "similarity": 0.9}
        found.append(Document(f"{word} {number}", text, f"{word}/{number % 2}", url=word, labels=labels))
    return found


def figures(folder: Path, word: str) -> dict[str, Any]:
    """Of a selection where the word is wherever a user's or an author's text can be."""
    settings = SelectionSettings(
        language=LanguageSettings(keep=("en", "zh")),
        keep=f"quality > 0.2 and topic != {'x' + word!r} and not (quality > 0.9 and topic == {word!r})",
        cut=("waste",),
    )
    made = selecting.select(folder, [documents(word)], settings, TYPES, names={"waste_kinds": {"1": word}})
    return json.loads(json.dumps(made.figures(), ensure_ascii=False))


def page_of(figures: dict[str, Any], **settings: Any) -> str:
    return render_selection_page(figures, title="chosen", settings=settings or {"keep": "x > 1"}, seed=0)


def test_no_text_of_documents_rules_and_labels_becomes_markup(tmp_path: Path) -> None:
    harmless, harmful = (figures(tmp_path / name, word) for name, word in (("1", "plain"), ("2", HARM)))
    assert len(harmful["rules"]) >= 4
    assert harmful["copies"]["pairs"]
    page = Page(page_of(harmful, keep=HARM))
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags
    assert "img" not in tags
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert set(tags) <= {tag for tag, _ in Page(page_of(harmless)).tags}
    assert "<script>alert(1)</script>" in page.text
    assert "\u202e" not in page.text


def test_the_page_asks_the_network_for_nothing_and_forbids_scripts(tmp_path: Path) -> None:
    html = page_of(figures(tmp_path, "plain"))
    page = Page(html)
    assert not [a for _, attributes in page.tags for a in attributes if a in ("src", "srcset", "action")]
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert links
    assert all(link.startswith("#") for link in links)
    assert "default-src 'none'" in html
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", html)


def test_the_page_shows_every_part_in_both_languages(tmp_path: Path) -> None:
    page = Page(page_of(figures(tmp_path, "plain")))
    for heading in (
        "概要",
        "逐步筛选",
        "按语言",
        "按来源",
        "语言、来源与权重",
        "规则重叠",
        "删除示例",
        "文本编辑",
        "重复文档",
        "标签分布",
    ):
        assert heading in page.text
    excerpts = [attributes for tag, attributes in page.tags if attributes.get("class") == "excerpt"]
    assert {attributes.get("lang") for attributes in excerpts} >= {"en", "zh"}


def test_cells_say_which_share_of_a_language_and_of_a_source_is_removed(tmp_path: Path) -> None:
    found = figures(tmp_path, "plain")
    cells = [
        str(attributes["title"])
        for tag, attributes in Page(page_of(found)).tags
        if tag == "td" and "title" in attributes
    ]
    shares, rules = found["shares"], found["rules"]
    for by, names in (("by_language", ("en", "zh", "plain")), ("by_source", ("plain/0", "plain/1"))):
        whole = {row["name"]: row["before"]["documents"] for row in shares[by]}
        assert set(whole) == set(names)
        for name in names:
            removed = [row[by].get(name, {}).get("documents", 0) for row in rules]
            steps = [sum(n for row, n in zip(rules, removed) if row["step"] == step) for step in ("language", "keep")]
            for n in removed if by == "by_language" else steps:
                assert f"{n} of {whole[name]} documents" in cells


def test_the_same_figures_give_the_same_bytes_in_any_order_of_their_keys(tmp_path: Path) -> None:
    found = figures(tmp_path, "plain")
    again = json.loads(json.dumps(found, sort_keys=True))
    assert page_of(found) == page_of(found)
    assert Page(page_of(again)).text == Page(page_of(found)).text


def test_a_selection_that_removes_nothing_and_one_without_labels_have_pages(tmp_path: Path) -> None:
    made = selecting.select(tmp_path, [[Document("a", "一")]], SelectionSettings(), {})
    page = Page(page_of(made.figures()))
    assert "No rule removed any document." in page.text
    assert "Rules that take the same" not in page.text
    empty = selecting.select(tmp_path / "empty", [[]], SelectionSettings(), TYPES)
    assert "documents read" in Page(page_of(empty.figures())).text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (99_999, "99,999"), (123_456, "123 k"), (999_600, "1,000 k"), (4_560_000, "4.56 M"), (7.89e9, "7.89 G")],
)
def test_amounts_are_short(number: float, text: str) -> None:
    assert amount(number) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 5, "0.0%"), (1, 5000, "<0.1%"), (1, 3, "33.3%"), (4999, 5000, ">99.9%"), (5, 5, "100%"), (0, 0, "–")],
)
def test_shares_tell_a_little_from_nothing_and_nearly_all_from_all(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


def test_blocks_escape_every_text() -> None:
    table = shade_table([NASTY], [NASTY], [[(NASTY, 2.0, NASTY)]], corner=NASTY, titles=[NASTY])
    bars = level_bars([{"name": NASTY, "all": 2, "part": 1, "text": NASTY, "note": NASTY}])
    for html in (table, bars, marked([["cut", NASTY], ["gap", "12"]], NASTY), excerpt(NASTY, 900, NASTY)):
        page = Page(html)
        assert not {"script", "img"} & {tag for tag, _ in page.tags}
        assert "alert" in page.text
        assert not [attributes for _, attributes in page.tags if "lang" in attributes]


def test_bars_are_measured_against_the_longest_and_the_part_is_inside() -> None:
    html = level_bars([{"name": "a", "all": 50, "part": 25, "text": ""}, {"name": "b", "all": 100, "text": ""}])
    assert re.findall(r"width:([\d.]+)%", html) == ["50.00", "25.00", "100.00", "0.00"]


def test_marked_texts_say_what_was_cut_what_is_new_and_what_is_left_out() -> None:
    html = marked([["same", "a "], ["cut", "b"], ["new", "c"], ["gap", "123456"]], "zh")
    assert "<del>b</del><ins>c</ins>" in html
    assert "123 k characters" in html
    assert 'lang="zh"' in html


@pytest.mark.parametrize("log", [False, True])
def test_a_distribution_draws_bars_limits_and_names_of_each_group(log: bool) -> None:
    groups = [
        {"name": f"en {NASTY}", "all": [4, 0, 2], "part": [1, 0, 2], "limits": [{"value": 2.0, "stays": ">="}]},
        {"name": "zh 中文", "all": [0, 0, 0], "part": [0, 0, 0], "limits": [{"value": 99.0, "stays": "<="}]},
    ]
    html = spreads(groups, [0.0, 1.0, 3.0, 9.0], description=NASTY, log=log, x="share")
    page = Page(html)
    assert {tag for tag, _ in page.tags} == {"svg", "title", "text", "path", "g", "rect"}
    assert "中文" in page.text
    assert "share" in page.text
    assert html.count("dasharray") == html.count("<rect") == 1, "a limit beyond the axis is not drawn"
    assert html == spreads(groups, [0.0, 1.0, 3.0, 9.0], description=NASTY, log=log, x="share")
    assert "no values were recorded" in spreads([], [], description="d")


def test_bars_stand_between_their_edges_and_the_highest_fills_its_panel() -> None:
    group = {"name": "en", "all": [4, 0, 1, 100_000], "part": [0, 0, 0, 50_000]}
    html = spreads([group], [0.0, 1.0, 2.0, 3.0, 4.0], description="d", width=426)
    bars, part = re.findall(r'<path d="([^"]*)" style="fill', html)
    assert bars == "M12.0 85V83.5H112.0V85ZM212.0 85V83.5H312.0V27.0H412.0V85Z"
    assert part == "M312.0 85V56.0H412.0V85Z"


def test_whole_numbers_have_their_bar_above_them_and_limits_beside_the_bar() -> None:
    limits = [{"value": 2, "stays": ">="}, {"value": 3, "stays": "<="}]
    group = {"name": "en", "all": [1, 1, 1, 1], "part": [0, 1, 1, 0], "limits": limits}
    html = spreads([group], [1.0, 2.0, 3.0, 4.0, 5.0], description="d", whole=True, width=426)
    assert re.findall(r'<text x="([\d.]+)" y="103.0"', html) == ["62.0", "162.0", "262.0", "362.0"]
    assert re.findall(r'<path d="M([\d.]+) 85V23"', html) == ["112.0", "312.0"]
    assert re.findall(r'<rect x="([\d.]+)" y="27" width="([\d.]+)"', html) == [("12.0", "100.0"), ("312.0", "100.0")]


def test_zero_has_a_place_of_its_own_on_a_logarithmic_axis() -> None:
    group = {"name": "en", "all": [5, 0, 5], "part": [5, 0, 5]}
    html = spreads([group], [0.0, 1.0, 10.0, 100.0], description="d", log=True)
    marks = re.findall(r'<text x="([\d.]+)" y="103.0" [^>]*>([^<]*)<', html)
    assert [name for _, name in marks] == ["0", "2", "5", "10", "20", "50", "100"]
    assert sorted(marks, key=lambda mark: float(mark[0])) == marks
