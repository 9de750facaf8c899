"""Addresses: the user's lists block, whole words score, and nothing of it touches the network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelling_help import labeller, labels

from chatloom.corpus.labellers import url as module
from chatloom.corpus.labellers.lists import HashedSet
from chatloom.errors import ChatloomError


def signs(url: str) -> str:
    found: str = labels("url", "", url=url)["url_signs"]
    return found


def test_a_document_without_an_address_has_no_labels() -> None:
    assert set(labels("url", "text").values()) == {None}
    assert set(labels("url", "text", url="").values()) == {None}


@pytest.mark.parametrize(
    "url",
    ["https://www.essex.ac.uk/sussex", "http://specialist.example.com/analysis", "https://cockpit-project.org/cumulative",
     "https://example.com/scunthorpe/therapist", "https://zh.wikipedia.org/wiki/%E8%89%B2%E5%BD%A9", "https://docs.python.org/3/"],
)  # fmt: skip
def test_good_addresses_show_no_signs(url: str) -> None:
    assert signs(url) == ""
    assert labels("url", "", url=url)["url_score"] == 0


@pytest.mark.parametrize(
    ("url", "sign"),
    [
        ("https://best-casino.example.com/", "word:casino"),
        ("https://example.com/%E5%8D%9A%E5%BD%A9", "word:博彩"),
        ("http://www.bocai88.example.cn/", "word:bocai"),
        ("http://8.8.8.8/index.html", "number"),
        ("http://[2001:4860::1]/", "number"),
        ("http://a1b2c3d4e5.com/", "digits"),
        ("http://buy-this-very-now.com/", "hyphens"),
        ("http://a.b.c.d.example.com/", "deep"),
        ("http://example.com:8081/", "port"),
        ("http://example.com/" + "a" * 200, "long"),
    ],
)
def test_each_sign_is_found_and_adds_to_the_score(url: str, sign: str) -> None:
    assert sign in signs(url).split(",")
    assert 0 < labels("url", "", url=url)["url_score"] < 1


def test_more_signs_score_higher() -> None:
    weak, strong = "https://example.com/cheap", "https://example.com/cheap/casino"
    assert labels("url", "", url=weak)["url_score"] == 0.3
    assert labels("url", "", url=strong)["url_score"] == pytest.approx(1 - 0.7 * 0.2)


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://news.bbc.co.uk/x", "bbc.co.uk"),
        ("https://WWW.Example.COM.", "example.com"),
        ("example.org/path", "example.org"),
        ("https://www.gov.cn", "www.gov.cn"),
        ("https://a.b.com.cn/", "b.com.cn"),
        ("http://localhost/", "localhost"),
        ("https://xn--fiqs8s.xn--fiqs8s/", "中国.中国"),
        ("http://127.0.0.1:99999999/", ""),
    ],
)
def test_the_registered_domain(url: str, domain: str) -> None:
    assert labels("url", "", url=url)["url_domain"] == domain


def test_lists_block_a_domain_with_all_under_it_an_address_with_all_behind_it_and_words(tmp_path: Path) -> None:
    (tmp_path / "domains").write_text("# spam\nbad.com\nhttp://www.worse.org/\n坏.com\n", encoding="utf-8")
    (tmp_path / "urls").write_text("fine.com/ads\n", encoding="utf-8")
    (tmp_path / "words").write_text("Kitten\n小猫\n", encoding="utf-8")
    lists = {name: [str(tmp_path / name)] for name in ("domains", "urls", "words")}
    own = labeller("url", **lists)
    assert [file.name for file in own.files()] == ["domains", "urls", "words"]
    blocked = ["http://bad.com", "https://a.b.bad.com/x", "https://worse.org", "https://www.worse.org/", "http://坏.com/",
               "https://fine.com/ads", "https://www.fine.com/ads/1?x=2", "https://x.org/kitten-food", "https://x.org/小猫粮",
               f"https://{'坏'.encode('idna').decode()}.com/"]  # fmt: skip
    free = ["http://notbad.com", "http://bad.com.au", "http://bad.org", "https://fine.com/adsense", "https://fine.com",
            "https://x.org/kittens"]  # fmt: skip
    assert [url for url in blocked if not labels(own, "", url=url)["url_blocked"]] == []
    assert [url for url in free if labels(own, "", url=url)["url_blocked"]] == []
    assert labels("url", "", url="http://bad.com")["url_blocked"] is None


def test_a_missing_or_empty_list_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing\n", encoding="utf-8")
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    for name, message in (("none", "no such file"), ("empty", "is empty"), ("latin", "not UTF-8")):
        with pytest.raises(ChatloomError, match=message):
            labels("url", "", url="http://a.com", domains=[str(tmp_path / name)])


def test_no_network_and_no_file_is_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HOME", str(tmp_path))
    module._extractor.cache_clear()
    assert labels("url", "", url="https://a.example.co.uk")["url_domain"] == "example.co.uk"
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_string_can_be_an_address(url: str) -> None:
    labels("url", "", url=url)
    labels("url", "", url=f"http://{url}")


@settings(max_examples=50, deadline=None)
@given(st.sets(st.text(max_size=8)), st.lists(st.text(max_size=8)))
def test_a_hashed_set_holds_what_a_set_holds(members: set[str], asked: list[str]) -> None:
    assert HashedSet(members).contains(asked) == [text in members for text in asked]
