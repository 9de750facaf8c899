"""Personal data: what is valid is found, what has one digit changed is not, and what only looks alike is left alone."""

from __future__ import annotations

import gzip
import ipaddress
import json
import random
import string
import time
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from labelling_help import labels, parts

from chatloom.corpus.labellers.finders import IBAN_LENGTHS, ID_WEIGHTS, PROVINCES, chinese_id, iban, luhn
from chatloom.corpus.labellers.personal_data import KINDS, PLACEHOLDERS, redact
from chatloom.settings import SettingsError

AROUND = st.sampled_from(
    ["{}", "see {} here", "号码：{}。", "({})", "电话{}，", '"{}"', "a\n{}\nb", "是{}吗", "x: {}; y", "{}, and", "{}."]
)
DIGITS = st.text("0123456789", min_size=1)


def found(text: str, *kinds: str) -> list[tuple[str, str]]:
    row = labels("personal_data", text, kinds=list(kinds or KINDS.values()))
    assert row["personal_data_count"] == len(row["personal_data_kinds"])
    texts = parts(text, row["personal_data"])
    return [(KINDS[kind], part) for kind, part in zip(row["personal_data_kinds"], texts, strict=True)]


def other_digit(number: str, place: int, step: int) -> str:
    at = [i for i, char in enumerate(number) if char.isdigit()]
    i = at[place % len(at)]
    return number[:i] + str((int(number[i]) + 1 + step % 9) % 10) + number[i + 1 :]


def card(prefix: str, length: int, rng: random.Random) -> str:
    body = prefix + "".join(rng.choice(string.digits) for _ in range(length - len(prefix) - 1))
    return next(body + digit for digit in string.digits if luhn(body + digit))


CARDS = [("4", 16), ("4", 13), ("4", 19), ("51", 16), ("55", 16), ("2221", 16), ("2720", 16), ("34", 15), ("37", 15),
         ("6011", 16), ("65", 16), ("3528", 16), ("62", 16), ("62", 19), ("36", 14)]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(CARDS),
    st.integers(),
    AROUND,
    st.sampled_from(["", " ", "-"]),
    st.integers(0, 18),
    st.integers(0, 8),
)
def test_cards(kind: tuple[str, int], seed: int, around: str, separator: str, place: int, step: int) -> None:
    number = card(*kind, random.Random(seed))
    if len(number) == 15:
        written = separator.join((number[:4], number[4:10], number[10:]))
    elif len(number) in (16, 19):
        written = separator.join(number[at : at + 4] for at in range(0, len(number), 4))
    else:
        written = number
    assert found(around.format(written), "card") == [("card", written)]
    assert found(around.format(other_digit(written, place, step)), "card") == []


@pytest.mark.parametrize(
    "text",
    ["4111111111111112", "41111111111111111111111", "0.4111111111111111", "x4111111111111111", "4111111111111111x",
     "1111 4111 1111 1111 1111", "4111 1111 1111 1111 1111", "order-4111111111111111", "9111111111111111",
     "4111.1111.1111.1111",
     "4111 1111-1111 1111", "1,4111111111111111"],
)  # fmt: skip
def test_what_only_looks_like_a_card_is_none(text: str) -> None:
    assert found(text, "card") == []


def test_a_card_with_its_expiry_is_still_found() -> None:
    assert found("4111 1111 1111 1111 12/26", "card") == [("card", "4111 1111 1111 1111")]


def account(country: str, rng: random.Random) -> str:
    body = "".join(rng.choice(string.digits + string.ascii_uppercase) for _ in range(IBAN_LENGTHS[country] - 4))
    number = int("".join(str(int(char, 36)) for char in f"{body}{country}00"))
    return f"{country}{98 - number % 97:02d}{body}"


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(IBAN_LENGTHS)), st.integers(), AROUND, st.booleans(), st.integers(0, 30), st.integers(0, 8)
)
def test_bank_accounts(country: str, seed: int, around: str, spaced: bool, place: int, step: int) -> None:
    number = account(country, random.Random(seed))
    written = " ".join(number[at : at + 4] for at in range(0, len(number), 4)) if spaced else number
    assert iban(number)
    assert found(around.format(written), "iban") == [("iban", written)]
    assert found(around.format(other_digit(written, place, step)), "iban") == []


@pytest.mark.parametrize(
    "number", ["GB82WEST12345698765432", "DE89370400440532013000", "NO9386011117947", "FR1420041010050500013M02606"]
)
def test_published_examples_of_accounts(number: str) -> None:
    assert found(f"IBAN {number}", "iban") == [("iban", number)]
    assert found(f"X{number}", "iban") == []
    assert found(number[:-1], "iban") == []


def identity(seed: int) -> str:
    rng = random.Random(seed)
    body = (
        rng.choice(sorted(PROVINCES))
        + f"{rng.randrange(10000):04d}{rng.randrange(1900, 2020)}{rng.randrange(1, 13):02d}"
    )
    body += f"{rng.randrange(1, 29):02d}{rng.randrange(1000):03d}"
    return body + "10X98765432"[sum(w * int(d) for w, d in zip(ID_WEIGHTS, body, strict=True)) % 11]


