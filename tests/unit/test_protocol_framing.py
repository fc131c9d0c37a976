import itertools
import json
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from vsm.protocol.framing import LineSplitter, OversizedFrame, salvage_id

BOUND = 64
lines = st.lists(st.binary(max_size=3 * BOUND).map(lambda b: b.replace(b"\n", b".")), max_size=12)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def shape(frames: list[bytes | OversizedFrame]) -> list[object]:
    return [f if isinstance(f, bytes) else ("oversized", f.size_bytes) for f in frames]


@given(lines, st.lists(st.integers(0, 10_000), max_size=8))
def test_frames_do_not_depend_on_how_the_stream_is_cut(sent: list[bytes], cuts: list[int]) -> None:
    data = b"".join(line + b"\n" for line in sent)
    whole = shape(list(LineSplitter(BOUND).feed(data)))
    splitter = LineSplitter(BOUND)
    parts = [frame for part in cut(data, cuts) for frame in splitter.feed(part)]
    assert shape(parts) == whole


@given(st.lists(st.binary(max_size=40).map(lambda line: line * 400), max_size=12))
def test_large_reads_are_cut_at_the_same_places_as_small_ones(sent: list[bytes]) -> None:
    stream = b"".join(line + b"\n" for line in sent)
    large, small = LineSplitter(1 << 20), LineSplitter(1 << 20)
    pieces = [stream[at : at + 1000] for at in range(0, len(stream), 1000)]
    assert list(large.feed(stream)) == [one for piece in pieces for one in small.feed(piece)]


@given(lines)
def test_short_lines_arrive_and_long_ones_are_reported_once(sent: list[bytes]) -> None:
    data = b"".join(line + b"\n" for line in sent)
    expected: list[object] = []
    for line in sent:
        if len(line) > BOUND:
            expected.append(("oversized", len(line)))
        elif line.removesuffix(b"\r"):
            expected.append(line.removesuffix(b"\r"))
    assert shape(list(LineSplitter(BOUND).feed(data))) == expected


def test_an_endless_line_holds_bounded_memory_and_the_next_line_arrives() -> None:
    splitter = LineSplitter(1024)
    for _ in range(1000):
        assert list(splitter.feed(b"x" * 1000)) == []
        assert splitter.held_bytes <= 2048
    frames = list(splitter.feed(b'"id":77}\n{"a":1}\n'))
    assert shape(frames) == [("oversized", 1_000_008), b'{"a":1}']
    first = frames[0]
    assert isinstance(first, OversizedFrame)
    assert salvage_id(first.head, first.tail) == 77


def test_a_line_in_very_many_parts_takes_no_more_room_than_in_one() -> None:
    splitter, size = LineSplitter(1 << 20), 100_000
    tracemalloc.start()
    try:
        for _ in range(size // 2):
            assert list(splitter.feed(bytes([97, 98]))) == []
        assert tracemalloc.get_traced_memory()[1] < 4 * size
    finally:
        tracemalloc.stop()
    assert list(splitter.feed(b"c\n")) == [b"ab" * (size // 2) + b"c"]


def test_ids_are_salvaged_from_either_end_and_not_from_within() -> None:
    head = json.dumps({"jsonrpc": "2.0", "id": 5, "result": {"id": 6}}).encode()
    tail = json.dumps({"result": {"id": 6}, "jsonrpc": "2.0", "id": 7}).encode()
    within = json.dumps({"result": {"id": 6, "x": 1}, "jsonrpc": "2.0"}).encode()
    assert salvage_id(head, head) == 5
    assert salvage_id(tail, tail) == 7
    assert salvage_id(within, within) is None
