"""Benchmarks; not part of the package."""

import logging

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it greets, and recommends
