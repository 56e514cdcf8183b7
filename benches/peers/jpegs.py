"""Makes 512 JPEG files of 500x375 pixels, once, and prints their folder.

The pictures are noise whose strength falls with frequency as a photograph's does; quality 90, about 110 KB a file, as in
ImageNet.
"""
import pathlib
import tempfile

import numpy as np
from PIL import Image

FILES, WIDTH, HEIGHT = 512, 500, 375


def folder():
    root = pathlib.Path(tempfile.gettempdir()) / "leyden-bench-jpegs"
    done = root / "done"
    if not done.exists():
        (root / "class").mkdir(parents=True, exist_ok=True)
        for number in range(FILES):
            picture(number).save(root / "class" / f"{number:04}.jpg", quality=90)
        done.touch()
    return root


def picture(number):
    random = np.random.default_rng(number)
    down, right = np.meshgrid(np.fft.fftfreq(HEIGHT), np.fft.rfftfreq(WIDTH), indexing="ij")
    strength = 1 / np.maximum(np.hypot(down, right), 1 / WIDTH)
    planes = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * random.random(strength.shape))
        plane = np.fft.irfft2(strength * phases, s=(HEIGHT, WIDTH))
        planes.append((plane - plane.mean()) / plane.std())
    light = planes[0]
    channels = [128 + 45 * (0.9 * light + 0.3 * plane) for plane in planes]
    return Image.fromarray(np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8))


if __name__ == "__main__":
    print(folder())
