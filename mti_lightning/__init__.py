"""Maximally tense images and +/− attribution inversions, for any timm model."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mti_lightning.public import *  # noqa: F403
else:
    # Only who asks for a name pays for PyTorch: `mti --help` answers at once.

    def __getattr__(name: str) -> object:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = import_module("mti_lightning.public")
        if name != "__all__" and name not in public.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals().update({known: getattr(public, known) for known in public.__all__})
        return getattr(public, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module("mti_lightning.public").__all__})
