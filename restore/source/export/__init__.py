"""An NBD export as a source.

image.py     its blocks: `Chunks`, and the `Source` over them
reads.py     requests in flight on several connections
buffers.py   memory that is used again
"""
