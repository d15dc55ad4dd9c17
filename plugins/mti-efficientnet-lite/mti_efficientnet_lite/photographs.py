"""Pictures of two photographs: one excites a class of ImageNet, the other inhibits it.

They are written to a folder by

    python -m mti_efficientnet_lite.photographs FOLDER

The photographs lie in the packages scikit-image (cat, cup, photographer: CC0; rocket: public
domain) and scikit-learn (pagoda: by danielbuechele, CC BY 2.0).

Which photographs and classes: of all pairs of them, and the four classes that EfficientNet-Lite0
says first of either photograph alone, some of those where covering the one lowers the logit and
covering the other raises it the most.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, final

from PIL import Image, ImageFilter
from timm.data import ImageNetInfo

SIDE = 512  # pixels
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
Cover = Literal["grey", "blur"]


class Half(NamedTuple):
    """A part of a photograph: the file's name, and left, top, right and bottom edge in pixels."""

    photograph: str
    box: tuple[int, int, int, int]


EYES = Half("chelsea.png", (60, 30, 420, 210))
HALF_A_CAT = Half("chelsea.png", (110, 0, 260, 300))
CUP = Half("coffee.png", (230, 20, 380, 320))
PAGODA = Half("china.jpg", (100, 0, 314, 427))
ROOFS = Half("china.jpg", (20, 20, 440, 230))
PHOTOGRAPHER = Half("camera.png", (150, 30, 390, 510))
ROCKET = Half("rocket.jpg", (220, 0, 430, 420))


@final
@dataclass(frozen=True)
class Scene:
    """A square picture of two halves, and a class.

    Wide halves lie one above the other, tall ones side by side; `halves` has the upper or left one
    first.
    """

    label: int  # of ImageNet
    halves: tuple[Half, Half]
    excites: Literal[0, 1]  # which half

    @property
    def name(self) -> str:
        """The first name of the class."""
        return ImageNetInfo().index_to_description(self.label).partition(",")[0]

    def picture(self, covered: int | None = None, cover: Cover = "grey") -> Image.Image:
        """Compose the picture.

        Args:
            covered: The half that is not to be seen.
            cover: What stands in its place: mid-grey, or its colours without its contours.
        """
        left, top, right, bottom = self.halves[0].box
        stacked = right - left > bottom - top
        size = (SIDE, SIDE // 2) if stacked else (SIDE // 2, SIDE)
        picture = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
        for number, half in enumerate(self.halves):
            if number == covered and cover == "grey":
                continue
            part = photograph(half.photograph).crop(half.box).resize(size, Image.Resampling.LANCZOS)
            if number == covered:
                part = part.filter(ImageFilter.GaussianBlur(SIDE / 6))
            place = number * SIDE // 2
            picture.paste(part, (0, place) if stacked else (place, 0))
        return picture


SCENES = (
    Scene(285, (EYES, ROOFS), excites=0),
    Scene(442, (EYES, ROOFS), excites=1),
    Scene(967, (PAGODA, CUP), excites=1),
    Scene(872, (PHOTOGRAPHER, PAGODA), excites=0),
    Scene(698, (PHOTOGRAPHER, PAGODA), excites=1),
    Scene(657, (ROCKET, HALF_A_CAT), excites=0),
)


def photograph(name: str) -> Image.Image:
    """Open a photograph of scikit-image or scikit-learn.

    Raises:
        FileNotFoundError: If neither has one of that name.
    """
    for package, folder in _FOLDERS.items():
        spec = find_spec(package)  # does not import it
        for path in (spec and spec.submodule_search_locations) or ():
            file = Path(path, folder, name)
            if file.is_file():
                with Image.open(file) as image:
                    return image.convert("RGB")
    raise FileNotFoundError(f"there is no photograph {name}: pip install scikit-image scikit-learn")


def write(folder: Path) -> list[Path]:
    """Write the pictures to a folder, in the order of `SCENES` by name, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [scene.name.replace(" ", "_") for scene in SCENES]
    paths = [folder / f"{number}_{name}.png" for number, name in enumerate(names, 1)]
    for scene, path in zip(SCENES, paths, strict=True):
        scene.picture().save(path)
    return paths


def main(arguments: Sequence[str]) -> None:
    """Write the pictures to the folder that is named."""
    if len(arguments) != 1:
        sys.exit("usage: python -m mti_efficientnet_lite.photographs FOLDER")
    write(Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
