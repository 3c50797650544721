"""UDIF images, `.dmg`: the disk images of macOS.

format.py      what they consist of
layout.py      trailer, property list (plist.py) and blocks, read and checked: which run of the image lies where
codecs.py      a run's stored bytes become its sectors; adc.py and lzfse.py are two of the ways
checksum.py    CRC-32s of runs, decoded in any order, put together to those of the blocks
image.py       `Chunks` of all this
recognise.py   is it one? And the kinds of disk image that are refused by name
"""
