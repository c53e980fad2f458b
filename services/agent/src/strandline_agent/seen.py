"""A set of file ids in little memory: one bit an id, in pages where there are any."""

from __future__ import annotations

_PAGE_BITS = 15


class SeenIds:
    """Ids from 0 on; 4 KiB for each range of 32,768 that holds one."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, number: int) -> None:
        page = self._pages.get(number >> _PAGE_BITS)
        if page is None:
            page = self._pages[number >> _PAGE_BITS] = bytearray(1 << (_PAGE_BITS - 3))
        bit = number & ((1 << _PAGE_BITS) - 1)
        page[bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, number: int) -> bool:
        page = self._pages.get(number >> _PAGE_BITS)
        bit = number & ((1 << _PAGE_BITS) - 1)
        return page is not None and bool(page[bit >> 3] & 1 << (bit & 7))
