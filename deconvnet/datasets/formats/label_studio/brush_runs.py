"""The run lengths in which Label Studio's JSON stores the masks of brush labels.

They are a list of bytes, whose bits are read from the highest on:

* 32 bits: the number of words; 5 bits: the size of a word less 1; 4 × 4 bits: four sizes of numbers, each less 1.
* Then packets, until all words have been read. 1 bit: whether one word is repeated; 2 bits: which of the four sizes the next
  number has; the number of words less 1; then the word that is repeated, or all words.

The words are bytes: red, green, blue and alpha of each pixel, row by row. A pixel belongs to the mask if it is opaque.
"""

from typing import Any

import numpy as np

from infra.errors import BadInput

_SIZES = (3, 4, 8, 16)  # sizes of numbers, in bits
_OPAQUE = 128  # lowest alpha of a pixel that belongs to the mask; brush strokes may have soft edges


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encode a mask.

    Args:
        mask: bool array (H, W), True where the object is.

    Returns:
        The bytes, each 0 to 255. All four bytes of a pixel are 255 where the object is, and 0 elsewhere.
    """
    words = np.repeat(mask.ravel(), 4)
    starts = np.concatenate([[0], np.flatnonzero(words[1:] != words[:-1]) + 1])
    bits = [f"{words.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for start, length in zip(starts.tolist(), np.diff([*starts, words.size]).tolist(), strict=True):
        value = "1" * 8 if words[start] else "0" * 8
        while length:
            number = min(length, 1 << _SIZES[-1])
            index = next(i for i, size in enumerate(_SIZES) if number <= 1 << size)
            bits += ["1", f"{index:02b}", f"{number - 1:0{_SIZES[index]}b}", value]
            length -= number
    text = "".join(bits)
    return list(int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big"))


class _Bits:
    """A sequence of bits that is read from its start."""

    def __init__(self, data: bytes) -> None:
        """Create a sequence of the bits of `data`, from the highest of each byte on."""
        self._bits = np.unpackbits(np.frombuffer(data, np.uint8))
        self._position = 0

    def words(self, count: int, size: int) -> np.ndarray:
        """Read words.

        Args:
            count: number of words.
            size: bits of a word, at most 32.

        Returns:
            int64 array (count,) of their values.

        Raises:
            BadInput: if fewer bits are left.
        """
        end = self._position + count * size
        if end > len(self._bits):
            raise BadInput("its run lengths are damaged: they end too early")
        bits = self._bits[self._position : end].reshape(count, size).astype(np.int64)
        self._position = end
        return bits @ (1 << np.arange(size - 1, -1, -1, dtype=np.int64))

    def number(self, size: int) -> int:
        """Read a number of `size` bits. Raise BadInput if fewer are left."""
        return int(self.words(1, size)[0])


def decode_brush(values: Any, height: int, width: int) -> np.ndarray:
    """Decode a mask.

    Args:
        values: value of `rle` in the JSON: a list of bytes.
        height: height of the mask in px.
        width: width of the mask in px.

    Returns:
        bool array (H, W), True where the mask is opaque.

    Raises:
        BadInput: if the run lengths are damaged, or for another number of pixels.
    """
    try:
        bits = _Bits(bytes(values))
    except (TypeError, ValueError):
        raise BadInput("its run lengths are not a list of bytes") from None
    count, word_size = bits.number(32), bits.number(5) + 1
    sizes = [bits.number(4) + 1 for _ in range(4)]
    if count != 4 * height * width or word_size != 8:
        needed = f"{width}×{height} px need {4 * height * width:,} of 8"
        raise BadInput(f"its run lengths have {count:,} words of {word_size} bits, and {needed}")
    words = np.zeros(count, np.uint8)
    done = 0
    while done < count:
        repeated = bits.number(1)
        length = bits.number(sizes[bits.number(2)]) + 1
        if done + length > count:
            raise BadInput("its run lengths are damaged: they have more pixels than the image")
        words[done : done + length] = bits.number(8) if repeated else bits.words(length, 8)
        done += length
    alpha = words.reshape(height, width, 4)[..., 3]
    return alpha >= min(_OPAQUE, max(1, int(alpha.max())))
