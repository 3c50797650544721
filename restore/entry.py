"""Where the `asr` command begins: Ctrl-C while its modules are still being loaded is one line too."""

from __future__ import annotations

import sys


def main() -> int:
    """Run `asr`; its exit status."""
    try:
        from restore.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("asr: interrupted; nothing was touched", file=sys.stderr)
        return 1
