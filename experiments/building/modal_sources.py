"""Sources of several modalities, and which clients have which."""

import ml_collections
import numpy as np

from . import sources
from fmtl_jax import federation as federation_lib
from fmtl_jax.data import modalities as modalities_lib
from fmtl_jax.data import partitioners
from fmtl_jax.federation import modalities

SETTINGS = (
  'data.modalities',
  'data.client_modalities',
  'data.modality_shares',
  'data.modality_kinds',
  'data.modality_seed',
)


def with_modalities(
  source: sources.Source, data: ml_collections.ConfigDict
) -> sources.Source:
  """The source with features by modality, and without what clients lack.

  Args:
    source: Its features are rows of numbers.
    data: The config's `data`, whose `modalities` are not empty.

  Raises:
    ValueError: If a modality is invalid, or who has what is.
  """
  features = source.features
  if not isinstance(features, np.ndarray) or features.ndim != 2:
    raise ValueError(
      f'Expected rows of numbers for data.modalities, got those of '
      f'{data.name!r}, of the shape {tuple(source.features.shape)}; set '
      'data.modalities=().'
    )
  try:
    found = modalities_lib.of_columns(
      data.modalities, features.shape[1], source.feature_names
    )
    names = [modality.name for modality in found]
    modalities.owners(names, 1)  # Checks them.
    held, present = None, None
    if data.client_modalities:
      keys, held = _held(source, data, names)
      present = held[keys]
    arranged = modalities_lib.arranged(features, found, present)
  except ValueError as error:
    raise ValueError(f'{error} See data.modalities.') from error
  return source._replace(
    features=arranged,
    feature_names=(),
    modalities=sources.Modalities(
      {modality.name: len(modality.columns) for modality in found}, held
    ),
  )


def _held(source, data, names):
  """`[N]` numbers of owners, and `[M, P]`, which modalities they have."""
  if data.partition != 'key' or source.keys is None:
    raise ValueError(
      "Expected data.partition='key' with data.client_modalities, because "
      f'owners of examples have a sensor or not, got {data.partition!r}.'
    )
  _, keys = partitioners.by_key(source.keys)
  kinds = data.client_modalities
  given = data.modality_kinds
  if given and len(given) != len(keys):
    raise ValueError(
      f'Expected data.modality_kinds for each of the {len(keys)} clients, got '
      f'{len(given)}.'
    )
  if given and not all(0 <= kind < len(kinds) for kind in given):
    raise ValueError(
      f'Expected data.modality_kinds below {len(kinds)}, the number of '
      f'data.client_modalities, got {tuple(given)}.'
    )
  shares = data.modality_shares or (1,) * len(kinds)
  if len(shares) != len(kinds):
    raise ValueError(
      f'Expected data.modality_shares for each of the {len(kinds)} '
      f'data.client_modalities, got {tuple(shares)}.'
    )
  of_clients = given or modalities_lib.draw_kinds(
    len(keys), shares, data.modality_seed
  )
  held = modalities_lib.held(names, kinds, np.asarray(of_clients))
  return np.searchsorted(keys, source.keys), held


def owner_index(
  source: sources.Source, client_tasks: np.ndarray
) -> dict[str, np.ndarray]:
  """Who owns the encoders of a source, as of `FederatedDataset.create`.

  Args:
    source: With or without modalities.
    client_tasks: `[M]` or `[M, S]`.
  """
  if source.modalities is None:
    return {}
  sizes, held = source.modalities
  if held is None:
    held = np.ones((len(client_tasks), len(sizes)), bool)
  return modalities.owner_index(list(sizes), held, client_tasks)


def owners(
  source: sources.Source, centralized: bool
) -> tuple[dict[str, federation_lib.Owner], dict[str, int]]:
  """Owners that a source adds, and how many; none without clients."""
  if source.modalities is None or centralized:
    return {}, {}
  return modalities.owners(list(source.modalities.sizes), len(source.tasks))
