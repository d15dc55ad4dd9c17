"""The command line, `mti`."""

from mti_lightning.cli.entry import main

__all__ = ["main"]
