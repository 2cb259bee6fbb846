"""Listing: what can be chosen by name, as text: `--list`."""

from collections.abc import Iterable, Iterator, Mapping
import itertools
import textwrap
from typing import Any

from ..building import backbones
from ..building import checks
from ..building import datasets
from ..building import terms
from ..configuration import catalogue
from ..configuration import config as config_lib
from ..configuration import fields
from ..configuration import schema
from fmtl_jax import algorithms

_WIDTH = 80
MODELS: Mapping[str, str] = {
  'mlp': 'Dense layers: model.hidden.',
  'cnn': 'Convolutions and dense layers: model.channels, model.hidden.',
  'multi_modal': 'An encoder for each of data.modalities: model.encoder, '
  'model.fusion, model.hidden.',
  'linear': 'One dense layer: model.intercept.',
  'vertical': 'An encoder for each party of data.vertical.split, and a head: '
  'model.hidden, model.embedding, model.head.',
  'lstm': 'LSTMs on tokens: model.embedding, model.hidden.',
  'gru': 'GRUs on tokens: model.embedding, model.hidden.',
  'transformer': 'Causal attention on tokens: model.hidden (the width of each '
  'block), model.heads.',
}


def text() -> str:
  """All that can be chosen by name: algorithms, data, networks."""
  return '\n'.join(
    [
      'Algorithms: --config.algorithm.name=NAME, or a row of config.cases',
      *_algorithms(),
      '',
      'Data: --config.data.name=NAME',
      *_others(datasets.SOURCES, terms.SOURCES),
      '',
      'Networks: --config.model.name=NAME',
      *itertools.chain.from_iterable(
        _entry(name, [MODELS[name]]) for name in checks.MODELS
      ),
      '',
      'Published networks in front: --config.model.backbone=NAME',
      *_others(backbones.BACKBONES, terms.BACKBONES),
    ]
  )


def _algorithms() -> Iterator[str]:
  """Lines of all algorithms, by family."""
  family = ''
  for name, spec in catalogue.known().items():
    if spec.family != family:
      family = spec.family
      yield from ('', f'{family}:')
    yield from _entry(f'{spec.label} ({name}, {spec.year})', _about(name, spec))


def _about(name: str, spec: algorithms.Spec) -> Iterator[str]:
  """The description of an algorithm, in paragraphs."""
  yield spec.title
  for setting, rule in spec.settings.items():
    field = schema.own_field(name, setting)
    default = config_lib.shown(spec.defaults[setting])
    yield f'{field}={default}, {rule.rule.removeprefix("to be ")}: {rule.help}'
  if spec.depths:
    named = ', '.join(f'algorithm.{depth}' for depth in spec.depths)
    yield f'layers by {named}'
  if spec.deviations:
    yield f'unlike its paper: {spec.deviations}'
  for case in spec.degenerate:
    yield fields.translated(
      case.reason(spec.defaults), fields.of_algorithm(name)
    )


def _others(
  names: Mapping[str, Any], known: Mapping[str, terms.About]
) -> Iterator[str]:
  """Lines of data sets or networks of third parties."""
  for name, entry in names.items():
    about = known.get(name)
    if about is None:  # A user's own.
      doc = (getattr(entry, '__doc__', None) or 'Of your own.').strip()
      yield from _entry(name, [doc.splitlines()[0]])
      continue
    paragraphs = [
      about.title,
      f'terms: {about.terms}',
      f'files: {about.files}',
      about.needs,
    ]
    yield from _entry(name, filter(None, paragraphs))


def _entry(name: str, paragraphs: Iterable[str]) -> list[str]:
  """A name, and indented paragraphs below it."""
  lines = [f'  {name}']
  for paragraph in paragraphs:
    lines += textwrap.wrap(
      paragraph,
      _WIDTH,
      initial_indent=' ' * 4,
      subsequent_indent=' ' * 6,
      break_long_words=False,
      break_on_hyphens=False,
    )
  return lines
