"""`restore` without `--erase`: an image's files are copied.

copy.py      sizes, rsync, comparison: in the private process
compare.py   content and metadata of every item
profile.py   what a file system can keep of them
"""
