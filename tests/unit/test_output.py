"""Worker output: bounded lines, no control characters, floods held back; stable uids."""

import asyncio
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm import output
from vsm.confinement import uids
from vsm.errors import ConfinementError


@given(st.binary(max_size=300))
def test_printable_text_has_no_control_character(raw: bytes) -> None:
    text = output.printable(raw)
    assert all(c == "\t" or (ord(c) >= 0x20 and not 0x7F <= ord(c) <= 0x9F) for c in text)
    assert "\u202e" not in text


def read_all(written: bytes, label: str = "") -> list[str]:
    async def scenario() -> list[str]:
        read_end, write_end = os.pipe()
        lines: list[str] = []
        ring = output.OutputRing("w", lambda _, line: lines.append(line))
        reader = output.OutputReader(read_end, ring, label)
        os.write(write_end, written)
        os.close(write_end)
        while not reader.closed:  # noqa: ASYNC110 - it reads when the loop runs
            await asyncio.sleep(0)
        return lines

    return asyncio.run(scenario())


def test_lines_are_split_and_the_last_needs_no_end() -> None:
    assert read_all(b"one\ntwo\x1b[31m\nthree") == ["one", "two\ufffd[31m", "three"]


def test_label_goes_before_every_line_whatever_it_says() -> None:
    assert read_all(b"#2: one\n\nlast", "#1: ") == ["#1: #2: one", "#1: ", "#1: last"]


def test_endless_line_is_kept_once_and_cut() -> None:
    lines = read_all(b"a" * 50_000 + b"\nafter\n")
    assert [len(line) for line in lines] == [output.MAX_LINE_BYTES + 2, 5]


def test_flood_is_held_back_by_not_reading() -> None:
    async def scenario() -> tuple[int, int]:
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        ring = output.OutputRing("w", lambda *_: None)
        reader = output.OutputReader(read_end, ring)
        written = 0
        loop = asyncio.get_running_loop()
        end = loop.time() + 0.5
        while loop.time() < end:
            try:
                written += os.write(write_end, b"x" * 99 + b"\n")
            except BlockingIOError:
                await asyncio.sleep(0.001)
        reader.close()
        os.close(write_end)
        return written, len(ring.lines)

    written, kept = asyncio.run(scenario())
    pipe_bytes = 64 * 1024
    assert written < output.BURST_BYTES + output.BYTES_PER_S + 2 * pipe_bytes
    assert kept == output.KEPT_LINES


def test_reader_that_was_held_back_and_is_closed_reads_no_descriptor_of_that_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output, "BURST_BYTES", 0)
    monkeypatch.setattr(output, "BYTES_PER_S", 10_000_000)

    async def scenario() -> tuple[list[str], bytes]:
        read_end, write_end = os.pipe()
        ring = output.OutputRing("w", lambda *_: None)
        reader = output.OutputReader(read_end, ring)
        os.write(write_end, b"x\n" * 20_000)
        reader._readable()
        os.close(write_end)
        reader.finish()
        others = os.pipe()
        assert read_end in others
        os.set_blocking(others[0], False)
        os.write(others[1], b"of another\n")
        await asyncio.sleep(0.1)  # its pauses are over
        left = os.read(others[0], 100)
        for fd in others:
            os.close(fd)
        return list(ring.lines), left

    lines, left = asyncio.run(scenario())
    assert set(lines) == {"x"}
    assert left == b"of another\n"


def test_uids_are_stable_distinct_and_outside_the_systems_range() -> None:
    names = [f"integration-{number}" for number in range(2000)]
    given_uids = uids.integration_uids(names)
    assert given_uids == uids.integration_uids(list(reversed(names)))
    assert len(set(given_uids.values())) == len(names)
    systems = set(uids.system_uids().values())
    assert len(systems) == 6
    assert systems.isdisjoint(given_uids.values())
    assert all(uids.BASE < uid < uids.BASE + 2**27 for uid in given_uids.values())


def test_uids_of_two_vsm_differ_and_what_has_files_keeps_its_uid() -> None:
    names = [f"integration-{number}" for number in range(50)]
    usual, other = uids.integration_uids(names), uids.integration_uids(names, place="/srv/two/")
    assert not set(usual.values()) & set(other.values())
    assert uids.instance_uid("a", 1, ()) != uids.instance_uid("a", 1, (), place="/srv/two/")
    old = {names[0]: usual[names[0]], names[1]: usual[names[0]], names[2]: 0, "gone": 5}
    kept = uids.integration_uids(names, place="/srv/two/", kept=old)
    assert kept[names[0]] == usual[names[0]]
    assert kept[names[1]] == other[names[1]]  # two cannot keep the same
    assert kept[names[2]] == other[names[2]]  # root's is none
    assert kept.keys() == other.keys()


def test_systems_of_two_vsm_have_uids_of_their_own_and_leave_those_of_integrations() -> None:
    usual = uids.system_uids()
    one, two = uids.system_uids(place="/srv/one/"), uids.system_uids(place="/srv/two/")
    assert usual.keys() == one.keys() == two.keys()
    assert len({*usual.values(), *one.values(), *two.values()}) == 18
    assert one == uids.system_uids(place="/srv/one/"), "the same after each start"
    moved = uids.system_uids(place="/srv/one/", taken=[one["system3"], one["egress"]])
    assert moved["system3"] == one["system3"] + 1
    assert {*moved.values()}.isdisjoint({one["system3"], one["egress"]})
    integrations = uids.integration_uids(["system1", "egress"], place="/srv/one/")
    assert {*integrations.values()}.isdisjoint(one.values())


def test_runs_of_one_process_and_their_way_out_have_uids_of_their_own() -> None:
    found = {uids.run_uid(slot) for slot in range(uids.RUN_SLOTS)}
    assert len({*found, uids.run_uid(uids.EGRESS_SLOT)}) == uids.RUN_SLOTS + 1
    assert max(found) < uids.run_uid(uids.EGRESS_SLOT) < 2**31


def test_uid_outside_the_namespace_is_refused_with_a_remedy(tmp_path: Path) -> None:
    uid_map = tmp_path / "uid_map"
    uid_map.write_text("         0          0      65536\n", encoding="ascii")
    with pytest.raises(ConfinementError, match="not mapped") as caught:
        uids.check_mapped(uids.BASE, where="x", uid_map=uid_map)
    assert caught.value.layer == "user"
    first, last = map(int, re.findall(r"\d+", caught.value.remedy))
    assert first == uids.BASE
    assert first < uids.run_uid(uids.EGRESS_SLOT) <= last < 2**31  # the last of all
    uids.check_mapped(1000, where="x", uid_map=uid_map)
