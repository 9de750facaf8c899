"""Promises of a page: one file, no request, no script, all text escaped, same bytes for same data."""

from __future__ import annotations

import re

import pytest
from reading_pages import NASTY, Page

from chatloom.reporting import blocks
from chatloom.reporting.html import Html, clean, escape, to_html
from chatloom.reporting.panels import PANELS, metric_figures
from chatloom.reporting.report import Section, flatten, render_report, render_stage_page


def rows() -> list[dict[str, object]]:
    train = [
        {
            "step": s,
            "loss": 5 / s,
            "lr": 0.001 / s,
            "grad_norm": 1 + s % 3,
            "tokens_per_second": 7000 + s,
            "tokens": 4096,
            "seconds": 0.5,
            "custom_figure": s**0.5,
            "constant": 1,
            "note": "x",
        }
        for s in range(1, 60)
    ]
    return [*train, {"step": 59, "kind": "held_out", "loss": 0.2}, {"step": 30, "kind": "held_out", "loss": 0.4}]


def everything(text: str = "text") -> str:
    sections = [
        Section(text, text, [text, blocks.cards([{"label": text, "value": text, "note": text, "tone": "good"}])]),
        Section(
            "Samples",
            "样例",
            [
                blocks.samples(
                    [
                        {
                            "prompt": text,
                            "truth": text,
                            "answers": {text: {"text": text, "right": False, "note": text}, "b": text},
                        }
                    ],
                    [text, "b", "none"],
                ),
                blocks.tokens(
                    [
                        {"text": text, "weight": 1, "id": 3},
                        {"text": "\n", "weight": 0},
                        {"text": "<|end|>", "special": True},
                    ]
                ),
                blocks.timeline(
                    [{"name": text, "seconds": 3.0, "memory_bytes": 2e9, "note": text}, {"name": "b", "seconds": 0}]
                ),
                blocks.details(text, text, blocks.pairs({text: text}), blocks.code(text), blocks.heading(text)),
                blocks.side_by_side(*metric_figures(rows())),
            ],
        ),
    ]
    return render_report(sections, text, text, facts=[text], eyebrow=text, footer=text)


def test_no_text_of_any_block_becomes_markup() -> None:
    page = Page(everything(NASTY))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "iframe", "link", "object", "embed", "form", "base"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>alert(1)</script>") >= 15
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in Page(everything()).tags]


def test_a_page_asks_the_network_for_nothing_and_forbids_scripts() -> None:
    html = everything()
    page = Page(html)
    assert "url(" not in re.sub(r"url\(#f[0-9a-f]{8}-[\w]+\)", "", html)
    assert "@import" not in html
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert value is not None
                assert value.startswith("#")
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy


def test_the_same_data_gives_the_same_bytes() -> None:
    assert everything().encode("utf-8") == everything().encode("utf-8")


def test_a_page_can_be_written_as_utf8_whatever_a_model_says() -> None:
    everything("\ud800 half a pair \x07 \ufffe").encode("utf-8")


def test_characters_that_html_cannot_hold_are_marked_and_direction_marks_lose_their_power() -> None:
    assert escape("a\x00b\ud800c\u202ed") == "a\ufffdb\ufffdc\ufffdd"
    assert clean("a\r\nb\rc\td") == "a\nb\nc\td"


def test_contents_lead_to_sections_also_of_the_same_or_a_chinese_title() -> None:
    html = render_report([Section("Result"), Section("Result"), Section("结果")], "t")
    page = Page(html)
    ids = [a["id"] for tag, a in page.tags if tag == "section"]
    links = [str(a["href"]) for tag, a in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in ids]
    assert len(set(ids)) == 3


def test_plain_text_becomes_paragraphs_and_only_html_stays_html() -> None:
    assert to_html("a <b>\n\nc") == "<p>a &lt;b&gt;</p><p>c</p>"
    assert to_html(Html("<b>x</b>")) == "<b>x</b>"
    assert not isinstance(Html("<b>") + "<i>", Html)  # joining text to markup does not launder it


def test_a_figure_without_a_caption_is_refused() -> None:
    with pytest.raises(ValueError, match="no caption"):
        blocks.figure(Html("<svg></svg>"), "Loss", " ")
    with pytest.raises(ValueError, match="tone"):
        blocks.cards([{"label": "a", "value": 1, "tone": "red"}])


