"""Crawls read in parts: every record once and with its own number, whatever the parts, the payloads and the damage."""

from __future__ import annotations

import gzip
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.corpus.reading.files import Page, read_file, read_slice
from chatloom.corpus.reading.parts import find_cuts, parts_of, slices_of, stays_whole
from chatloom.corpus.record import Quarantined
from chatloom.errors import ChatloomError

CAP = 1_000_000


def record(number: int, body: bytes, kind: str = "response") -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number:032x}>\r\n"
        f"WARC-Date: 2024-04-25T16:24:44Z\r\nWARC-Target-URI: http://x/{number}\r\n"
        f"Content-Type: application/http; msgtype={kind}\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def stored(data: bytes) -> bytes:
    """A gzip member in which the data stand as they are."""
    return gzip.compress(data, compresslevel=0, mtime=0)


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


# What a search for the beginning of a record would take for one: whole records, and gzip members of records.
TRAPS = (
    b"\x1f\x8b\x08",
    b"\r\n\r\nWARC/1.0\r\n",
    record(900, b"<p>not a record of this file</p>"),
    packed(record(901, b"<p>nor this</p>")) * 3,
    stored(record(902, b"<p>nor this</p>")),
)
WAYS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "plain": (".warc", bytes),
    "packed": (".warc.gz", packed),
    "stored": (".warc.gz", stored),
}


def read_in_parts(path: Path, part_bytes: int) -> tuple[list[Page | Quarantined], int]:
    parts = parts_of([(path, "a")], part_bytes, {path: find_cuts(path, part_bytes, CAP)})
    slices = [piece for part in parts for piece in slices_of(part.values())]
    read = (read_slice(piece, max_record_bytes=CAP) for piece in slices)
    return list(itertools.chain.from_iterable(read)), len(slices)


def read_whole(path: Path) -> list[Page | Quarantined]:
    return list(read_file(path, "a", max_record_bytes=CAP))


def urls(found: list[Page | Quarantined]) -> list[int]:
    return [int(str(page.url).rsplit("/", 1)[1]) for page in found if isinstance(page, Page)]


@settings(deadline=None)
@given(
    bodies=st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from(TRAPS), st.integers(0, 9).map(lambda n: b"<p>%d" % n * 400)),
        min_size=1,
        max_size=12,
    ),
    way=st.sampled_from(sorted(WAYS)),
    part_bytes=st.one_of(st.just(1), st.integers(1, 6000)),
)
def test_every_record_is_read_once_for_any_size_of_parts(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes], way: str, part_bytes: int
) -> None:
    suffix, pack = WAYS[way]
    path = tmp_path_factory.mktemp("warc") / f"a{suffix}"
    path.write_bytes(b"".join(pack(record(i, body)) for i, body in enumerate(bodies)))
    found, n_slices = read_in_parts(path, part_bytes)
    assert urls(found) == list(range(len(bodies)))
    assert [page.number for page in found] == list(range(1, len(bodies) + 1))  # type: ignore[union-attr]
    assert found == read_whole(path)
    if part_bytes == 1:
        assert n_slices == len(bodies)


def damage(members: list[bytes], draw: random.Random) -> bytes:
    """Some records changed, doubled, cut or padded, and perhaps the file's end cut off."""
    changed: list[bytes] = []
    for member in members:
        how = draw.choice(["as it is"] * 4 + ["bytes", "cut", "garbage behind", "joined", "header"])
        if how == "bytes":
            place = draw.randrange(len(member))
            member = member[:place] + bytes([member[place] ^ 1 << draw.randrange(8)]) + member[place + 1 :]
        elif how == "cut":
            member = member[: draw.randrange(len(member))]
        elif how == "garbage behind":
            member += draw.randbytes(draw.randrange(1, 40)) if draw.random() < 0.7 else b"\0" * 7
        elif how == "header":
            member = member.replace(b"WARC/1.0", b"XXXXXXXX", 1).replace(b"Content-Length: ", b"Content-Length: 9", 1)
        changed.append(member)
    data = b"".join(changed)
    return data[: draw.randrange(len(data) // 2, len(data))] if draw.random() < 0.3 else data


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(25))
def test_damage_is_read_past_in_parts_as_it_is_in_the_whole(tmp_path: Path, way: str, seed: int) -> None:
    suffix, pack = WAYS[way]
    draw = random.Random(seed)
    members = []
    for number in range(30):
        body = b"<p>" + draw.randbytes(draw.randrange(300)).hex().encode() if seed % 2 else draw.choice(TRAPS) * 2
        data = record(number, body, draw.choice(["response", "response", "request"]))
        if draw.random() < 0.1:
            data += record(1000 + number, b"<p>of one member")
        members.append(pack(data))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(damage(members, draw))
    whole = read_whole(path)
    for part_bytes in (1, 300, 1000, 5000):
        assert read_in_parts(path, part_bytes)[0] == whole, part_bytes


def test_behind_damage_a_file_is_cut_again(tmp_path: Path) -> None:
    members = [packed(record(i, random.Random(i).randbytes(200).hex().encode())) for i in range(60)]
    members[20] = members[20][:100] + b"\0" * 30 + members[20][130:]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(members))
    found, n_slices = read_in_parts(path, 3 * len(members[0]))
    assert n_slices > 15
    assert urls(found) == [i for i in range(60) if i != 20]


