"""Farms: what grows on a patch, and what eats it, at sites that differ.

Source: synthetic, drawn by fmtl_jax/data/farms.py: pictures of 16 x 16 pixels
from above, of four crops and three states of pests. A site is a client: it has
soil and light of its own, and some crops and pests more than others. Crop and
pest are tasks, which all sites have.

Command: python -m experiments.main --config=configs/farms.py
Sites that took no part, which adapt with a few patches of their own:
  python -m experiments.unseen --config=configs/farms.py:new_sites
Variants: skewed, new_sites, smoke; they combine. With skewed, most sites grow
one crop or two.
"""

import ml_collections

from fmtl_jax.experiments import config as config_lib


def skewed(config):
  """Few crops and pests at a site."""
  config.data.synthetic.alpha = 0.2
  config.report.title = 'Synthetic farms, skewed: test accuracy (%)'


def new_sites(config):
  """Two of the sites, others for each seed, take no part."""
  config.cases = ('isolated', 'multi_task_fl')
  config.unseen.clients = 2
  config.unseen.examples = (0, 5, 10, 20, 40)
  config.unseen.epochs = 10
  config.unseen.learning_rate = 0.05
  config.overrides.isolated = ml_collections.ConfigDict(
    {'run': {'rounds': 1}, 'unseen': {'start': 'initial', 'epochs': 50}}
  )
  config.report.baseline = ''
  config.report.title = 'Synthetic farms, new sites: test accuracy (%)'


def smoke(config):
  """A few rounds of two rows, of a small network."""
  config.cases = ('isolated', 'multi_task_fl')
  config.data.synthetic.owners = 3
  config.data.synthetic.examples = 30
  config.model.channels = (2,)
  config.model.hidden = ()
  config.unseen.examples = (0, 5)
  config.run.rounds = 2
  config.run.seeds = 2
  config.run.evaluate_every = 2
  config.report.figure_formats = ()


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'farms'
  config.cases = ('majority', 'isolated', 'separate_fl', 'multi_task_fl')
  config.data.name = 'farms'
  config.data.synthetic.owners = 10
  config.data.synthetic.examples = 100
  config.data.partition = 'key'
  config.data.protocol = 'random'
  config.data.test_fraction = 0.3
  config.data.validation_fraction = 0.0
  config.data.tasks_per_client = 2
  config.cohort.slots = 'all'
  config.model.name = 'cnn'
  config.model.channels = (8, 16)
  config.model.hidden = (32,)
  config.client.learning_rate = 0.1
  config.client.momentum = 0.9
  config.client.batch_size = 16
  config.client.local_epochs = 2
  config.run.rounds = 20
  config.run.seeds = 3
  config.run.evaluate_every = 10
  config.execution.compile_effort = 'low'
  config.report.view = 'client'
  config.report.more_metrics = ('balanced_accuracy',)
  config.report.baseline = 'isolated'
  config.report.curve_case = ''
  config.report.labels = {'isolated': 'Local'}
  config.report.title = 'Synthetic farms, 10 sites: test accuracy (%)'
  return config_lib.apply_variants(
    config,
    variants,
    {'skewed': skewed, 'new_sites': new_sites, 'smoke': smoke},
  )
