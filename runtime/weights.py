"""weights.bin: the header before the weights; the layout is in format.md."""

from __future__ import annotations

HEADER_BYTES = 4096
ALIGNMENT = 64  # of each tensor, counted from the end of the header


def weights_header(build_id: str, payload_bytes: int) -> bytes:
    """The first 4096 bytes of a weights.bin; `build_id` is 64 hexadecimal digits."""
    assert len(build_id) == 64
    head = b"LLMCWTS1" + build_id.encode("ascii") + payload_bytes.to_bytes(8, "little")
    return head.ljust(HEADER_BYTES, b"\0")
