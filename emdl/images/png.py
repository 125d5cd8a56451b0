"""What Pillow does not do for PNG: 16 bits of colour, and the chunks that go along with the pixels."""

import struct
import zlib

import numpy as np

MAGIC = b"\x89PNG\r\n\x1a\n"
# Chunks that stay true when pixels change a little: colours, size on paper, orientation, texts, time.
_KEPT = (b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"pHYs", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"tIME")
_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of samples of a pixel
_LEVEL = 6
_ROWS = 256  # compressed at a time


def chunks(path):
    """Return the chunks of a PNG file to write again, as a list of (name, content)."""
    found = []
    with open(path, "rb") as file:
        file.seek(len(MAGIC))
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name in _KEPT:
                found.append((name, file.read(length)))
                file.seek(4, 1)
            else:
                file.seek(length + 4, 1)
    return found


def is_deep(image):
    """Return whether an open Pillow image is a PNG with colours of 16 bits, of which Pillow would keep 8."""
    return image.format == "PNG" and bool(image.tile) and image.tile[0][3] in ("RGB;16B", "RGBA;16B", "LA;16B")


def read_deep(path):
    """Return the samples of a PNG with colours of 16 bits.

    Pillow reads the high bytes. Told that the file has the other order of bytes it reads the low ones.

    Parameters
    ----------
    path : path
        A file for which `is_deep` holds.

    Returns
    -------
    ndarray (H, W, n) of uint16
    """
    from PIL import Image

    with Image.open(path) as image:
        layout = image.tile[0][3]
    if layout == "LA;16B":  # there is no other order of these four bytes, but they fit a pixel of four samples
        whole = _read_as(path, "RGBA").astype(np.uint16)
        return whole[..., ::2] << 8 | whole[..., 1::2]
    deep = _read_as(path, layout).astype(np.uint16)
    deep <<= 8
    deep |= _read_as(path, str(layout).replace("16B", "16L"))
    return deep


def _read_as(path, layout):
    from PIL import Image

    with Image.open(path) as image:
        image.tile = [image.tile[0]._replace(args=layout)]
        return np.asarray(image)


def write(file, samples, kept):
    """Write a PNG.

    Parameters
    ----------
    file : binary file
        Open for writing.
    samples : array (H, W) or (H, W, n)
        uint8 or uint16; n = 2 is grey with transparency, 3 RGB, 4 RGB with transparency.
    kept : list of (bytes, bytes)
        Chunks to write before the pixels.
    """
    samples = samples[..., None] if samples.ndim == 2 else samples
    H, W, n = samples.shape
    file.write(MAGIC)
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", W, H, 8 * samples.itemsize, _COLOUR_TYPE[n], 0, 0, 0))
    for name, content in kept:
        _write_chunk(file, name, content)
    packer = zlib.compressobj(_LEVEL)
    above = np.zeros((1, W * n * samples.itemsize), np.uint8)
    for row in range(0, H, _ROWS):
        rows = np.ascontiguousarray(samples[row : row + _ROWS], samples.dtype.newbyteorder(">"))
        rows = rows.view(np.uint8).reshape(len(rows), -1)
        packed = packer.compress(_filtered(rows, above, n * samples.itemsize))
        if packed:
            _write_chunk(file, b"IDAT", packed)
        above = rows[-1:]
    _write_chunk(file, b"IDAT", packer.flush())
    _write_chunk(file, b"IEND", b"")


def profile_chunk(profile):
    """Return the chunk that holds an ICC profile."""
    return b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)


def _write_chunk(file, name, content):
    file.write(struct.pack(">I", len(content)) + name + content)
    file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))


def _filtered(rows, above, step):
    """Return rows of bytes less a guess from their neighbours, in each row by the filter that leaves least."""
    up = np.concatenate([above, rows[:-1]])
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, step:], corner[:, step:] = rows[:, :-step], up[:, :-step]
    guesses = (None, left, up, ((left.astype(np.int16) + up) >> 1).astype(np.uint8), _paeth(left, up, corner))
    rest = np.stack([rows if guess is None else rows - guess for guess in guesses])
    size = np.abs(rest.view(np.int8).astype(np.int16)).sum(axis=2, dtype=np.int64)
    best = size.argmin(axis=0)
    chosen = rest[best, np.arange(len(rows))]
    return np.concatenate([best[:, None].astype(np.uint8), chosen], axis=1).tobytes()


def _paeth(left, up, corner):
    """Return whichever of the three neighbours lies nearest to left + up - corner, as the PNG standard has it."""
    a, b, c = (x.astype(np.int16) for x in (left, up, corner))
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
