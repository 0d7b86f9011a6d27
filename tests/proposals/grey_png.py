"""Grey PNGs of few bits, which Pillow can read but not write."""

import struct
import zlib

import numpy as np


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """Encode values of 2 or 4 bits as a grey PNG that stores them as they are."""
    rows = np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(len(values), -1)
    header = struct.pack(">IIBBBBB", *values.shape[::-1], bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + np.packbits(row).tobytes() for row in rows))
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
