"""`scripts/demo --tour`: one restore of every kind, as an admin would type it, each proved by a program of others.

__main__.py   the stops in their order, and what is said at the end
stage.py      command lines shown and run, disks, machines in target mode, what may be left behind: nothing
images.py     the system that is restored, as an image
prepared.py   imagescan, info, signatures; --minimize
formats.py    compressed images, .dmg, virtual disks, partclone, Clonezilla
devices.py    disks, volumes and mount points of this machine
machines.py   disks of other machines: cloned, verified, captured; several at once
urls.py       web server, object store, file servers
files.py      without --erase
sizes.py      smaller and larger targets; what is done to a system after its blocks are there
again.py      --delta, and a restore that was cut
bad.py        a disk with a bad sector
refusals.py   what is refused; lines for other programs
"""
