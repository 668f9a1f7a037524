"""Zip archives whose members are not compressed, as every other Zip tool reads them.

Sizes are 64 bits wide throughout (Zip64): one layout, whatever the size.

Specification: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

from memory_store.backend import Buffer

HEADER = struct.Struct("<IHHHHHIIIHH")  # of a member
SIZES = struct.Struct("<HHQQ")  # behind its name
ENTRY = struct.Struct("<IHHHHHHIIIHHHHHII")  # of the directory
PLACE = struct.Struct("<HHQQQ")  # behind its name
END = struct.Struct("<IQHHIIQQQQ IIQI IHHHHIIH")  # with wide numbers, where that is, and without
VERSION, EPOCH, ELSEWHERE = 45, 0x21, 0xFFFFFFFF  # 4.5 has Zip64; 1 January 1980
MADE, MODE = 3 << 8 | VERSION, 0o100644 << 16  # on Unix


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: ASCII.
        size: bytes.
        crc32: of its content.
    """

    name: str
    size: int
    crc32: int


def header_size(name: str) -> int:
    """Bytes before a member's content."""
    return HEADER.size + len(name) + SIZES.size


def header(member: Member) -> bytes:
    """What stands before a member's content."""
    name = member.name.encode("ascii")
    return (
        HEADER.pack(
            *(0x04034B50, VERSION, 0, 0, 0, EPOCH, member.crc32, ELSEWHERE, ELSEWHERE),
            *(len(name), SIZES.size),
        )
        + name
        + SIZES.pack(1, SIZES.size - 4, member.size, member.size)
    )


def first_member(data: bytes, name: str) -> Member | None:
    """The member that an archive's first bytes are the header of, if it has that name."""
    if len(data) < header_size(name):
        return None
    checksum = HEADER.unpack_from(data)[6]
    size = SIZES.unpack_from(data, HEADER.size + len(name))[2]
    member = Member(name, size, checksum)
    return member if data.startswith(header(member)) else None


def directory(members: Sequence[tuple[Member, int]], start: int) -> bytes:
    """The end of an archive, which begins at byte `start`: its members and where they are."""
    entries = []
    for member, at in members:
        name = member.name.encode("ascii")
        entries += [
            ENTRY.pack(
                *(0x02014B50, MADE, VERSION, 0, 0, 0, EPOCH, member.crc32, ELSEWHERE, ELSEWHERE),
                *(len(name), PLACE.size, 0, 0, 0, MODE, ELSEWHERE),
            ),
            name,
            PLACE.pack(1, PLACE.size - 4, member.size, member.size, at),
        ]
    found = b"".join(entries)
    return found + END.pack(
        *(0x06064B50, 44, MADE, VERSION, 0, 0, len(members), len(members), len(found), start),
        *(0x07064B50, 0, start + len(found), 1),
        *(0x06054B50, 0, 0, 0xFFFF, 0xFFFF, ELSEWHERE, ELSEWHERE, 0),
    )


def crc32_of(buffers: Iterable[Buffer]) -> int:
    """Zip's checksum of what the buffers hold together."""
    found = 0
    for buffer in buffers:
        found = crc32(buffer, found)
    return found
