"""The page of what leaves a client, algorithm by algorithm.

Its table is made of rounds on a small network (`rounds.what_leaves`), and of
what building an algorithm with privacy says.
"""

from collections.abc import Sequence

from docs.making import algorithm_pages
from docs.making import markdown
from fmtl_jax import algorithms
from fmtl_jax import privacy
from fmtl_jax import rounds

NAME = 'leaving'
_PRIVATE = privacy.ClientPrivacy(noise_multiplier=1.0)
_WORDS = {
  'client': 'who it is',
  'task': 'its tasks',
  'steps': 'how many steps it made',
  'loss_sum': 'its training loss',
  'count': 'how many examples that was',
  'finite': 'whether its update is finite',
}


def pages() -> dict[str, str]:
  """The page by its name."""
  rows = {name: row(spec) for name, spec in algorithms.ALGORITHMS.items()}
  head = (
    *('', 'updates of', 'running statistics', 'beside the update'),
    *('the server learns', 'is sent beside the parameters', 'with privacy'),
  )
  figures = ', '.join(_WORDS[name] for name in rounds.leaving.FIGURES)
  parts = [
    'What a client sends in a round, by algorithm: counts are values of a '
    'client with one task, on a network of four layers with batch '
    'normalization. The table is made from the compiled rounds themselves '
    '(`fmtl_jax.rounds.what_leaves`), its last column by building each '
    'algorithm with [privacy](privacy.md).',
    markdown.table(head, rows.values()),
    f'Every simulated client also has **figures** for tables and curves: '
    f'{figures}. They are of the simulation, which sees everything; they are '
    'not noised, and no message of a private deployment has to hold them.',
  ]
  refused = [
    (f'[{algorithms.ALGORITHMS[name].label}](algorithms/{name}.md)', reason)
    for name in rows
    if (reason := refusal(algorithms.ALGORITHMS[name]))
  ]
  if refused:
    parts += [
      '## Refused with privacy',
      'What building it says:',
      markdown.table(
        ('', 'sentence'), [(a, markdown.escaped(b)) for a, b in refused]
      ),
    ]
  return {NAME: markdown.page('What leaves a client', parts)}


def row(spec: algorithms.Spec) -> Sequence[str]:
  """The row of an algorithm."""
  label = f'[{spec.label}](algorithms/{spec.name}.md)'
  if spec.centralized:
    nothing = 'all examples: it is centralized'
    return (label, nothing, '', '', '', '', '–')
  federation, _ = algorithm_pages.small_federation(spec, normalization='batch')
  data = algorithm_pages.small_data(spec)
  found = rounds.what_leaves(federation, spec.build(federation), data)
  updates = [
    f'{name} ({size:,})' + (', at the server' if name in found.copies else '')
    for name, size in found.updates.items()
  ]
  comes = [f'{found.comes:,} values'] if found.comes else []
  comes += [f'all copies of {name}' for name in found.all_copies]
  return (
    label,
    '; '.join(updates) or 'nothing',
    f'{found.statistics:,}' if found.statistics else 'none',
    f'{found.report:,} values' if found.report else 'nothing',
    ', '.join(f'its {name}' for name in found.choices) or 'nothing more',
    '; '.join(comes) or 'nothing',
    _with_privacy(spec, found),
  )


def refusal(spec: algorithms.Spec) -> str:
  """Why an algorithm is refused with privacy, in its own words; '' if not."""
  if spec.centralized:
    return ''
  federation, _ = algorithm_pages.small_federation(spec)
  settings = rounds.RoundSettings(privacy=_PRIVATE)
  try:
    spec.build(federation, settings=settings)
  except ValueError as error:
    return str(error)
  return ''


def _with_privacy(spec: algorithms.Spec, found: rounds.Leaving) -> str:
  if refusal(spec):
    return '[refused](#refused-with-privacy)'
  return 'clipped and noised' if found.updates else 'nothing to protect'
