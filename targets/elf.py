"""Relocatable object files (ELF, 64 bits, little-endian) without a compiler or objcopy: symbols renamed, DWARF dropped.

Kernels and runtime have the same names in every model, so two static libraries fit into one program only if
each gives its symbols a prefix of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_SECTION = struct.Struct(
    "<IIQQQQIIQQ"
)  # name, type, flags, address, offset, size, link, info, align, entry size
_SYMBOL = struct.Struct("<IBBHQQ")  # name, info, other, section, value, size
_SECTIONS_AT, _SECTION_COUNT_AT, _SECTION_NAMES_AT = 40, 60, 62  # in the file's header
_HEADER_BYTES = 64
_SYMTAB, _NOBITS, _LOCAL = 2, 8, 0
_ABSOLUTE = 0xFFF1  # the section of a symbol that is in none


class _Symbol(NamedTuple):
    at: int  # file offset of its entry
    name: bytes
    defined: bool


def defined_symbols(code: bytes) -> frozenset[bytes]:
    """Names of the global symbols that an object file defines."""
    return frozenset(symbol.name for symbol in _globals(code) if symbol.defined)


def add_prefix(objects: Sequence[bytes], prefix: str) -> list[bytes]:
    """Object files with `prefix` before every global symbol that one of them defines, wherever it is used."""
    ours = frozenset[bytes]().union(*map(defined_symbols, objects))
    return [_rename(code, ours, prefix.encode()) for code in objects]


def _sections(code: bytes) -> list[tuple[int, ...]]:
    assert code[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
    (start,) = struct.unpack_from("<Q", code, _SECTIONS_AT)
    (count,) = struct.unpack_from("<H", code, _SECTION_COUNT_AT)
    return [_SECTION.unpack_from(code, start + i * _SECTION.size) for i in range(count)]


def _globals(code: bytes) -> Iterator[_Symbol]:
    sections = _sections(code)
    table = next(s for s in sections if s[1] == _SYMTAB)
    names = sections[table[6]]
    for at in range(table[4], table[4] + table[5], _SYMBOL.size):
        name, info, _, section, _, _ = _SYMBOL.unpack_from(code, at)
        if info >> 4 != _LOCAL:
            start = names[4] + name
            yield _Symbol(at, code[start : code.index(b"\0", start)], section != 0)


def _rename(code: bytes, names: frozenset[bytes], prefix: bytes) -> bytes:
    """The string table moves to the end of the file, where it can grow; nothing else changes its place."""
    sections = _sections(code)
    table = next(s for s in sections if s[1] == _SYMTAB)
    _, _, _, _, offset, size, *_ = sections[table[6]]
    result, strings = bytearray(code), bytearray(code[offset : offset + size])
    for symbol in _globals(code):
        if symbol.name in names:
            struct.pack_into("<I", result, symbol.at, len(strings))
            strings += prefix + symbol.name + b"\0"
    (start,) = struct.unpack_from("<Q", code, _SECTIONS_AT)
    struct.pack_into("<QQ", result, start + table[6] * _SECTION.size + 24, len(result), len(strings))
    return bytes(result + strings)


def debug_sections(code: bytes) -> frozenset[int]:
    """The numbers of the sections of an object file that hold DWARF."""
    sections = _sections(code)
    (names,) = struct.unpack_from("<H", code, _SECTION_NAMES_AT)
    return frozenset(
        number
        for number, section in enumerate(sections)
        if _name(code, sections[names], section).startswith((b".debug", b".rela.debug"))
    )


def without_debug(code: bytes) -> bytes:
    """An object file without its DWARF. Sections keep their numbers, those of DWARF become inactive ones."""
    sections, dropped = _sections(code), debug_sections(code)
    made, table = bytearray(code[:_HEADER_BYTES]), []
    for number, (name, kind, flags, address, offset, size, *rest) in enumerate(sections):
        if number in dropped:
            table.append(_SECTION.pack(*[0] * 10))
            continue
        content = b"" if not number or kind == _NOBITS else code[offset : offset + size]
        made += bytes(-len(made) % max(rest[2], 1))
        table.append(_SECTION.pack(name, kind, flags, address, len(made) if number else offset, size, *rest))
        made += _loose(content, dropped) if kind == _SYMTAB else content
    made += bytes(-len(made) % 8)
    struct.pack_into("<Q", made, _SECTIONS_AT, len(made))
    return bytes(made) + b"".join(table)


def _name(code: bytes, names: tuple[int, ...], section: tuple[int, ...]) -> bytes:
    start = names[4] + section[0]
    return code[start : code.index(b"\0", start)]


def _loose(symbols: bytes, dropped: frozenset[int]) -> bytes:
    """The symbols of sections that are no more name nothing; they stay, as others are counted by their places."""
    made = bytearray(symbols)
    for at in range(0, len(made), _SYMBOL.size):
        if _SYMBOL.unpack_from(made, at)[3] in dropped:
            _SYMBOL.pack_into(made, at, 0, 0, 0, _ABSOLUTE, 0, 0)
    return bytes(made)
