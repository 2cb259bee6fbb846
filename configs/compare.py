"""Algorithms side by side: the same splits, seeds and search for all of them.

Five binary tasks on scikit-learn's digits as in configs/digits.py, or human
activity as in configs/har.py. Every algorithm gets the same learning rates on
validation data of other seeds, and its best one on those of the table.

Command: python -m experiments.compare --config=configs/compare.py
Human activity: python -m experiments.compare --config=configs/compare.py:har \
    --config.data.manual_dir=DIR
Variants: har, smoke; they combine.
Expected on digits (mean over clients' examples): Isolated 85, FedAvg 65,
FedAvg + fine-tuning 87, FedPer 92, Separate FL 96, Multi-task FL 96. FedAvg has
one network for five questions, which cannot tell which one is asked.

All algorithms are in it, in the order of their table. Others: their names in
config.cases, or in --cases; with the same --workdir only what is missing runs.
"""

from fmtl_jax import algorithms
from fmtl_jax.configs import har as har_config
from fmtl_jax.experiments import config as config_lib


def har(config):
  """Human activity: 30 people are 30 tasks, random 75/25 splits."""
  har_config.people(config)
  config.cases = (
    'isolated',
    'fedavg',
    'fedprox',
    'scaffold',
    'fedper',
    'fedrep',
    'fedbabu',
    'fedbn',
    'fedavg_finetune',
    'per_fedavg',
    'reptile',
    'ditto',
    'apfl',
    'mr_mtl',
    'multi_task_fl',
  )
  config.cohort.clients_per_task = 0
  config.run.rounds = 50
  config.run.seeds = 10
  config.run.evaluate_every = 50
  config.compare.learning_rates = (0.02, 0.05, 0.1)
  config.compare.seeds = 2
  config.compare.validation_fraction = 0.15
  # At the larger rates a seed of some algorithms would diverge that the search
  # does not see; long gradients of all of them are cut.
  config.faults.nonfinite = 'clip'
  config.report.title = 'UCI HAR (recomputed features): test accuracy (%)'


def smoke(config):
  """A few rounds of a few algorithms, in seconds."""
  config.cases = ('isolated', 'scaffold')
  config.run.rounds = 4
  config.run.seeds = 2
  config.run.evaluate_every = 2
  config.compare.learning_rates = (0.1, 0.3)
  config.compare.seeds = 1
  config.execution.compile_effort = 'low'
  config.report.figure_formats = ()


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'compare'
  config.cases = tuple(  # Adapters are of a network that learned before.
    name
    for name, spec in algorithms.ALGORITHMS.items()
    if 'adapters.targets' not in spec.network
  )
  for name, spec in algorithms.ALGORITHMS.items():
    for setting, value in spec.network.items():
      config_lib.put_field(config, f'overrides.{name}.model.{setting}', value)
  config.data.test_fraction = 0.2
  config.data.validation_fraction = 0.1
  config.model.hidden = (64, 32)
  config.algorithm.task_layers = 2
  config.client.batch_size = 8
  config.client.local_epochs = 2
  config.cohort.clients_per_task = 5
  config.run.rounds = 60
  config.run.seeds = 5
  config.run.evaluate_every = 20
  # From 0.8 on some algorithms learn with most seeds and diverge with others,
  # which a search on four seeds may not see.
  config.compare.learning_rates = (0.05, 0.1, 0.2, 0.4)
  config.compare.seeds = 4
  config.compare.first_seed = 1000
  config.compare.validation_fraction = 0.2
  config.report.title = 'Digits: test accuracy (%)'
  config.report.figure_formats = ('pdf', 'svg')
  config.report.view = 'client'
  config.report.curve_case = ''
  config.report.baseline = 'isolated'
  return config_lib.apply_variants(
    config, variants, {'har': har, 'smoke': smoke}
  )
