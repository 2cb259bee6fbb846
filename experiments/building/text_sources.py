"""Sources of texts: speakers of plays, or users of a folder, as clients.

An example is a window of tokens; its targets are the tokens that follow. Users
of one group share a task: a play, or all users of a folder.
"""

from collections.abc import Sequence

import ml_collections
import numpy as np

from . import sources
from fmtl_jax import metrics as metrics_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import shakespeare
from fmtl_jax.data import texts
from fmtl_jax.metrics import of_tokens


def load_shakespeare(data: ml_collections.ConfigDict) -> sources.Source:
  """Speakers of nine plays; a play is a task.

  Args:
    data: The config's `data`; `kind` is `character` (or '') or `word`.
  """
  return source(data, users(data))


def load_text_folder(data: ml_collections.ConfigDict) -> sources.Source:
  """Users of a folder, a text file or a folder of them each; one task.

  Args:
    data: The config's `data`, as for `load_shakespeare`.
  """
  return source(data, users(data))


def users(data: ml_collections.ConfigDict) -> list[texts.UserText]:
  """The texts of the users that `data.name` has, long enough or not.

  Raises:
    ValueError: If they cannot be read.
  """
  if not data.manual_dir:
    what = (
      f'with {shakespeare.FILE} of {shakespeare.URL}'
      if data.name == 'shakespeare'
      else 'with a text file, or a folder of them, for each user'
    )
    raise ValueError(
      f'Expected data.manual_dir to be the folder {what}, got none; name it.'
    )
  if data.name == 'shakespeare':
    return shakespeare.load(data.manual_dir)
  return texts.read_folder(data.manual_dir)


def vocabulary(
  data: ml_collections.ConfigDict, everyone: Sequence[texts.UserText]
) -> texts.Vocabulary:
  """The vocabulary of all users, also of those that are left out.

  Raises:
    ValueError: If `data.kind` is unknown.
  """
  level = data.kind or texts.CHARACTER
  if level not in texts.LEVELS:
    raise ValueError(
      f'Expected data.kind of {data.name!r} to be one of '
      f'{", ".join(texts.LEVELS)}, got {data.kind!r}.'
    )
  return texts.vocabulary(everyone, level, data.vocabulary)


def source(
  data: ml_collections.ConfigDict, everyone: Sequence[texts.UserText]
) -> sources.Source:
  """Windows of all users that are long enough.

  Args:
    data: The config's `data`.
    everyone: What `users` returned.

  Raises:
    ValueError: If there are none, or a setting is out of range.
  """
  known = vocabulary(data, everyone)
  if not data.stride <= data.window:
    raise ValueError(
      f'Expected data.stride <= data.window = {data.window}, got {data.stride}.'
    )
  chosen = [u for u in everyone if len(u.text) >= data.least_characters]
  encoded = [known.encode(user.text) for user in chosen]
  windows = texts.windows(encoded, data.window, data.stride)
  counts = windows.mask.any(1)  # A window of unknown words teaches nothing.
  windows = texts.Windows(*(x[counts] for x in windows))
  if not len(windows.text):
    most = max(len(user.text) for user in everyone)
    raise ValueError(
      f'Expected users with data.least_characters={data.least_characters} at '
      f'least and a token to predict, got none of {len(everyone)}, of which '
      f'the longest has {most}; use fewer.'
    )
  of_group: dict[str, list[int]] = {}
  for number in np.unique(windows.text).tolist():
    of_group.setdefault(chosen[number].group, []).append(number)
  character = known.level == texts.CHARACTER
  bits = metrics_lib.BITS_PER_CHARACTER if character else metrics_lib.BITS
  more = (bits, *metrics_lib.TOP_ACCURACIES)
  stride = data.stride or data.window
  return sources.Source(
    features=windows.tokens,
    labels={
      of_tokens.TOKENS: windows.targets[:, None],
      of_tokens.MASK: windows.mask[:, None],
    },
    tasks=tuple(
      tasks_lib.tokens(group, known.size, more) for group in of_group
    ),
    strata=np.zeros(len(windows.text), np.int32),
    keys=windows.text,
    runs=windows.text,
    gap=-(-data.window // stride) - 1,
    shared_labels=False,
    task_keys={group: tuple(keys) for group, keys in of_group.items()},
    key_names={
      number: f'{chosen[number].group}/{chosen[number].user}'
      for keys in of_group.values()
      for number in keys
    },
  )
