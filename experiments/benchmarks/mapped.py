"""Measures seeds as a mapped axis against the same runs one by one.

python -m experiments.benchmarks.mapped --config=configs/har.py \
    --cases=multi_task_fl --config.data.manual_dir=DIR --output=mapped.json

Back to back: all seeds mapped in one process, each seed in a cold process of
its own, and a loop over seeds in one process that compiles once. None finds
what another has compiled. Every form does the same rounds and evaluations; wall
times are of whole processes.
"""

import os
import subprocess
import sys
import tempfile
import time

from absl import flags

from ..configuration import hints
from ..console import command_line
from ..console import config_files
from ..console import programs
from . import outputs

_CONFIG = config_files.define_config()
_CASES = flags.DEFINE_list('cases', ['multi_task_fl'], 'One case.')
_OUTPUT = command_line.define_path('output', 'A JSON file for the figures.')
_LOOP = flags.DEFINE_bool('loop', False, 'Only the loop (used by itself).')
flags.mark_flag_as_required('config')


def _arguments() -> list[str]:
  """The flags to pass on."""
  dropped = ('--output', '--loop')
  return [arg for arg in sys.argv[1:] if not arg.startswith(dropped)]


def _wall_seconds(module: str, *arguments: str) -> float:
  """Runs a module as a process of its own and returns its wall time."""
  command = [sys.executable, '-m', module, *_arguments(), *arguments]
  start = time.perf_counter()
  environment = os.environ | {'JAX_ENABLE_COMPILATION_CACHE': 'false'}
  subprocess.run(
    command, check=True, stdout=subprocess.DEVNULL, env=environment
  )
  return time.perf_counter() - start


def warm_loop() -> None:
  """Runs the seeds one after the other with one compiled program."""
  from ..building import backbones
  from ..configuration import cases
  from ..studies import train
  from fmtl_jax.running import program as program_lib

  config = _CONFIG.value
  overrides = command_line.override_values()
  source = backbones.load_source(config)
  program = None
  first = config.run.first_seed
  for seed in range(first, first + config.run.seeds):
    config.run.first_seed, seeds = seed, config.run.seeds
    config.run.seeds = 1
    name = cases.names(config, _CASES.value)[0]
    _, case = train.build_case(name, config, overrides, source)
    config.run.seeds = seeds
    if case is None:
      raise ValueError('The majority class has nothing to run.')
    if program is None:
      program = program_lib.Program(case, config.run.evaluate_every)
    program.set_runs(case.runs)
    state, done = program.init(), 0
    while True:
      for split in program_lib.splits_of(case.runs.test):
        program.evaluate(state, split)
      steps = min(config.run.evaluate_every, config.run.rounds - done)
      if not steps:
        break
      state, _ = program.run_rounds(state, steps)
      done += steps


def main() -> int:
  """Runs what the flags say."""
  if _LOOP.value:
    warm_loop()
    return 0
  config = _CONFIG.value
  with tempfile.TemporaryDirectory() as folder:
    program = hints.module('main')
    mapped = _wall_seconds(program, f'--workdir={folder}/mapped')
    loop = _wall_seconds(f'{__package__}.mapped', '--loop')
    cold = sum(
      _wall_seconds(
        program,
        f'--workdir={folder}/{seed}',
        '--config.run.seeds=1',
        f'--config.run.first_seed={config.run.first_seed + seed}',
      )
      for seed in range(config.run.seeds)
    )
  figures = {
    'case': _CASES.value[0],
    'seeds': config.run.seeds,
    'rounds': config.run.rounds,
    'mapped_seconds': mapped,
    'warm_loop_seconds': loop,
    'cold_processes_seconds': cold,
    'mapped_to_warm_loop': mapped / loop,
    'mapped_to_cold_processes': mapped / cold,
  }
  outputs.show(figures, _OUTPUT.value)
  return 0


if __name__ == '__main__':
  programs.run(main)