def test_right_and_wrong_are_told_in_words() -> None:
    page = Page(
        blocks.samples(
            [{"prompt": "p", "answers": {"a": {"text": "x", "right": True}, "b": {"text": "", "right": False}}}],
            ["a", "b", "c"],
        )
    )
    assert "✓ right" in page.text
    assert "✗ wrong" in page.text
    assert "(empty)" in page.text
    assert "true answer" not in page.text


def test_tokens_show_what_carries_loss_and_what_looks_empty() -> None:
    html = blocks.tokens(
        [{"text": " a", "weight": 1.0, "id": 7}, {"text": "\n", "weight": 0.5}, {"text": "b", "weight": 0}]
    )
    spans = [a for tag, a in Page(html).tags if tag == "span" and "title" in a]
    assert [a["class"] for a in spans] == ["token loss", "token loss", "token"]
    assert [a["title"] for a in spans] == ["id 7, weight 1", "weight 0.5", "no loss"]
    assert "2 of 3 tokens carry loss" in html
    assert "↵" in html


def test_stages_follow_each_other_in_time_and_shares_add_up() -> None:
    html = blocks.timeline([{"name": "a", "seconds": 30}, {"name": "b", "seconds": 90, "memory_bytes": 3 * 10**9}])
    assert "left:0.00%;width:25.00%" in html
    assert "left:25.00%;width:75.00%" in html
    assert "2m 00s" in html
    assert "3.0 GB" in html
    assert "100%" in html
    Page(blocks.timeline([]))
    Page(blocks.timeline([{"name": "a", "seconds": 0}]))


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(717_000_704, "717 MB"), (1_389_285_376, "1.4 GB"), (999_900_000, "1.0 GB"), (2_450_000, "2.5 MB"), (None, "–")],
)
def test_sizes_are_in_powers_of_1000_as_on_the_command_line(n_bytes: float | None, text: str) -> None:
    assert blocks.size(n_bytes) == text


def test_a_dotted_label_is_broken_between_its_parts_only() -> None:
    html = blocks.cards([{"label": "splits.held_out.by_language", "value": 3_456_049.0}])
    assert "<dt>splits.<wbr>held_<wbr>out.<wbr>by_<wbr>language</dt>" in html
    assert "3,456,049" in html
    assert Page(blocks.cards([{"label": "a_<b>", "value": "1"}])).text == "a_<b>1"


def test_a_stage_page_draws_each_metric_that_varies_once() -> None:
    html = render_stage_page(
        rows(),
        title="pretrain",
        lead="x",
        settings={"model": {"layers": 4, "empty": {}}, "steps": 59},
        summary={"final loss": 0.0847},
        levels={"loss": {"trigram": 2.5}},
        seconds=61,
        memory_bytes=10**9,
    )
    page = Page(html)
    titles = re.findall(r"<figure><h3>(.*?)</h3>", html)
    assert titles == [PANELS[n].title for n in ("loss", "learning_rate", "grad_norm", "tokens_per_second")] + [
        "custom figure"
    ]
    assert "held out" in page.text
    assert "trigram" in page.text
    assert "model.layers" in page.text
    assert "59 steps" in page.text
    assert "1m 01s" in page.text
    assert "1.0 GB" in page.text


def test_a_stage_page_of_no_rows_says_so() -> None:
    assert "No metrics were recorded." in Page(render_stage_page([], title="corpus")).text


def test_settings_are_named_as_on_the_command_line() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1]}, "e": {}}) == {"a.b.c": 1, "a.d": [1], "e": {}}


def test_every_known_metric_says_how_to_read_it() -> None:
    for name, panel in PANELS.items():
        assert len(panel.caption) > 40, name


def test_a_metric_is_found_under_either_of_its_names() -> None:
    measured = [{"step": step, "lr": 1e-3 * step, "loss": 3.0 / step} for step in range(1, 20)]
    chosen = [str(figure) for figure in metric_figures(measured, only=("lr", "loss"))]
    assert len(chosen) == 2
    assert PANELS["learning_rate"].title in chosen[0]
    assert str(metric_figures(measured, only=("learning_rate",))[0]) == chosen[0]
