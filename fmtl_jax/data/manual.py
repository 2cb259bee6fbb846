"""Manual downloads: one folder for each, or one for all that has theirs."""

import os
import pathlib


def folder_of(
  manual_dir: str | os.PathLike[str], *patterns: str
) -> pathlib.Path:
  """The folder with a download: `manual_dir`, or a folder in it.

  Args:
    manual_dir: Of one data set, or with a folder for each of several.
    *patterns: Of names that tell the download, such as `*UTK*.zip`.

  Returns:
    `manual_dir` if it has such a name, or if no folder in it has.

  Raises:
    ValueError: If several folders in it have one.
  """
  folder = pathlib.Path(manual_dir).expanduser()
  has = lambda place: any(
    not path.name.startswith('.')
    for pattern in patterns
    for path in place.glob(pattern)
  )
  if not folder.is_dir() or has(folder):
    return folder
  found = [path for path in sorted(folder.iterdir()) if path.is_dir()]
  found = [path for path in found if has(path)]
  if len(found) > 1:
    raise ValueError(
      f'Expected one folder in manual_dir {folder} with {" or ".join(patterns)}'
      f', got {", ".join(path.name for path in found)}; give one of them.'
    )
  return found[0] if found else folder
