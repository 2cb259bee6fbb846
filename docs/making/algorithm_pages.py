"""Pages of algorithms, made of what their files say about themselves.

There is one for every entry of `algorithms.ALGORITHMS`: an algorithm has its
page as soon as it has its file.
"""

from collections.abc import Mapping, Sequence
import inspect
import pathlib
import re
import sys
from typing import Any

import jax
import numpy as np

from docs.making import law_pages
from docs.making import markdown
from fmtl_jax import algorithms
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import testing
from experiments.configuration import config as config_lib
from experiments.configuration import schema
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The network by which a page shows layer types and messages.
_WIDTHS = (8, 8, 8)
_CLIENTS, _TASKS = 6, 3
# What depths count.
_WORDS = {
  'common_layers': 'common',
  'personal_layers': 'personal',
  'shared_layers': 'shared by all clusters',
  'task_layers': 'task-specific',
}
_EVERY = ('conformance_test', 'algorithms_test', 'specs_test')


def names() -> list[str]:
  """The pages that there have to be."""
  return [f'algorithms/{name}' for name in algorithms.ALGORITHMS]


def pages(found: Sequence[law_pages.Law]) -> dict[str, str]:
  """A page for each algorithm, and the list of them.

  Args:
    found: The laws.
  """
  made = {
    f'algorithms/{name}': _page(name, spec, found)
    for name, spec in algorithms.ALGORITHMS.items()
  }
  made['algorithms/index'] = _index()
  return made


def _index() -> str:
  """The table of all algorithms, family by family."""
  parts = [
    'Every algorithm is a file in `fmtl_jax/algorithms`, and its page is made '
    'from that file. `python -m experiments.main --list` shows them in a '
    'terminal; `--cases=NAME,NAME` or `--config.algorithm.name=NAME` runs '
    'them, and [`experiments.compare`](../commands.md) puts them side by side.'
  ]
  for family in dict.fromkeys(s.family for s in algorithms.ALGORITHMS.values()):
    rows = [
      (
        f'[{spec.label}]({name}.md)',
        str(spec.year),
        markdown.sentence(spec.title.partition(': ')[2]),
      )
      for name, spec in algorithms.ALGORITHMS.items()
      if spec.family == family
    ]
    parts += [f'## {family}', markdown.table(('', 'year', 'idea'), rows)]
  listed = '\n'.join(algorithms.ALGORITHMS)
  parts.append(f'```{{toctree}}\n:hidden:\n\n{listed}\n```')
  return markdown.page('Algorithms', parts)


def _page(
  name: str, spec: algorithms.Spec, found: Sequence[law_pages.Law]
) -> str:
  doc = inspect.cleandoc(spec.doc or spec.label)
  title, _, rest = doc.partition('\n')
  paragraphs = re.split(r'\n\s*\n', rest)
  what = []
  for paragraph in paragraphs:
    if paragraph.startswith('References:'):
      break
    if not paragraph.startswith('Deviations:'):
      what.append(paragraph)
  path = _file(name, spec)
  parts = [
    f'*{markdown.sentence(title.partition(": ")[2] or title)}*',
    f'{spec.family}, {spec.year}. In configs `algorithm.name={name}`; in '
    f'Python `algorithms.build({name!r}, federation, local, settings)`; '
    f'[the file](#{_code_label(name)}).',
    '## Method' if any(p.strip() for p in what) else '',
    markdown.prose('\n\n'.join(p.strip('\n') for p in what)),
    '## Settings',
    _settings(name, spec),
    '## Layer types and messages',
    _messages(spec),
    '## Unlike its paper',
    markdown.sentence(spec.deviations)
    if spec.deviations
    else 'No deviation is known.',
    '## Limits and laws',
    _laws(name, spec, path.stem, found),
    _references(paragraphs),
    f'({_code_label(name)})=\n## The file',
    f'`{path.relative_to(ROOT)}`, which ends in its `SPEC`:',
    '```{code-block} python\n\n' + path.read_text(encoding='utf-8') + '```',
  ]
  return markdown.page(spec.label, parts)


