"""Generated texts: what a client's model of a run writes."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from ..building import networks
from ..building import sources
from ..building import text_sources
from ..configuration import cases as cases_lib
from ..configuration import hints
from . import models_of_runs
from fmtl_jax.data import texts
from fmtl_jax.models import language
from fmtl_jax.models import sampling

TEXTS = ('shakespeare', 'text_folder')


def generate(
  workdir: pathlib.Path,
  case: str,
  seed: int,
  client: str,
  *,
  prompt: str = '\n',
  length: int = 300,
  temperature: float = 0.8,
  draw: int = 0,
) -> str:
  """Text that follows a prompt, by the model of a client.

  Args:
    workdir: The folder of a run on a data set of texts.
    case: A row of its table.
    seed: One of its seeds.
    client: Its id, or its name as `group/user`.
    prompt: What the model reads first.
    length: Characters or words to write.
    temperature: See `sampling.sample`; 0 takes the likeliest.
    draw: Of the random draws; other ones write other texts.

  Returns:
    The prompt as the model reads it, and what follows.

  Raises:
    ValueError: If the run, case, seed or client does not exist, the run is not
      one on texts, or a number is out of range.
  """
  _check(length, temperature, draw)
  config, command_line = models_of_runs.read_config(workdir)
  if config.data.name not in TEXTS:
    raise ValueError(
      f'Expected the run in {workdir} to be one on texts ({", ".join(TEXTS)}), '
      f'got one on the data set {config.data.name!r}.'
    )
  if config.data.window < 2:
    raise ValueError(
      f'Expected the run in {workdir} to have data.window >= 2, so that a '
      f'model reads what it writes, got {config.data.window}.'
    )
  everyone = text_sources.users(config.data)
  known = text_sources.vocabulary(config.data, everyone)
  source = text_sources.source(config.data, everyone)
  tokens = known.encode(prompt)
  if not len(tokens):
    raise ValueError(
      f'Expected --prompt to have a {known.level} to read, got {prompt!r}.'
    )
  number = _client(source, client)
  model = models_of_runs.load(workdir, case, seed, client=number)
  window = config.data.window
  case_config = cases_lib.resolve(case, config, command_line)
  found = sampling.sample(
    _reader(model, case_config, source, window),
    tokens.tolist(),
    length,
    window=window,
    temperature=temperature,
    key=jax.random.key(draw),
    excluded=(texts.UNKNOWN,),
  )
  return known.decode([*tokens, *found])


def _check(length, temperature, draw):
  for flag, value, least in (
    ('length', length, 1),
    ('temperature', temperature, 0),
    ('draw', draw, 0),
  ):
    if not least <= value < 2**31:
      raise ValueError(
        f'Expected --{flag} >= {least} and below {2**31}, got {value}.'
      )


def _client(source: sources.Source, client: str) -> int:
  """The id of a client by its id or name.

  Raises:
    ValueError: If there is none; the sentence names some.
  """
  names = {name: number for number, name in source.key_names.items()}
  if client in names:
    return names[client]
  if client in map(str, names.values()):
    return int(client)
  shown = [f'{number} ({name})' for name, number in names.items()]
  raise ValueError(
    'Expected --client to be the id or name of a client, '
    f'{hints.listed(shown)}, got {client!r}.'
    f'{hints.nearest(client, list(names))}'
  )


def _reader(model, config, source, window) -> sampling.Reader:
  """Place by place where the model is the network itself.

  That of an algorithm which trains another network, such as a mixture of
  several, reads its window again for each token.
  """
  if config.model.name in language.NAMES:
    make = networks.language_stages(config, source)
    network = networks.build_model(config, source)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    alike = lambda x: jax.tree.map(np.shape, x)
    plain = config.precision.compute == 'float32'
    if plain and alike(shapes) == alike(model.params):
      return sampling.by_steps(
        language.stepper(make), jax.tree.map(jnp.asarray, model.params), window
      )
  return sampling.by_windows(model.outputs, window)
