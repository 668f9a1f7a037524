"""Uncompressed Zip archives that any Zip tool reads.

All sizes are 64 bits wide (Zip64), so that one layout fits every size.

Specification: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

from memory_store.backend import Buffer

HEADER = struct.Struct("<IHHHHHIIIHH")  # local file header
SIZES = struct.Struct("<HHQQ")  # its Zip64 extra field, after the name
ENTRY = struct.Struct("<IHHHHHHIIIHHHHHII")  # central directory header
PLACE = struct.Struct("<HHQQQ")  # its Zip64 extra field, after the name
END = struct.Struct("<IQHHIIQQQQ IIQI IHHHHIIH")  # Zip64 end record, its locator, end record
VERSION, EPOCH, ELSEWHERE = 45, 0x21, 0xFFFFFFFF  # 4.5 has Zip64; 1 January 1980; see extra field
MADE, MODE = 3 << 8 | VERSION, 0o100644 << 16  # made on Unix; a regular file


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: in ASCII.
        size: of its content, in bytes.
        crc32: of its content.
    """

    name: str
    size: int
    crc32: int


def header_size(name: str) -> int:
    """The size of the header before a member's content, in bytes."""
    return HEADER.size + len(name) + SIZES.size


def header(member: Member) -> bytes:
    """The header before a member's content."""
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
    """The member whose header `data` begins with, or None if it is not called `name`."""
    if len(data) < header_size(name):
        return None
    checksum = HEADER.unpack_from(data)[6]
    size = SIZES.unpack_from(data, HEADER.size + len(name))[2]
    member = Member(name, size, checksum)
    return member if data.startswith(header(member)) else None


def directory(members: Sequence[tuple[Member, int]], start: int) -> bytes:
    """The central directory of an archive, at offset `start`, of members and their offsets."""
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
    listing = b"".join(entries)
    return listing + END.pack(
        *(0x06064B50, 44, MADE, VERSION, 0, 0, len(members), len(members), len(listing), start),
        *(0x07064B50, 0, start + len(listing), 1),
        *(0x06054B50, 0, 0, 0xFFFF, 0xFFFF, ELSEWHERE, ELSEWHERE, 0),
    )


def crc32_of(buffers: Iterable[Buffer]) -> int:
    """crc32 of the concatenated buffers, the checksum of Zip."""
    checksum = 0
    for buffer in buffers:
        checksum = crc32(buffer, checksum)
    return checksum