def _code_label(name: str) -> str:
  return f'file-of-{name.replace("_", "-")}'


def _file(name: str, spec: algorithms.Spec) -> pathlib.Path:
  """The file that ends in the spec."""
  for module, loaded in sorted(sys.modules.items()):
    if module.startswith('fmtl_jax.algorithms.'):
      own = [getattr(loaded, 'SPEC', None), *getattr(loaded, 'SPECS', ())]
      if any(entry is spec for entry in own):
        return pathlib.Path(str(loaded.__file__))
  raise ValueError(
    f'Expected a file in fmtl_jax/algorithms whose SPEC is that of {name!r}, '
    'got none; end its file in `SPEC`.'
  )


def _settings(name: str, spec: algorithms.Spec) -> str:
  """The table of its own settings and depths."""
  rows = []
  for setting, rule in spec.settings.items():
    default = config_lib.shown(spec.defaults[setting])
    words = rule.rule.removeprefix('to be ')
    rows.append(
      (
        f'`{setting}`',
        f'`{default}`',
        'any' if words.endswith('-inf') else markdown.escaped(words),
        markdown.sentence(rule.help),
        f'`{schema.own_field(name, setting)}`',
      )
    )
  for depth, number in spec.default_depths.items():
    rows.append(
      (
        f'`{depth}`',
        f'`{schema.DEPTHS.get(depth, number)}`',
        '>= 0',
        f'How many layers are {_WORDS[depth]}, by its label rules.'
        if depth in _WORDS
        else 'A number of layers, by its label rules.',
        f'`algorithm.{depth}`',
      )
    )
  network = [f'`model.{key}={value}`' for key, value in spec.network.items()]
  rounds = [f'`{key}={value}`' for key, value in spec.rounds.items()]
  needs = [*network, *rounds]
  said = f'It is another algorithm without {", ".join(needs)}.' if needs else ''
  if not rows:
    return f'It has none of its own. {said}'.strip()
  head = ('setting', 'default', 'range', 'what', 'config field')
  return '\n\n'.join(filter(None, [markdown.table(head, rows), said]))


def small_data(spec: algorithms.Spec) -> dataset_lib.FederatedDataset:
  """The data of a small federation."""
  counts = spec.owners(spec.defaults)
  return testing.toy_data(_CLIENTS, _TASKS).with_owners(counts)


def small_federation(
  spec: algorithms.Spec, **network: Any
) -> tuple[federation_lib.Federation, list[str]]:
  """A small federation under its label rules, and the layers' names.

  Args:
    spec: Of the algorithm.
    **network: Settings of its network that the algorithm leaves open.
  """
  counts = spec.owners(spec.defaults)
  data = small_data(spec)
  width = max(task.num_outputs for task in data.tasks)
  if spec.network.get('name', '') == 'linear':
    network = {}
  network = {**network, **spec.network}
  network.pop('adapters.targets', None)
  if network.pop('name', '') == 'linear':
    model = models.linear((3,), width, **network)
  else:
    model = models.mlp((3,), _WIDTHS, width, **network)
  layers = [layer for layer, _ in model.stages]
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  layers = [layer for layer in layers if jax.tree.leaves(shapes.get(layer))]
  leaf = {key: spec.defaults[key] for key in spec.leaf_settings}
  rules: layer_types.Rules = [
    *layer_types.matching(spec.leaf_rules(**leaf), layer_types.paths(shapes)),
    *spec.label_rules(layers),
  ]
  wrapped, rules = spec.wraps(model, rules, data.tasks, spec.defaults)
  federation = federation_lib.Federation.create(
    wrapped,
    rules,
    data,
    owners=dict(federation_lib.OWNERS)
    | {key: federation_lib.Owner(key) for key in counts},
    num_owners=counts,
  )
  return federation, layers


