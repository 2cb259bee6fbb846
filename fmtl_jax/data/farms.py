"""Farms: synthetic patches of fields, with a crop and perhaps a pest.

A patch is a small picture from above. A crop is how it is planted: leaves stand
in rows with a distance and a direction of its own. A pest is what it does to
the leaves: aphids are many dark dots, caterpillars eat holes through which the
soil shows. A site has soil of a colour, light of a strength and tint, and grows
some crops and has some pests more than others.

Every number is drawn, and no picture is of a real field.
"""

from typing import NamedTuple

import numpy as np

CROPS = ('maize', 'wheat', 'vines', 'cabbage')
PESTS = ('none', 'aphids', 'caterpillars')
SIZE = 16
# Rows of each crop: how many cross a patch, and their direction in degrees.
_ROWS = {
  'maize': (3.0, 0.0),
  'wheat': (5.0, 45.0),
  'vines': (2.0, 90.0),
  'cabbage': (4.0, 135.0),
}


class Farms(NamedTuple):
  """Patches of several sites.

  Attributes:
    pictures: `[N, SIZE, SIZE, 3]` float32, red, green and blue from 0 to 1.
    labels: `[N, 2]` float32: the numbers of the crop and of the pest.
    keys: `[N]` int64, the site of each, 0 to S - 1.
    crop_shares: `[S, 4]` float64, with which probability a site has each crop.
    pest_shares: `[S, 3]` float64, the same of pests.
  """

  pictures: np.ndarray
  labels: np.ndarray
  keys: np.ndarray
  crop_shares: np.ndarray
  pest_shares: np.ndarray


def generate(
  num_sites: int, per_site: int, seed: int, alpha: float = 1.0
) -> Farms:
  """Draws patches of sites; the same ones for the same arguments.

  Args:
    num_sites: S.
    per_site: Patches of each.
    seed: Of all that is drawn.
    alpha: Concentration of the sites' shares of crops and pests (a Dirichlet
      distribution): small for sites with few of them.

  Raises:
    ValueError: If there is no site or patch, or no concentration.
  """
  if min(num_sites, per_site) < 1:
    raise ValueError(
      'Expected `num_sites` and `per_site` to be at least 1, got '
      f'{num_sites} and {per_site}.'
    )
  if not 0 < alpha < np.inf:
    raise ValueError(f'Expected `alpha` above 0, got {alpha}.')
  rng = np.random.default_rng(seed)
  crop_shares = rng.dirichlet([alpha] * len(CROPS), num_sites)
  pest_shares = rng.dirichlet([alpha] * len(PESTS), num_sites)
  pictures, labels = [], []
  for crops, pests in zip(crop_shares, pest_shares, strict=True):
    crop = rng.choice(len(CROPS), per_site, p=crops)
    pest = rng.choice(len(PESTS), per_site, p=pests)
    pictures.append(_of_site(rng, crop, pest))
    labels.append(np.stack([crop, pest], 1))
  return Farms(
    pictures=np.concatenate(pictures),
    labels=np.concatenate(labels).astype(np.float32),
    keys=np.repeat(np.arange(num_sites), per_site),
    crop_shares=crop_shares,
    pest_shares=pest_shares,
  )


def _of_site(rng, crop, pest):
  """`[N, SIZE, SIZE, 3]` patches with crops and pests `[N]`, of one site."""
  soil = np.array([0.45, 0.3, 0.18]) * rng.uniform(0.6, 1.5)
  light = rng.uniform(0.5, 1.3) * rng.uniform(0.85, 1.15, 3)
  leaf = np.array([0.15, 0.55, 0.12])
  count = len(crop)
  leaves = _rows(rng, crop)
  leaves = np.where(
    (pest == PESTS.index('caterpillars'))[:, None, None],
    leaves * ~_spots(rng, count, 4, 3),
    leaves,
  )[..., None]
  shades = rng.normal(1.0, 0.12, (count, 1, 1, 1))
  pictures = leaves * leaf * shades + (1 - leaves) * soil
  dots = (
    _spots(rng, count, 12, 1) & (pest == PESTS.index('aphids'))[:, None, None]
  )
  pictures = np.where(dots[..., None], 0.02, pictures) * light
  pictures = pictures + rng.normal(0, 0.03, pictures.shape)
  return np.clip(pictures, 0, 1).astype(np.float32)


def _rows(rng, crop):
  """`[N, SIZE, SIZE]`, how much of each pixel is leaf: planted in rows."""
  rows = np.array([_ROWS[name] for name in CROPS])[crop]  # [N, 2]
  count = len(crop)
  number = rows[:, 0] * rng.normal(1, 0.05, count)
  angle = np.deg2rad(rows[:, 1] + rng.normal(0, 6, count))
  y, x = np.mgrid[:SIZE, :SIZE] / SIZE
  across = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
  phase = rng.random(count)
  wave = np.sin(
    2 * np.pi * (number[:, None, None] * across + phase[:, None, None])
  )
  return 1 / (1 + np.exp(-4 * (wave + 0.3)))


def _spots(rng, count, number, size):
  """`[count, SIZE, SIZE]` bool, where squares are; some of them overlap."""
  spots = np.zeros((count, SIZE, SIZE), bool)
  corners = rng.integers(0, SIZE - size + 1, (count, number, 2))
  picture = np.arange(count)[:, None]
  for down in range(size):
    for right in range(size):
      spots[picture, corners[..., 0] + down, corners[..., 1] + right] = True
  return spots
