"""What is done to a target after its blocks are there, on the target attached in private.

steps.py         all that was asked for, in order
grow.py          --grow: the last partition and its file system
identity.py      --new-ids: identifiers of disk, partitions and file systems; references.py follows them
hostname.py      --hostname
volumes.py       the file systems of an attached target
"""
