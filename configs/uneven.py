"""Uneven devices: some are ten times as fast as others, some hold less.

Thirty people are thirty clients with a task each, as in configs/har.py, on a
simulated clock: the logarithm of speeds has a deviation of 0.58, so that those
of 95 % of clients lie within a factor of ten, and messages take little time.
Multi-task FL waits for everyone in each round; FedBuff has the same layers of
tasks, and its server steps at every fifth update. `global` has one model of all
people instead. `devices` has clients that hold all, a half or a quarter of the
widths, drawn with equal chances.

Command: python -m experiments.main --config=configs/uneven.py \
    --config.data.manual_dir=DIR
where DIR holds the zip of UCI data set 240; without it the data are downloaded.
time.png has accuracy against simulated time, results.md the time to 98 %.
Expected, five seeds: multi-task FL reaches 98 % after 18.0 simulated seconds,
FedBuff after 5.9.
Variants: global, devices, smoke; they combine.
"""

import ml_collections

from fmtl_jax.configs import har
from fmtl_jax.experiments import config as config_lib

_OVERRIDES = {
  'multi_task_fl': {
    'client': {'local_epochs': 2},
    'server': {'common': {'learning_rate': 2.0}},
    'run': {'evaluate_every': 1},
  },
  'fedbuff': {
    'client': {'local_epochs': 2},
    'layer_types': (('dense_[01]/.*', 'common'), ('.*', 'task')),
    # As long, by the clock, as 40 rounds of thirty clients.
    'run': {'rounds': 600, 'evaluate_every': 5},
  },
}


def one_model(config):
  """One model of all people, with and without waiting."""
  config.cases = ('fedavg', 'fedbuff')
  config.overrides = ml_collections.ConfigDict(
    {'fedbuff': {'run': {'rounds': 360, 'evaluate_every': 20}}}
  )


def devices(config):
  """Three classes of devices, and what all would do if they were alike."""
  config.cases = ('fedavg', 'heterofl')
  config.client.learning_rate = 0.02  # Small networks diverge at 0.05.
  config.overrides = ml_collections.ConfigDict()


def smoke(config):
  """A few rounds in seconds."""
  config.model.hidden = (16, 8)
  config.run.rounds = 4
  config.run.seeds = 2
  config.run.evaluate_every = 2
  if 'fedbuff' in config.overrides:
    config.overrides.fedbuff.run = {'rounds': 4, 'evaluate_every': 2}
  config.algorithm.fedbuff.buffer = 2
  config.execution.compile_effort = 'low'


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'uneven'
  config.cases = ('multi_task_fl', 'fedbuff')
  har.people(config)
  config.client.learning_rate = 0.05
  config.client.local_epochs = 1
  config.run.rounds = 40
  config.run.seeds = 5
  config.run.evaluate_every = 5
  config.participation.clock = True
  config.participation.speed_spread = 0.58
  config.participation.bytes_per_second = 1e7
  config.algorithm.fedbuff.buffer = 5
  config.overrides = ml_collections.ConfigDict(_OVERRIDES)
  config.report.title = 'UCI HAR, uneven devices: test accuracy (%)'
  config.report.view = 'client'
  config.report.baseline = ''
  config.report.curve_case = ''
  config.report.targets = (97.0, 98.0, 99.0)
  return config_lib.apply_variants(
    config,
    variants,
    {'global': one_model, 'devices': devices, 'smoke': smoke},
  )
