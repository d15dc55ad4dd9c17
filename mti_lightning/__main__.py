"""`python -m mti_lightning` is `mti`."""

from mti_lightning.cli import main

main()
