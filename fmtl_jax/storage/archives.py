"""Zip files from elsewhere: read in place, with limits on sizes.

Nothing is unpacked to disk, so that names in an archive name nothing outside of
it. A few bytes of an archive may unpack to a thousand times as many: sizes are
compared before anything is unpacked, and what is unpacked with its size.
"""

import io
import os
import pathlib
from typing import Any
import zipfile

# Of what files usually unpack to; numbers in a text make it five times larger.
_TIMES = 50
_SMALL = 2**24  # Bytes that any archive may have.


class Zip(zipfile.ZipFile):
  """A zip to read from, whose entries are no larger than they should be."""

  def __init__(
    self,
    source: str | os.PathLike[str] | io.BytesIO,
    most: int,
    times: int = _TIMES,
  ):
    """Opens a zip.

    Args:
      source: A path, or the bytes of one.
      most: The bytes that an entry may have, unpacked.
      times: How many times as large as the zip its entries may be together,
        where they are not small.

    Raises:
      ValueError: If its entries are larger together.
      zipfile.BadZipFile: If it is no zip or is damaged.
    """
    super().__init__(source)
    self._most = most
    if isinstance(source, io.BytesIO):
      size = source.getbuffer().nbytes
    else:
      size = pathlib.Path(source).stat().st_size
    total = sum(entry.file_size for entry in self.infolist())
    if total > max(times * size, _SMALL):
      self.close()
      raise ValueError(
        f'its {size:,} bytes say that they unpack to {total:,}, more than '
        f'{times} times as many'
      )

  def open(self, name: Any, *args: Any, **settings: Any) -> Any:
    """As in `zipfile`.

    Raises:
      ValueError: If the entry is too large. It has the size that the archive
        says, or reading it is an error of `zipfile`.
    """
    entry = name if isinstance(name, zipfile.ZipInfo) else self.getinfo(name)
    if entry.file_size > self._most:
      raise ValueError(
        f'{entry.filename} says that it unpacks to {entry.file_size:,} bytes, '
        f'more than {self._most:,}'
      )
    return super().open(entry, *args, **settings)
