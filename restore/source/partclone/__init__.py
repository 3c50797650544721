"""Images of partclone, versions 0001 and 0002: a header, a bitmap of the blocks in use, those blocks with checksums.

    header.py     what an image says of itself, with limits
    bitmap.py     which blocks are in it, and where each is stored
    checksum.py   what is kept of each few blocks: CRC-32, XXH64, XXH128
    image.py      decoded at random, where the storage can be read so: `Chunks`
    stream.py     decoded from the start: `Stream`

The format is described in partclone's IMAGE_FORMATS.md; where that is silent, partclone's own code is what counts.
"""

from __future__ import annotations
