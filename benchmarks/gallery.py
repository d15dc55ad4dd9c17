"""Write the pictures that docs/gallery.md is made from: `python -m benchmarks.gallery FOLDER`.

A picture of a cat beside dogs, and in `pairs` pictures of parts of two of ten photographs each. The
photographs are scikit-image's and scikit-learn's, and of the dogs Debian's lomiri-wallpapers'.
"""

import argparse
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
from mti_efficientnet_lite.photographs import photograph
from PIL import Image

DOGS: Final = Path("/usr/share/backgrounds/friends_by_Aitzol_Berasategi.jpg")
PHOTOGRAPHS: Final = (
    *("astronaut.png", "camera.png", "chelsea.png", "china.jpg", "coffee.png", "flower.jpg"),
    *("ihc.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)
SIDE: Final = 448  # pixels


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return a square picture of two pictures of half its width."""
    both = Image.new("RGB", (SIDE, SIDE))
    for place, half in enumerate((left, right)):
        part = half.resize((SIDE // 2, SIDE), Image.Resampling.LANCZOS)
        both.paste(part, (place * SIDE // 2, 0))
    return both


def cat_and_dogs() -> Image.Image:
    """Return a picture of a cat's face on the left and two dogs on the right."""
    with Image.open(DOGS) as image:
        width, height = image.size
        box = 0.27 * width, 0.23 * height, 0.73 * width, 0.8 * height
        dogs = image.convert("RGB").resize((SIDE // 2, SIDE), Image.Resampling.LANCZOS, box)
    return beside(photograph("chelsea.png").crop((70, 0, 220, 300)), dogs)


def half(photo: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return a part of a photograph twice as high as wide, of most of what fits."""
    height = min(photo.height, 2 * photo.width) * random.uniform(0.7, 1)
    width = height / 2
    left, top = (random.uniform(0, a - b) for a, b in zip(photo.size, (width, height), strict=True))
    return photo.crop((int(left), int(top), int(left + width), int(top + height)))


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=4, help="Pictures of each two photographs.")
    given = parser.parse_args()
    random, folder = np.random.default_rng(0), given.folder / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    for two in combinations(PHOTOGRAPHS, 2):
        for number in range(given.each):
            names = two if number % 2 else two[::-1]
            halves = (half(photograph(name), random) for name in names)
            stems = "_".join(Path(name).stem for name in names)
            beside(*halves).save(folder / f"{stems}_{number}.jpg", quality=95)
    if DOGS.is_file():
        cat_and_dogs().save(given.folder / "cat_and_dogs.png")
    else:
        print(f"no cat beside dogs: {DOGS} is not there; apt install lomiri-wallpapers-16.04")


if __name__ == "__main__":
    main()