@settings(max_examples=150, deadline=None)
@given(st.integers(), AROUND, st.integers(0, 17), st.integers(0, 8), st.booleans())
def test_chinese_identity_numbers(seed: int, around: str, place: int, step: int, small: bool) -> None:
    number = identity(seed)
    number = number.lower() if small else number
    assert found(around.format(number), "chinese_id") == [("chinese_id", number)]
    assert found(around.format(other_digit(number, place, step)), "chinese_id") == []


def test_identity_numbers_need_a_province_and_a_day_that_was() -> None:
    assert chinese_id("11010519491231002X")  # the standard's own example
    assert chinese_id("440524188001010014")
    assert not chinese_id("11010519491331002X")
    for body in ("99010519491231002", "11010519490230002", "11010518001231002", "11010522001231002"):
        check = "10X98765432"[sum(w * int(d) for w, d in zip(ID_WEIGHTS, body, strict=True)) % 11]
        assert not chinese_id(body + check)
    assert found("第 11010519491231002X1 号", "chinese_id") == []


def test_an_identity_number_is_not_taken_for_a_card() -> None:
    numbers = (identity(seed) for seed in range(100_000))
    number = next(n for n in numbers if n[:2] == "62" and n[-1] != "X" and luhn(n))
    assert found(f"号码 {number}") == [("chinese_id", number)]


def has_two_groups(address: str) -> bool:
    return len(address.replace(":", " ").split()) >= 2


def is_numbering(address: str) -> bool:
    numbers = [int(number) for number in address.split(".")]
    return max(numbers) < 20 and len(set(numbers)) > 1


@settings(max_examples=100, deadline=None)
@given(st.ip_addresses(), AROUND)
def test_public_addresses_are_found_and_others_are_not(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, around: str
) -> None:
    public = address.is_global and not address.is_multicast
    if address.version == 6:
        public = public and address in ipaddress.ip_network("2000::/3") and has_two_groups(str(address))
    else:
        public = public and not is_numbering(str(address))
    expected = [(f"ipv{address.version}", str(address))] if public else []
    assert found(around.format(address), "ipv4", "ipv6") == expected


@settings(max_examples=60, deadline=None)
@given(st.ip_addresses(network="2000::/3"), AROUND)
def test_ipv6_in_its_public_range(address: ipaddress.IPv6Address, around: str) -> None:
    assume(has_two_groups(str(address)))
    assert found(around.format(address), "ipv6") == ([("ipv6", str(address))] if address.is_global else [])
    assert found(around.format(address.exploded), "ipv6") == ([("ipv6", address.exploded)] if address.is_global else [])


@pytest.mark.parametrize(
    "text",
    ["192.168.1.1", "10.0.0.1", "127.0.0.1", "224.0.0.1", "256.1.1.1", "1.2.3", "8.8.8.8.8", "08.8.8.8",
     "version 8.8.8.8", "v8.8.8.8",
     "版本 8.8.8.8", "section 9.8.7.26", "== 9.8.7.26", "17.4.1.2", "2006::", "2001:db8::1", "fe80::1", "::1",
     "std::vector", "add::face", "12:30:45",
     "aa:bb:cc:dd:ee:ff",
     "x8.8.8.8", "8.8.8.8x", "a::b::c", "2001:4860"],
)  # fmt: skip
def test_what_is_no_public_address(text: str) -> None:
    assert found(text, "ipv4", "ipv6") == []


NAME = st.from_regex(r"[a-z0-9]([a-z0-9._+-]{0,12}[a-z0-9])?", fullmatch=True).filter(
    lambda name: ".." not in name and name != "git"
)
HOST = st.from_regex(r"(ex[a-z0-9-]{0,8}[a-z0-9]\.){1,2}(com|org|cn|co\.uk|com\.cn|de)", fullmatch=True)


@settings(max_examples=150, deadline=None)
@given(NAME, HOST, AROUND)
def test_mail_addresses(name: str, host: str, around: str) -> None:
    assume(not around.startswith("x: "))
    assert found(around.format(f"{name}@{host}"), "email") == [("email", f"{name}@{host}")]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("Write to John.Doe@Example.COM.Then wait", "John.Doe@Example.COM"),
        ("mailto:a@b.org", "a@b.org"),
        ("<a.b+c@mail.example.co.uk>", "a.b+c@mail.example.co.uk"),
        ("邮箱zhang_3@163.com。", "zhang_3@163.com"),
        ("a@b.org,c", "a@b.org"),
    ],
)
def test_mail_addresses_in_their_surroundings(text: str, address: str) -> None:
    assert found(text, "email") == [("email", address)]