def test_a_last_member_that_is_cut_off_is_one_bad_record_of_the_last_part(tmp_path: Path) -> None:
    members = [packed(record(i, random.Random(i).randbytes(200).hex().encode())) for i in range(20)]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(members)[:-25])
    for part_bytes in (1, 700, 3000):
        found, _ = read_in_parts(path, part_bytes)
        assert urls(found) == list(range(19))
        assert [item.line for item in found if isinstance(item, Quarantined)] == [20]


def test_records_larger_than_what_is_read_at_once_are_cut_between(tmp_path: Path) -> None:
    members = [stored(record(i, random.Random(i).randbytes(300_000).hex().encode())) for i in range(6)]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(members))
    found, n_slices = read_in_parts(path, 700_000)
    assert (urls(found), n_slices) == (list(range(6)), 3)


def test_records_that_share_a_gzip_stream_are_never_parted(tmp_path: Path) -> None:
    records = [record(i, b"<p>%d" % i * 50) for i in range(12)]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(packed(b"".join(records)))
    assert find_cuts(path, 1, CAP) == []
    pairs = [packed(a + b) for a, b in zip(records[::2], records[1::2])]
    path.write_bytes(b"".join(pairs))
    assert read_in_parts(path, 1)[0] == read_whole(path)
    assert urls(read_whole(path)) == list(range(12))


@pytest.mark.parametrize("change", ["longer", "shorter", "other"])
@pytest.mark.parametrize("way", ["plain", "packed"])
def test_a_file_that_changed_since_it_was_cut_is_not_read_wrongly(tmp_path: Path, way: str, change: str) -> None:
    suffix, pack = WAYS[way]
    path = tmp_path / f"a{suffix}"
    members = [pack(record(i, b"<p>%d" % i * (50 + 7 * i))) for i in range(12)]
    path.write_bytes(b"".join(members))
    parts = parts_of([(path, "a")], 1000, {path: find_cuts(path, 1000, CAP)})
    slices = [piece for part in parts for piece in part.slices]
    assert len(slices) > 2
    other = {"longer": [pack(record(99, b"x" * 7)), *members], "shorter": members[1:], "other": [b"?" * 5000]}
    path.write_bytes(b"".join(other[change]))
    for piece in slices[:-1]:
        with pytest.raises(ChatloomError, match="the file has changed"):
            list(read_slice(piece))


def test_what_cannot_be_cut_is_known_by_its_name_and_size(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "a.csv", "a.jsonl.zst", "a.txt", "a.jsonl", "a.warc.gz", "a.parquet", "a.html"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    whole = [path.name for path in sorted(tmp_path.iterdir()) if stays_whole(path, 999)]
    assert whole == ["a.csv", "a.jsonl.gz", "a.jsonl.zst", "a.txt"]
    assert not any(stays_whole(path, 1000) for path in tmp_path.iterdir())


def test_the_shared_crawl_is_the_same_in_parts(shared_data: Path) -> None:
    path = shared_data / "web" / "sample-0000.warc.gz"
    whole = read_whole(path)
    for part_bytes in (1, 10_000, 50_000):
        found, n_slices = read_in_parts(path, part_bytes)
        assert found == whole
        assert n_slices > 3
