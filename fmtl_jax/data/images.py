"""Photographs that are decoded when they are asked for, never before.

Where their features are cached, a second run decodes none of them.
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import functools
import hashlib
import io
import os
import pathlib
from typing import Any, NamedTuple, Protocol

import numpy as np

from fmtl_jax.storage import archives

_RESAMPLING = 'BILINEAR'
# What is behind transparent pixels, as on a page.
BACKGROUND = (255, 255, 255)
SUFFIXES = ('.jpg', '.jpeg', '.png')
MOST = 2**26  # Bytes of one file.


class Encoded(Protocol):
  """Random access to the bytes of N image files."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> bytes: ...


class FromSource:
  """The images of a TFDS data source: their bytes, read one at a time."""

  def __init__(self, source: Any):
    """Reads nothing yet; the feature `image` of an example has its bytes."""
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int, /) -> bytes:
    return self._source[index]['image']


_AT_ONCE = 1024  # Images that are in memory as uint8, too.


class Images:
  """Encoded images that look like a `[N, H, W, C]` uint8 array.

  An image is cut to the shape of the target, around its center, and resized.
  Brightness of 16 bits is scaled to 8; what is transparent shows `background`.

  ```python
  photographs = images.Images(faces.encoded, size=(150, 150))
  batch = photographs[:32]  # Decodes 32 images: `[32, 150, 150, 3]`.
  ```

  Attributes:
    shape: `(N, H, W, C)`; C is 3 for RGB, 1 for grey.
    dtype: uint8, 0 to 255.
  """

  dtype = np.dtype(np.uint8)

  def __init__(
    self,
    encoded: Encoded,
    size: tuple[int, int],
    crop: float = 1.0,
    grey: bool = False,
    background: Sequence[int] = BACKGROUND,
  ):
    """Decodes nothing yet.

    Args:
      encoded: The bytes of N files in any format that Pillow reads.
      size: `(H, W)` in pixels.
      crop: The central fraction of an image's height and width that is kept,
        more than 0 and at most 1.
      grey: Whether images have one channel, of brightness, instead of RGB.
      background: The color, 0 to 255, behind transparent pixels.

    Raises:
      ValueError: If the size or the crop is out of range, or if Pillow is not
        installed.
    """
    if len(size) != 2 or min(size) < 1:
      raise ValueError(
        f'Expected size to be a positive (height, width), got {size}.'
      )
    if not 0 < crop <= 1:
      raise ValueError(
        f'Expected crop to be more than 0 and at most 1, got {crop}.'
      )
    _pillow()
    self.shape = (len(encoded), *size, 1 if grey else 3)
    self._encoded = encoded
    self._crop = crop
    self._background = tuple(background)

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, index: Any) -> np.ndarray:
    """Decodes images with all cores.

    Args:
      index: Of the images, as in NumPy: a slice, an array or a number.

    Returns:
      `[n, H, W, C]` uint8; as in NumPy, a number gives one `[H, W, C]`.

    Raises:
      ValueError: If an image cannot be read.
    """
    positions = np.arange(len(self))[index]
    flat = positions.ravel().tolist()
    # Read by one thread: not every source can be read by several.
    contents = [self._encoded[position] for position in flat]
    with _threads() as pool:
      decoded = list(pool.map(self._decode, flat, contents))
    return np.array(decoded, self.dtype).reshape(
      positions.shape + self.shape[1:]
    )

  def of_size(self, size: tuple[int, int], grey: bool) -> 'Images':
    """The same images in another size; decodes nothing yet.

    Args:
      size: `(H, W)` in pixels.
      grey: Whether they have one channel.
    """
    return Images(self._encoded, size, self._crop, grey, self._background)

  def decoded(self) -> np.ndarray:
    """All images as float32 in 0 to 255, `[N, H, W, C]`, in memory."""
    found = np.empty(self.shape, np.float32)
    for start in range(0, len(self), _AT_ONCE):
      found[start : start + _AT_ONCE] = self[start : start + _AT_ONCE]
    return found

  def fingerprint(self) -> str:
    """A short name for the files' content and how they are decoded.

    Returns:
      16 hexadecimal digits. Every file is read for it, but none decoded.
    """
    how = (
      self.shape,
      float(self._crop),
      _RESAMPLING,
      self._background,
      _pillow().__version__,
    )
    return hashlib.sha256(repr(how).encode() + self._digests).hexdigest()[:16]

  def content(self) -> str:
    """A name for the files' content alone: 64 hexadecimal digits."""
    return hashlib.sha256(self._digests).hexdigest()

  @functools.cached_property
  def _digests(self) -> bytes:
    """Those of all files, which are read once for them."""
    return b''.join(
      hashlib.sha256(self._encoded[position]).digest()
      for position in range(len(self))
    )

  def _decode(self, position, data):
    pillow = _pillow()
    _, height, width, channels = self.shape
    try:
      with pillow.Image.open(io.BytesIO(data)) as image:
        is_png = image.format == 'PNG'
        image = pillow.ImageOps.exif_transpose(image)  # Upright.
        image = pillow.ImageOps.fit(
          _opaque(image, is_png, self._background).convert(
            'L' if channels == 1 else 'RGB'
          ),
          (width, height),
          pillow.Image.Resampling[_RESAMPLING],
          bleed=(1 - self._crop) / 2,  # Of each side.
        )
    except Exception as error:  # Whatever Pillow makes of damaged bytes.
      raise ValueError(
        f'Expected an image file at position {position}, got {len(data)} bytes '
        f'that cannot be read ({error!r}); leave it out or get it again.'
      ) from error
    return np.asarray(image).reshape(height, width, channels)


