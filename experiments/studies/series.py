"""Series: one experiment for several values of a field, or several variants.

Every value is a study in a folder of its own, the same as by a command with
that value, so that a series that was stopped, or gets further values, runs what
is missing. The tables of the values are put side by side.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
import pathlib
import re
from typing import Any, NamedTuple

import ml_collections

from ..building import backbones
from ..building import idle_fields
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..folders import workdirs
from ..reporting import drawing
from ..reporting import study_figures
from . import comparison_plans
from . import comparisons
from . import gathering
from . import train

VARIANTS = 'variants'
# What 0 stands for in a config, where JSON has no number for it.
_WORDS = {'privacy.epsilon': {'inf': '0'}}
_BETWEEN = re.compile(r',(?![^()\[\]]*[)\]])')  # Commas outside of brackets.


class Run(NamedTuple):
  """One value.

  Attributes:
    name: Of its folder and column.
    config: The experiment.
    command_line: Fields that come after the cases' own settings.
    field: That has the value; `variants` for variants of the config's file.
  """

  name: str
  config: ml_collections.ConfigDict
  command_line: Mapping[str, Any]
  field: str


def parse(
  over: str,
  config: ml_collections.ConfigDict,
  command_line: Mapping[str, Any],
  variant: Callable[[str], ml_collections.ConfigDict],
) -> list[Run]:
  """The runs of `--over`.

  Args:
    over: `FIELD=VALUE,VALUE` or `variants=NAME,NAME`. An infinite epsilon is
      `privacy.epsilon=inf`, for which a config has 0.
    config: The experiment.
    command_line: Fields that were given beside.
    variant: The experiment with a further variant, by its name.

  Raises:
    ValueError: If there is no such field, a value does not fit, or is there
      twice.
  """
  field, equals, text = over.partition('=')
  values = [value.strip() for value in _BETWEEN.split(text)]
  if not equals or not all(values):
    raise ValueError(
      f'Expected --over to be FIELD=VALUE,VALUE or variants=A,B, got {over!r}.'
    )
  if field in command_line:
    raise ValueError(
      f'Expected the values of {field} in --over alone, got --config.{field} '
      'as well; leave it out.'
    )
  runs: list[Run] = []
  for value in values:
    name = value if field == VARIANTS else f'{field.split(".")[-1]}={value}'
    if '/' in name or name.startswith('.') or name in [r.name for r in runs]:
      raise ValueError(
        f'Expected the values in --over to differ and to be names of folders, '
        f'got {value!r} in {over!r}.'
      )
    if field == VARIANTS:
      new, given = config_lib.copied(variant(value)), dict(command_line)
    else:
      known = config_lib.flatten(config)
      new = config_lib.copied(config)
      text = _WORDS.get(field, {}).get(value, value)
      given = {**command_line, field: _read(text, known.get(field))}
    for name_of_field, its_value in given.items():
      config_lib.set_field(new, name_of_field, its_value)
    runs.append(Run(name, new, given, field))
  return runs


def _read(text, usual):
  """A value of a config field, of which `usual` is another one."""
  if isinstance(usual, float):
    try:
      return float(text)
    except ValueError:
      return text  # Of a wrong type: the field says so.
  if isinstance(usual, str):
    return text
  try:
    return config_lib.tuples(ast.literal_eval(text))
  except (SyntaxError, ValueError):
    return text


def run(
  runs: Sequence[Run],
  workdir: str | pathlib.Path,
  only: Sequence[str] = (),
  resume: str = 'auto',
  search: bool = False,
) -> gathering.Gathered:
  """Runs what is missing of a series, and writes its tables and figure.

  Args:
    runs: Of `parse`.
    workdir: Has a folder for each of them.
    only: A part of the cases; () is all of them.
    resume: `never`: none of the runs may have begun; `must`: one must have.
    search: Whether each run is a comparison, with a search for learning rates.

  Returns:
    The tables. After each run, `gathered.md`, `.tex`, `.csv` and `series.png`
    have those that are finished.

  Raises:
    ValueError: If anything about the settings of any run is wrong; nothing is
      written then.
    interrupts.Interrupted: After a signal, when the state is saved.
  """
  workdir = pathlib.Path(workdir)
  _check_begun(runs, workdir, resume)
  runs = _acting(runs, only)
  _check(runs, only, search)
  gathered = None
  for number, one in enumerate(runs, start=1):
    print(f'\n{one.name} ({number} of {len(runs)})', flush=True)
    study = comparisons.run if search else train.train_and_evaluate
    study(one.config, workdir / one.name, only, one.command_line)
    gathered = _report(runs[:number], workdir)
  assert gathered is not None
  print('\n' + gathered.to_text())
  return gathered


def _check_begun(runs, workdir, resume):
  """Raises a ValueError if there are runs, or none, against `resume`."""
  if resume not in workdirs.RESUME:
    raise ValueError(
      f'Expected --resume to be one of {", ".join(workdirs.RESUME)}, got '
      f'{resume!r}.'
    )
  begun = [
    r.name for r in runs if (workdir / r.name / workdirs.CONFIG).exists()
  ]
  if resume == 'never' and begun:
    raise ValueError(
      f'Expected no run in {workdir / begun[0]} with --resume=never; use '
      'another --workdir.'
    )
  if resume == 'must' and not begun:
    raise ValueError(
      f'Expected a series in {workdir} with --resume=must, got none.'
    )


def _acting(runs, only):
  """The runs, each without the fields that act in others alone."""
  idle = []
  for one in runs:
    config = cases_lib.with_own(one.config, only)
    configs = [
      (name, cases_lib.resolve(name, config, one.command_line))
      for name in cases_lib.names(config, only)
    ]
    idle.append(set(idle_fields.idle(one.command_line, configs)))
  everywhere = set.intersection(*idle)  # An error.
  return [
    one._replace(
      command_line={
        field: value
        for field, value in one.command_line.items()
        if field not in fields - everywhere
      }
    )
    for one, fields in zip(runs, idle, strict=True)
  ]


def _check(runs, only, search):
  """Checks the settings of all runs, and that their data are there."""
  seen: list[Any] = []
  for one in runs:
    config = cases_lib.with_own(one.config, only)
    if search:
      comparison_plans.plans_of(config, only, one.command_line)
    train.check_cases(cases_lib.names(config, only), config, one.command_line)
    data = config_lib.flatten(config.data)
    if data not in seen:
      backbones.load_source(config, compute=False)
      seen.append(data)


def _report(runs, workdir):
  """Writes the tables of the runs that are finished, and their figure."""
  gathered = gathering.gather([str(workdir / one.name) for one in runs])
  gathered.write(workdir)
  labels = gathered.labels
  if len(runs) > 1 and runs[0].field != VARIANTS:
    study_figures.series(
      drawing.paths(workdir, 'series', runs[0].config.report.figure_formats),
      {labels[case]: pairs for case, pairs in gathered.values().items()},
      [one.name.partition('=')[2] for one in runs],
      field=runs[0].field,
      metric=gathered.runs[0].words,
      title=runs[0].config.report.title,
    )
  return gathered
