"""Prepared images: an image's scan, kept beside it as `IMAGE.bmap`, and what is checked by it.

bmap.py       the scan in memory, and written as a bmap 2.0 file; parsing.py reads one, bmaptool's too
scan.py       makes a scan of any source, on all cores
beside.py     the scan beside an image: found, fresh, signed as it has to be
checked.py    a source that is checked by its scan as it is read
signature.py  SSH signatures of a scan
"""

from __future__ import annotations

from restore.errors import Refused


class ManifestError(Refused):
    """A scan, signature or map that cannot be used; names the file, and says why and what to do."""
