"""Domains: clients whose pictures show the same things in another way.

What a picture shows keeps its label; how it is shown changes from one client to
another, as between hospitals with other scanners. `TRANSFORMATIONS` are those
that lose nothing: each can be undone.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

# `[N, H, W, ...]` of a domain, from pictures as they are.
TRANSFORMATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
  'upright': lambda pictures: pictures,
  'rotated': lambda pictures: np.rot90(pictures, axes=(1, 2)),  # To the left.
  'upside_down': lambda pictures: np.rot90(pictures, 2, axes=(1, 2)),
  'mirrored': lambda pictures: pictures[:, :, ::-1],
  'inverted': lambda pictures: 1 - pictures,  # Ink is paper.
}


def deal(
  pictures: np.ndarray, classes: np.ndarray, domains: Sequence[str], seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Deals pictures to clients, each of which shows them as its domain does.

  Clients get as many of every class, up to one, and no picture goes to two.

  Args:
    pictures: `[N, H, W, ...]` floats from 0 to 1, with H = W.
    classes: `[N]`, what the pictures show.
    domains: `[M]` names of `TRANSFORMATIONS`, that of each client.
    seed: Says who gets which pictures.

  Returns:
    `[N, H, W, ...]` pictures as their clients show them, in the given order,
    and `[N]` names of the clients, as in `rotated 3`: the fourth client.

  Raises:
    ValueError: If a domain is unknown, or there are more clients than pictures.
  """
  unknown = [name for name in domains if name not in TRANSFORMATIONS]
  if unknown or not 0 < len(domains) <= len(pictures):
    raise ValueError(
      'Expected `domains` to be the domain of each client, for at most '
      f'{len(pictures)} clients, out of {", ".join(TRANSFORMATIONS)}; got '
      f'{unknown[0] if unknown else len(domains)!r}.'
    )
  rng = np.random.default_rng(seed)
  order = np.lexsort((rng.random(len(classes)), classes))
  client = np.empty(len(classes), np.int64)
  client[order] = np.arange(len(classes)) % len(domains)
  shown = np.empty_like(pictures)
  for number, name in enumerate(domains):
    rows = client == number
    shown[rows] = TRANSFORMATIONS[name](pictures[rows])
  width = len(str(len(domains) - 1))
  names = [f'{name} {number:0{width}}' for number, name in enumerate(domains)]
  return shown, np.array(names)[client]