@pytest.mark.parametrize(
    "text",
    ["logo@2x.png", "a@b", "a@localhost", "user@host.local", "@name.com", "a..b@example.com", "a.@example.com",
     "git@github.com:a/b.git",
     "https://example.com/@user.com", "x @ y.com", "decorated @property.setter"],
)  # fmt: skip
def test_what_is_no_mail_address(text: str) -> None:
    assert found(text, "email") == []


@pytest.mark.parametrize(
    "number",
    ["13800138000", "+8613912345678", "+86 199 1234 5678", "0086-15912345678", "166-1234-5678", "178 1234 5678",
     "14712345678"],
)  # fmt: skip
@pytest.mark.parametrize("around", ["电话{}。", "手机：{}，", "call {} now", "({})", "{}"])
def test_chinese_mobile_numbers(number: str, around: str) -> None:
    assert found(around.format(number), "chinese_mobile") == [("chinese_mobile", number)]


@pytest.mark.parametrize(
    "text",
    ["12800138000", "15412345678", "16112345678", "17912345678", "1380013800", "138001380001", "a13800138000",
     "0.13800138000",
     "1587654321000", "id=x-13800138000", "/news/t13800138000.html", "138-0013 8000", "13800138000.5", "$13800138000$"],
)  # fmt: skip
def test_what_is_no_chinese_mobile_number(text: str) -> None:
    assert found(text, "chinese_mobile") == []


def random_text(alphabet: str, length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=length))


BASE62 = string.ascii_letters + string.digits


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("prefix", "alphabet", "length"),
    [("AKIA", string.ascii_uppercase + string.digits, 16), ("ghp_", BASE62, 36), ("AIza", BASE62 + "-_", 35),
     ("sk_live_", BASE62, 24),
     ("hf_", BASE62, 34), ("glpat-", BASE62, 20), ("sk-", BASE62, 48), ("LTAI", BASE62, 20)],
)  # fmt: skip
def test_keys_of_services(prefix: str, alphabet: str, length: int, seed: int) -> None:
    key = prefix + random_text(alphabet, length, seed)
    assert found(f"KEY: {key} end", "secret") == [("secret", key)]
    assert found(f"密钥是{key}。", "secret") == [("secret", key)]
    assert found(f"{prefix}{'X' * length}", "secret") == []
    assert found(f"Z{key}", "secret") == []


def test_private_keys_and_values_that_look_random() -> None:
    pem = f"-----BEGIN RSA PRIVATE KEY-----\n{random_text(BASE62, 64, 1)}\n-----END RSA PRIVATE KEY-----"
    assert found(f"x\n{pem}\ny", "secret") == [("secret", pem)]
    value = random_text(BASE62, 24, 3) + "07"
    for text in ('api_key = "{}"', "password: {}", "SECRET_TOKEN={}", '"access_key": "{}"', "密码：{}"):
        assert found(text.format(value), "secret") == [("secret", value)]


@pytest.mark.parametrize(
    "text",
    ["api_key = os.environ['SERVICE_KEY']", "password: correct-horse-battery-staple", "token = aaaaaaaaaaaaaaaaaaaa11",
     "sk-learn-is-a-library-for-machines-that-learn",
     "the secret: nobody knows what happened there", "token = get_token_from_session_storage", "key = 1234",
     "public_key_algorithm = x",
     "-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----"],
)  # fmt: skip
def test_what_is_no_secret(text: str) -> None:
    assert found(text, "secret") == []


def test_redaction_puts_a_placeholder_for_each_kind() -> None:
    text = "Mail a@b.org from 8.8.8.8, card 4111 1111 1111 1111, 手机13800138000。"
    row = labels("personal_data", text)
    assert (
        redact(text, row["personal_data"], row["personal_data_kinds"])
        == "Mail <EMAIL> from <IP>, card <CARD>, 手机<PHONE>。"
    )
    assert set(PLACEHOLDERS) == set(KINDS)
    again = labels("personal_data", redact(text, row["personal_data"], row["personal_data_kinds"]))
    assert again["personal_data_count"] == 0


def test_only_the_kinds_asked_for_are_looked_for() -> None:
    assert found("a@b.org 8.8.8.8", "ipv4") == [("ipv4", "8.8.8.8")]
    with pytest.raises(SettingsError, match="kinds"):
        found("x", "phone")


def test_books_hold_no_personal_data(shared_data: Path) -> None:
    for name in ("en_novels_a", "zh_vernacular_novels", "zh_poetry"):
        with gzip.open(shared_data / "pretrain" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line, _ in zip(file, range(300), strict=False)]
        assert sum(labels("personal_data", text)["personal_data_count"] for text in texts) == 0, name


@pytest.mark.parametrize(
    "piece",
    [
        "@",
        "a@",
        "a@a.",
        "1",
        "1 ",
        "1-",
        "A1",
        "2001:",
        "::",
        "4111 ",
        "sk-a",
        "-----BEGIN PRIVATE KEY-----",
        "key=a",
        "eyJa.",
    ],
)
def test_time_does_not_grow_with_the_square_of_a_hostile_text(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    started = time.perf_counter()
    labels("personal_data", text)
    assert time.perf_counter() - started < 5
