"""A process of its own for all that mounts: nothing outlives it, nobody sees it.

process.py    that process: a function of ours is run in namespaces of its own
attach.py     a disk, image or export as a local block device
mounting.py   file systems found and mounted
rooted.py     files of a system that is not trusted
"""
