"""Comparing a folder as listed with the folder as known, against a comparison field by field."""

from __future__ import annotations

import os
import stat

from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_agent.changes import Known, Listed, all_changed, compare

small = st.integers(0, 1)
entry = st.tuples(
    small, small, small, small, st.sampled_from([stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755]),
    small, small, small,
)  # fmt: skip
folders = st.dictionaries(st.sampled_from([b"a", b"b", b"c", b"d"]), entry)


def known_of(name: bytes, values: tuple[int, ...]) -> Known:
    ino, size, mtime, ctime, mode, uid, gid, fs = values
    return Known(name, 100 + name[0], ino, size, mtime, ctime, mode, uid, gid, fs, 0)


def listed_of(name: bytes, values: tuple[int, ...]) -> Listed:
    ino, size, mtime, ctime, mode, uid, gid, fs = values
    times = {"st_mtime_ns": mtime, "st_ctime_ns": ctime}
    return Listed(name, os.stat_result((mode, ino, fs, 1, uid, gid, size, 0, 0, 0), times))


@settings(max_examples=300)
@given(folders, folders)
def test_what_differs_is_what_a_plain_comparison_says(
    before: dict[bytes, tuple[int, ...]], now: dict[bytes, tuple[int, ...]]
) -> None:
    known = [known_of(*item) for item in before.items()]
    listed = [listed_of(*item) for item in now.items()]
    found = compare(known, listed, {0: 0, 1: 1})
    changed = {item[0].name: item[1].name if item[1] else None for item in found.changed}
    assert changed == {
        name: (name if name in before else None)
        for name, values in now.items()
        if before.get(name) != values
    }
    assert {item[0].name for item in found.same_folders} == {
        name
        for name, values in now.items()
        if before.get(name) == values and stat.S_ISDIR(values[4])
    }
    assert {entry.name for entry in found.gone} == set(before) - set(now)
    every = all_changed(known, listed)
    assert {item[0].name for item in every.changed} == set(now)
    assert {entry.name for entry in every.gone} == set(before) - set(now)


def test_an_inode_number_of_64_bits_is_what_the_index_has_of_it() -> None:
    values = (7, 0, 0, 0, stat.S_IFREG | 0o644, 0, 0, 0)
    listed = Listed(b"a", os.stat_result((values[4], 2**63 + 7, 0, 1, 0, 0, 0, 0, 0, 0),
                                         {"st_mtime_ns": 0, "st_ctime_ns": 0}))  # fmt: skip
    found = compare([known_of(b"a", values)], [listed], {0: 0})
    assert found.changed == []
