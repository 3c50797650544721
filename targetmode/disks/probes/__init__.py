"""What tells one file system or container from another: one function for each kind, grouped by where it comes from.

Every probe takes a `Media` and answers with a `Signature` or None; it raises OSError when the disk cannot be read, and
nothing else, whatever the disk holds.
"""
