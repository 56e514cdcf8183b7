"""Makes the two digits files beside this script from the copy of the data that scikit-learn ships.

    pip install --no-deps scikit-learn && python make_digits.py

Only the package's data file is read (scikit-learn itself is not imported, so its dependencies are not needed).
The output is a function of that file and of zlib's version alone: no time stamp, no file name inside the gzip.
"""

import csv
import gzip
import importlib.util
import io
import struct
from pathlib import Path

UNSIGNED_BYTE = 0x08
SIDE = 8
HERE = Path(__file__).parent


def read_rows():
    package = Path(importlib.util.find_spec("sklearn").origin).parent
    with gzip.open(package / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        return [[int(float(value)) for value in row] for row in csv.reader(file)]


def idx(shape, data):
    """The IDX bytes: two zeros, element type, number of dimensions, big-endian sizes, elements in C order."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, UNSIGNED_BYTE, len(shape), *shape) + bytes(data)


def write_gz(name, data):
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as file:
        file.write(data)
    (HERE / name).write_bytes(packed.getvalue())


def main():
    rows = read_rows()
    assert all(len(row) == SIDE * SIDE + 1 and max(row[:-1]) <= 16 and row[-1] <= 9 for row in rows)
    pixels = [value for row in rows for value in row[:-1]]
    labels = [row[-1] for row in rows]
    write_gz("digits-images.gz", idx([len(rows), SIDE, SIDE], pixels))
    write_gz("digits-labels.gz", idx([len(rows)], labels))


if __name__ == "__main__":
    main()
