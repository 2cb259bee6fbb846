"""Pages of what can be set and chosen: config fields, data, networks."""

import ast
from collections.abc import Iterator, Mapping
import inspect
import textwrap
from typing import Any

from docs.making import markdown
from experiments.building import backbones
from experiments.building import checks
from experiments.building import datasets
from experiments.building import terms
from experiments.configuration import schema
from experiments.console import listing


def pages() -> dict[str, str]:
  """The page of all config fields, and the parts that other pages include."""
  return {
    'fields': _fields(),
    'made/sources': _third_parties(datasets.SOURCES, terms.SOURCES),
    'made/networks': _networks(),
  }


def _fields() -> str:
  """Every field, as the schema has them."""
  parts = [
    'Every field of a config with its default, as '
    '`experiments/configuration/schema.py` has them. On the command line it is '
    '`--config.FIELD=VALUE`; a config file in `configs/` changes what it '
    'needs. The settings of each algorithm are on its page; `--dry_run` shows '
    'what a command would run.'
  ]
  for title, code in _sections():
    parts += [f'## {title}', '```{code-block} python\n\n' + code + '\n```']
  return markdown.page('Config fields', parts)


def _sections() -> Iterator[tuple[str, str]]:
  """The functions of the schema: what each is about, and its lines."""
  source = inspect.getsource(schema)
  lines = source.splitlines()
  for node in ast.parse(source).body:
    if isinstance(node, ast.FunctionDef) and node.name.startswith('_add_'):
      first = node.body[0]
      about = (ast.get_docstring(node) or node.name).splitlines()[0]
      body = lines[first.end_lineno or first.lineno : node.end_lineno]
      code = textwrap.dedent('\n'.join(body)).strip('\n')
      yield about.rstrip('.'), code


def _third_parties(names: Mapping[str, Any], known: Mapping[str, Any]) -> str:
  """The table of data sets or networks of third parties."""
  rows = []
  for name in names:
    about = known[name]
    rows.append(
      (
        f'`{name}`',
        *map(markdown.sentence, (about.title, about.terms, about.files)),
        markdown.sentence(about.needs),
      )
    )
  head = ('name', 'what', 'terms', 'files', 'needs')
  return markdown.table(head, rows) + '\n'


def _networks() -> str:
  """The networks by name, and the published ones in front of them."""
  own = [
    (f'`{name}`', markdown.sentence(listing.MODELS[name]))
    for name in checks.MODELS
  ]
  published = _third_parties(backbones.BACKBONES, terms.BACKBONES)
  return (
    f'{markdown.table(("`model.name`", "what"), own)}\n\n'
    'Published networks in front, by `model.backbone`, run once on every '
    f'example:\n\n{published}'
  )
