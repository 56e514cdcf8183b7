"""Makes the images of the tests, and what Pillow makes of them (*.raw: height x width x RGB). Pillow 13, NumPy 2."""

import numpy as np
from PIL import Image

H, W = 47, 61
random = np.random.default_rng(7)
y, x = np.mgrid[0:H, 0:W]
waves = np.stack([np.sin(x / 5) * np.cos(y / 7), np.cos(x * y / 90), np.sin((x + y) / 3)], axis=-1)
pixels = np.clip(128 + 90 * waves + random.normal(0, 12, (H, W, 3)), 0, 255).astype(np.uint8)
image = Image.fromarray(pixels)
smooth = Image.fromarray(np.clip(128 + 90 * waves, 0, 255).astype(np.uint8))


def raw(name, picture):
    picture.convert("RGB").tobytes()
    open(name + ".raw", "wb").write(picture.convert("RGB").tobytes())


image.save("rgb.png", optimize=True)
raw("rgb.png.shorter24", image.resize((int(24 * W / H), 24), Image.BILINEAR))
raw("rgb.png.cut", image.crop((10, 5, 50, 25)).resize((32, 32), Image.BILINEAR))
image.convert("L").save("grey.png")
raw("grey.png", image.convert("L"))
image.quantize(16).save("palette.png")
raw("palette.png", Image.open("palette.png"))
alpha = image.resize((20, 16)).convert("RGBA")
alpha.putalpha(100)
alpha.save("alpha.png")
raw("alpha.png", alpha)
for name, mode, options in [
    ("rgb.jpg", "RGB", dict(quality=90)),
    ("progressive.jpg", "RGB", dict(quality=90, progressive=True)),
    ("grey.jpg", "L", dict(quality=90)),
    ("cmyk.jpg", "CMYK", dict(quality=90)),
]:
    smooth.convert(mode).save(name, **options)
    raw(name, Image.open(name))
