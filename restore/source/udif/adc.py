"""Apple Data Compression, of images from the time of Mac OS X 10.0 and 10.1.

A byte with bit 7 set is followed by 1 to 128 bytes as they are; one with bit 6 set begins a copy of 4 to 67 bytes from
up to 64 KiB before, told in two more bytes; any other one a copy of 3 to 18 bytes from up to 1 KiB before, told in one.

No library has it. This goes through it token by token, some 20 MB/s, on one core.
"""

from __future__ import annotations


def decompress(data: bytes | memoryview, size: int) -> bytearray:
    """The `size` bytes that `data` stands for.

    Raises:
        ValueError: it does not stand for exactly as many, or is no ADC.
    """
    data = bytes(data)
    out = bytearray()
    length = 0  # of `out`
    position, end = 0, len(data)
    try:
        while position < end:
            token = data[position]
            if token & 0x80:
                count = token - 0x7F
                position += 1
                out += data[position : position + count]
                position += count
                length += count
            else:
                if token & 0x40:
                    count = token - 0x3C
                    distance = (data[position + 1] << 8 | data[position + 2]) + 1
                    position += 3
                else:
                    count = (token >> 2) + 3
                    distance = ((token & 3) << 8 | data[position + 1]) + 1
                    position += 2
                start = length - distance
                if start < 0:
                    raise ValueError("a copy from before the beginning")
                if distance >= count:
                    out += out[start : start + count]
                else:  # it copies what it has just written
                    out += (out[start:] * (count // distance + 1))[:count]
                length += count
            if length > size:
                raise ValueError(f"more than {size} bytes")
    except IndexError:
        raise ValueError("cut short") from None
    if len(out) != size:  # `length` counts what a cut literal lacks, too
        raise ValueError(f"{len(out)} bytes, not {size}")
    return out
