"""Images are made: of a disk, or of a larger image.

capture.py    a disk becomes a prepared image, in one reading
sinks.py      what it is written to: sparse, or zstd in the seekable format
minimize.py   a copy of an image that is shrunk to its contents
"""