def pixels(photographs: Images, decode: bool) -> np.ndarray:
  """All images as `Images.decoded`; zeros of their shape unless `decode`."""
  if decode:
    return photographs.decoded()
  return np.zeros(photographs.shape, np.float32)


def _opaque(image, is_png, background):
  """An image of 8 bits a channel without transparency.

  Args:
    image: As Pillow opened it.
    is_png: Whether it comes from a PNG, whose numbers have 16 bits at most.
    background: What transparent pixels show.

  Raises:
    ValueError: If its numbers have no range that stands for black to white.
  """
  pillow = _pillow()
  if image.mode.startswith('I;16') or image.mode == 'I' and is_png:
    pixels = np.asarray(image).astype(np.uint32)
    level = image.info.get('transparency')
    image = pillow.Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    if level is not None:
      image.putalpha(pillow.Image.fromarray(np.uint8(255) * (pixels != level)))
  if image.mode in ('I', 'F'):
    raise ValueError(
      f'pixels of 32 bits (mode {image.mode!r}), whose white is not known; '
      'save it with 8 or 16 bits'
    )
  if not image.has_transparency_data:
    return image
  layer = image.convert('RGBA')
  behind = pillow.Image.new('RGBA', layer.size, (*background, 255))
  return pillow.Image.alpha_composite(behind, layer)


class Files(NamedTuple):
  """Files of a folder or a zip.

  Attributes:
    names: Their paths in it, sorted.
    read: Gives the bytes of one by its path; b'' where they cannot be had.
  """

  names: Sequence[str]
  read: Callable[[str], bytes]

  def fingerprint(self) -> str:
    """Names the paths and the content of all files: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in self.names:
      for part in (name.encode(errors='surrogateescape'), self.read(name)):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def open_files(source: pathlib.Path, *suffixes: str) -> Iterator[Files]:
  """Opens a folder, at any depth, or a zip, without unpacking it.

  Args:
    source: The folder or the zip.
    *suffixes: Of the files that count, in lower case. Hidden ones do not.

  Raises:
    ValueError: If the zip cannot be read.
  """
  with contextlib.ExitStack() as stack:
    if source.is_dir():
      paths = [path for path in source.rglob('*') if path.is_file()]
      names = [path.relative_to(source).as_posix() for path in paths]
      read_file = lambda name: (source / name).read_bytes()
    else:
      try:
        archive = stack.enter_context(archives.Zip(source, MOST))
      # Damaged bytes surface as a dozen types of exceptions.
      except Exception as error:
        raise ValueError(
          f'Expected a zip of images, got {source}, which cannot be read '
          f'({error!r}); download it again.'
        ) from error
      names = archive.namelist()
      read_file = archive.read

    def read(name):
      try:
        return read_file(name)
      except Exception:  # Of a damaged zip, or of permissions.
        return b''

    yield Files(
      sorted(
        name
        for name in names
        if name.lower().endswith(suffixes)
        and not any(
          part.startswith(('.', '__MACOSX')) for part in name.split('/')
        )
      ),
      read,
    )


def read_images(
  files: Files, names: Sequence[str], chunk: int = 256
) -> Iterator[tuple[str, bytes | None]]:
  """Reads images in order; None stands for one that cannot be decoded.

  Each is decoded once for that, with all cores.

  Args:
    files: The files.
    names: Those to read.
    chunk: How many are held in memory at once.
  """
  _pillow()
  with _threads() as pool:
    for start in range(0, len(names), chunk):
      part = names[start : start + chunk]
      contents = [files.read(name) for name in part]
      good = pool.map(_is_readable, contents)
      for name, content, is_good in zip(part, contents, good, strict=True):
        yield name, content if is_good else None


def _is_readable(data: bytes) -> bool:
  try:
    with _pillow().Image.open(io.BytesIO(data)) as image:
      image.load()  # `verify` does not see where a JPEG is cut off.
  except Exception:  # Whatever Pillow makes of damaged bytes.
    return False
  return True


def _threads():
  return concurrent.futures.ThreadPoolExecutor(os.cpu_count())


def _pillow():
  """Imports Pillow where it is needed: it is an extra."""
  try:
    import PIL
    import PIL.Image
    import PIL.ImageOps
  except ImportError as error:
    raise ValueError(
      'Expected the package pillow to decode images, got none; install it '
      "with `pip install 'fmtl_jax[faces]'`."
    ) from error
  return PIL