def _messages(spec: algorithms.Spec) -> str:
  """Layer types of a small network, and what a client moves of each."""
  federation, layers = small_federation(spec)
  labels = {
    layer: dict.fromkeys(jax.tree.leaves(federation.labels[layer]))
    for layer in layers
  }
  shown = ', '.join(
    f'`{layer}` {" and ".join(types)}' for layer, types in labels.items()
  )
  if spec.centralized:
    return (
      f'On a network of four layers its default label rules say: {shown}. '
      f'It is centralized and moves no model: it trains on the union of all '
      f'examples, {spec.centralized}.'
    )
  messages = spec.build(federation).messages()
  up, down = (_values(federation, m) for m in (messages.up, messages.down))
  of_type = _values(federation, (_one_copy(federation),))
  rows = []
  for label in dict.fromkeys(t for types in labels.values() for t in types):
    size = of_type.get(label, 0)
    copies = (
      federation.num_owners.get(federation.owners[label].index or '', 1)
      if label in messages.all_copies
      else 1
    )
    rows.append(
      (
        label,
        f'{size:,}',
        _times(up.get(label, 0), size),
        _times(down.get(label, 0) * copies, size),
      )
    )
  return (
    f'On a network of four layers its default label rules say: {shown}. What '
    'a client with one task sends and is sent in a round, in multiples of the '
    'values that it has of the layer type:\n\n'
    + markdown.table(('layer type', 'values', 'sends', 'is sent'), rows)
  )


def _one_copy(federation: federation_lib.Federation) -> Any:
  """The shapes of a client's whole view."""
  return jax.tree.map(
    lambda leaf, label: (
      None
      if label == layer_types.PRETRAINED
      else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    ),
    federation.shapes,
    federation.labels,
  )


def _values(
  federation: federation_lib.Federation, trees: Sequence[Any]
) -> Mapping[str, int]:
  """How many values trees have, by layer type."""
  found: dict[str, int] = {}

  def add(label, part):
    for leaf in jax.tree.leaves(part):
      found[label] = found.get(label, 0) + int(np.prod(leaf.shape))

  for tree in trees:
    jax.tree.map(add, federation.layer_types, tree)
  return found


def _times(moved: int, size: int) -> str:
  if not moved:
    return 'nothing'
  return f'{moved / size:.3g} ×' if size else f'{moved:,} values'


def _laws(
  name: str,
  spec: algorithms.Spec,
  stem: str,
  found: Sequence[law_pages.Law],
) -> str:
  """Degenerate cases, where it rests, and the tests that hold it."""
  parts = []
  limits = [case.reason(spec.defaults) for case in spec.degenerate]
  if limits:
    lines = [f'- It {markdown.sentence(limit)}.' for limit in limits]
    parts.append('\n'.join(lines))
  rest = law_pages.fixed_point(name, stem)
  if rest:
    parts.append(
      f'Where it comes to rest: {markdown.sentence(rest)} '
      '(`fixed_points_test.ListTest`).'
    )
  own = [law for law in found if law.file == f'{stem}_test']
  if own:
    rows = [
      (f'`{law.label}`', markdown.escaped('; '.join(law.tests))) for law in own
    ]
    parts.append(markdown.table(('held by', 'what it tests'), rows))
  others = [law for law in found if name in law.strings and law not in own]
  every = [law for law in found if law.file in _EVERY and law not in others]
  for words, laws in (
    ('It is named in', others),
    ('As every algorithm it is held by', every),
  ):
    if laws:
      parts.append(f'{words} {", ".join(f"`{law.label}`" for law in laws)}.')
  return '\n\n'.join(parts)


def _references(paragraphs: Sequence[str]) -> str:
  """The references, one to a line."""
  for i, paragraph in enumerate(paragraphs):
    if paragraph.startswith('References:'):
      lines = paragraph.splitlines()[1:]
      entries: list[str] = []
      for line in lines:
        if entries and not entries[-1].endswith('.'):
          entries[-1] += f' {line.strip()}'
        else:
          entries.append(line.strip())
      notes = [' '.join(p.split()) for p in paragraphs[i + 1 :]]
      return '\n\n'.join(
        [
          '## References',
          '\n'.join(f'- {markdown.escaped(entry)}' for entry in entries),
          *map(markdown.escaped, notes),
        ]
      )
  return ''
