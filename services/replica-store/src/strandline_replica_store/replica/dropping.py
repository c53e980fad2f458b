"""Which manifests a drop rewrites, and which are in nobody's way any more: pure rules.

The chain is what is kept: from the newest manifest along `parent` (docs/formats/replica.md,
"Dropping and rewriting").
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """A kept recovery point whose manifest is written anew against `parent` (0: whole state).

    `dropped` are the points between the two, rising, which then are no more.
    """

    number: int
    parent: int
    dropped: tuple[int, ...] = ()


def plan(points: Sequence[int], unwanted: Collection[int]) -> list[Step]:
    """Return what to rewrite so that `unwanted` of `points` (rising) are dropped, rising.

    The newest one is never dropped; numbers that are no points are passed over.
    """
    steps: list[Step] = []
    parent, between = 0, list[int]()
    for number in points:
        if number in unwanted and number != points[-1]:
            between.append(number)
            continue
        if between:
            steps.append(Step(number, parent, tuple(between)))
        parent, between = number, []
    return steps


def again(points: Sequence[int], numbers: Collection[int]) -> list[Step]:
    """Return how to rewrite those of `points` (rising) that are in `numbers`, dropping none."""
    parents = zip(points, [0, *points], strict=False)
    return [Step(number, parent) for number, parent in parents if number in numbers]


class Chain(NamedTuple):
    """What the manifests of a folder are to each other.

    `kept` rise to the newest; `leftover` stand for points that were dropped; `lost` are those that
    the chain names and that are not there or not whole.
    """

    kept: list[int]
    leftover: list[int]
    lost: list[int]


def chain(parents: Mapping[int, int | None]) -> Chain:
    """Return the chain of manifests, given by number with the parent's, None when unreadable.

    Below a manifest that is unreadable, or missing, nobody knows what was dropped: all that is
    there is kept.
    """
    numbers = sorted(parents)
    kept: list[int] = []
    leftover: list[int] = []
    lost: list[int] = []
    while numbers:
        number = numbers.pop()
        parent = parents[number]
        if parent is None:
            lost.append(number)
            continue
        kept.append(number)
        while numbers and numbers[-1] > parent:
            leftover.append(numbers.pop())
        if parent and (not numbers or numbers[-1] != parent):
            lost.append(parent)
    return Chain(kept[::-1], leftover[::-1], lost[::-1])
