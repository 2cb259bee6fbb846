"""Models of runs: predictors restored from checkpoints of a run."""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_collections

from ..building import backbones
from ..building import build
from ..building import datasets
from ..building import fingerprints
from ..building import networks
from ..building import sources
from ..building import standardizing
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..configuration import hints
from ..configuration import own_code
from ..folders import workdirs
from . import case_runs
from fmtl_jax import predictors
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import adapters
from fmtl_jax.running import program as program_lib
from fmtl_jax.storage import checkpoints
from fmtl_jax.storage import digests


def read_config(
  workdir: pathlib.Path,
) -> tuple[ml_collections.ConfigDict, dict[str, object]]:
  """The config of a run, and the fields that its command line gave."""
  saved = workdirs.read_config(workdir)
  path = workdir / workdirs.CONFIG
  if not saved.get('config') or 'command_line' not in saved['identity']:
    raise ValueError(f'{path} is not that of a run.')
  config = read_experiment(workdir)
  try:
    given = saved['identity']['command_line']
    return config, {field: saved['config'][field] for field in given}
  except Exception as error:
    raise _damaged(path, error) from error


def read_experiment(workdir: pathlib.Path) -> ml_collections.ConfigDict:
  """The config of any study, such as a run or a comparison."""
  saved = workdirs.read_config(workdir)
  path = workdir / workdirs.CONFIG
  config = config_lib.default_config()
  try:
    for field, value in saved['config'].items():
      config_lib.put_field(config, field, value)
  except Exception as error:  # Whatever a file that was changed has in it.
    raise _damaged(path, error) from error
  config_lib.add_own(config)  # Missing code of the user is no damage.
  try:
    config_lib.check_fields(config)
    return config
  except Exception as error:
    raise _damaged(path, error) from error


def _damaged(path, error):
  reason = ' '.join(str(error).split())
  return ValueError(f'{path} is damaged ({reason}); use another --workdir.')


def place_of(
  data: dataset_lib.FederatedDataset, client: int | str | None
) -> int:
  """The index of a client in a data set, by its id.

  Raises:
    ValueError: If there is no such client; the sentence names the ids.
  """
  ids = [str(number) for number in data.partition.client_ids]
  if str(client) not in ids:
    raise ValueError(
      f'Expected --client to be the id of a client, {hints.listed(ids)}, got '
      f'{str(client)!r}.'
    )
  return ids.index(str(client))


def load(
  workdir: pathlib.Path,
  case: str,
  seed: int,
  *,
  task: str = '',
  client: int | str | None = None,
  slot: int = 0,
) -> predictors.Predictor:
  """Loads a model from the last checkpoint of a case.

  Args:
    workdir: The folder of a run.
    case: A row of its table.
    seed: One of its seeds.
    task: The task whose model to load, where all its clients share one.
    client: The id of the client whose model to load, as records and figures
      have it; instead of `task`.
    slot: Which of the client's tasks.

  Returns:
    A model on examples as they come: standardization and the pre-trained
    layers that ran before round 0 are part of it.

  Raises:
    ValueError: If the run, case, seed, task or client does not exist.
  """
  config, command_line = read_config(workdir)
  folder = workdir / 'checkpoints' / case
  seeds = case_runs.seeds_of(config)
  known = [*cases_lib.CASES, *own_code.names_in(config)]
  if case not in known:
    raise ValueError(
      f'Expected --case to be one of {", ".join(known)}, got {case!r}.'
    )
  if seed not in seeds:
    raise ValueError(f'Expected --seed to be one of {seeds}, got {seed}.')
  if not folder.is_dir():
    raise ValueError(
      f'No checkpoint of {case!r} in {workdir}; run that case there first.'
    )
  name = config.data.name
  if name not in datasets.SOURCES and not own_code.is_own(name):
    raise ValueError(
      f'The run in {workdir} is on the data set {config.data.name!r}, which is '
      'none of this package; give the config file that adds it to '
      'datasets.SOURCES as --config.'
    )
  source = backbones.load_source(config)
  # Standardization is that of the training examples.
  fingerprints.check(workdir, source.fingerprint)
  case_config = cases_lib.resolve(case, config, command_line)
  built = build.build(case, case_config, source, seeds)
  if task:  # Before anything is compiled.
    predictors.check_task(built.test_data, task)
  else:
    place = place_of(built.test_data, client)
    predictors.check_client(built.test_data, place, slot)
  network = networks.build_network(
    case_config,
    source,
    built.algorithm,
    bool(cases_lib.get(case).centralized),
  )
  saved = checkpoints.Checkpoints(
    folder,
    about=case_runs.about(built, case_config),
    read_only=True,
    defaults=case_runs.about_before(),
  )
  states, _ = saved.restore(
    program_lib.on_host(case_runs.initial_states(built))
  )
  saved.close()
  for sentence in saved.notes:
    print(f'warning: {sentence}', file=sys.stderr)
  number = seeds.index(seed)
  pick = lambda tree: jax.tree.map(lambda x: x[number], tree)
  data = dataclasses.replace(built.test_data, partition=pick(built.runs.test))
  algorithm = built.make_algorithm(built.test_federation, {})
  state = jax.tree.map(jnp.asarray, pick(states))
  arguments = (built.test_federation, algorithm, state, data)
  if task:
    model = predictors.task_predictor(*arguments, task)
  else:
    model = predictors.client_predictor(*arguments, place, slot)
  return _merged(network, _whole(network, source, model))


def _merged(
  network: networks.Network, model: predictors.Predictor
) -> predictors.Predictor:
  """A model whose adapters are added to their kernels, where it has any.

  A kernel is then of the type of its adapter, and whose that is.

  Args:
    network: Of its case.
    model: On examples as they come.
  """
  pairs = adapters.pairs(model.params)
  merged = network.merged
  if merged is None or not pairs:
    return model
  # Networks of several networks, and what computes in another type, stay.
  if not set(model.params) <= {name for name, _ in merged.stages}:
    return model
  types, owners = dict(model.layer_types), dict(model.owners)
  for path, adapter in pairs:
    for leaf in adapter:
      name = f'{path}{adapters.SUFFIX}/{leaf}'
      layer_type, owner = types.pop(name), owners.pop(name)
      is_own = owner.startswith(('client ', 'task '))
      if owner != predictors.NOBODY and (
        is_own or owners[path] == predictors.NOBODY
      ):
        types[path], owners[path] = layer_type, owner
  return dataclasses.replace(
    model,
    params=adapters.merge_adapters(model.params),
    apply_fn=merged.apply,
    layer_types=types,
    owners=owners,
  )


def _whole(
  network: networks.Network,
  source: sources.Source,
  model: predictors.Predictor,
) -> predictors.Predictor:
  """A model with the layers that ran before round 0 back in front.

  Args:
    network: Of its case.
    source: The data that it was trained on.
    model: On what these layers gave.
  """
  params = {**network.prefix_params, **model.params}
  standardization = standardizing.raw_standardization(
    source, model.standardization
  )
  if source.backbone is not None and standardization is not None:
    mean, scale = standardization
    params[networks.STANDARDIZE] = {'mean': mean, 'scale': scale}
    standardization = None
  in_front = {
    path for path in digests.flat(params) if path not in model.layer_types
  }
  return dataclasses.replace(
    model,
    params=params,
    layer_types={
      **dict.fromkeys(sorted(in_front), layer_types.PRETRAINED),
      **model.layer_types,
    },
    owners={
      **dict.fromkeys(sorted(in_front), predictors.NOBODY),
      **model.owners,
    },
    apply_fn=network.whole(model.apply_fn),
    standardization=standardization,
  )
