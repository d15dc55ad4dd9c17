"""Pictures of two photographs: one excites a class of ImageNet, the other inhibits it.

They are written to a folder by

    python -m mti_efficientnet_lite.photographs FOLDER

The photographs lie in the packages scikit-image (cat, cup, photographer: CC0; rocket: public
domain) and scikit-learn (pagoda: by danielbuechele, CC BY 2.0).

Which photographs and classes: of all pairs of them, and the four classes that EfficientNet-Lite0
says first of either photograph alone, some of those where covering the one lowers the logit and
covering the other raises it the most.

With `--pairs N` it is N pictures of random parts of two photographs, for an atlas; more of the
packages' photographs are among them (CC0 or public domain; flower: by dany13, CC BY 2.0).
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, final

from PIL import Image, ImageFilter
from timm.data import ImageNetInfo

SIDE = 512  # pixels
# Those that parts are drawn from, for an atlas.
PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "china.jpg", "clock_motion.png"),
    *("coffee.png", "coins.png", "flower.jpg", "grass.png", "gravel.png", "moon.png"),
    *("motorcycle_left.png", "rocket.jpg"),
)
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


def write_pairs(folder: Path, count: int) -> list[Path]:
    """Write pictures of random parts of two photographs, side by side, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = {name: photograph(name) for name in PHOTOGRAPHS}
    paths = []
    for number in range(count):
        draw = random.Random(number)
        picture = Image.new("RGB", (SIDE // 2, SIDE // 2))
        names = draw.sample(PHOTOGRAPHS, 2)
        for place, name in enumerate(names):
            part = _part(opened[name], draw)
            size = (picture.width // 2, picture.height)
            picture.paste(part.resize(size, Image.Resampling.LANCZOS), (place * size[0], 0))
        first, second = (name.partition(".")[0] for name in names)
        paths.append(folder / f"{number:05d}_{first}_{second}.jpg")
        picture.save(paths[-1], quality=92)
    return paths


def _part(whole: Image.Image, draw: random.Random) -> Image.Image:
    """Return a part of a photograph, twice as high as wide."""
    high = round(min(whole.height, 2 * whole.width) * draw.uniform(0.5, 1))
    wide = high // 2
    left, top = draw.randint(0, whole.width - wide), draw.randint(0, whole.height - high)
    return whole.crop((left, top, left + wide, top + high))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures to the folder that is named."""
    parser = argparse.ArgumentParser("mti_efficientnet_lite.photographs")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, help="So many pictures of parts of two photographs.")
    given = parser.parse_args(arguments)
    if given.pairs is None:
        write(given.folder)
    else:
        write_pairs(given.folder, given.pairs)


if __name__ == "__main__":
    main()
