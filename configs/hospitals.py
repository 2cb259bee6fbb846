"""Hospitals: who has a heart disease, and how severe it is, at four hospitals.

Source: Janosi, Steinbrunn, Pfisterer, Detrano (1988), Heart Disease,
https://archive.ics.uci.edu/dataset/45, CC BY 4.0: 920 patients. Many findings
are missing, of some hospitals all: a feature says so. Hungary tells who is ill,
not how severely: its severities are missing labels.

Command: python -m experiments.main --config=configs/hospitals.py \
    --config.data.manual_dir=DIR
One hospital after the other is left out, and gets the model of the others:
  python -m experiments.unseen --config=configs/hospitals.py:left_out \
      --config.data.manual_dir=DIR
Variants: disease, private, left_out, smoke; they combine.
"""

import ml_collections

from fmtl_jax.experiments import config as config_lib

_CASES = ('majority', 'isolated', 'centralized_joint')


def disease(config):
  """One task alone, which methods of one model for each hospital need."""
  methods = ('fedavg', 'multi_task_fl', 'mr_mtl', 'fedu', 'fedamp')
  config.cases = (*_CASES, *methods)
  config.data.kind = 'disease'
  config.data.tasks_per_client = 1
  config.report.title = 'Heart disease, four hospitals: AUC'


def private(config):
  """Every hospital hides each patient, by DP-SGD with epsilon 3."""
  disease(config)
  config.cases = ('isolated', 'fedavg', 'multi_task_fl', 'mr_mtl')
  config.client.learning_rate = 0.5
  config.privacy.unit = 'example'
  config.privacy.clipping_norm = 1.0
  config.privacy.epsilon = 3.0
  config.privacy.standardization_is_public = True
  config.report.title = 'Heart disease, private patients: AUC'


def left_out(config):
  """Three hospitals train; the fourth adapts with patients of its own."""
  disease(config)
  config.cases = (
    *('isolated', 'fedavg', 'fedavg_finetune', 'fedper'),
    *('multi_task_fl', 'mr_mtl', 'fedu', 'fedamp'),
  )
  config.unseen.owners = ('Cleveland', 'Hungary', 'Long Beach', 'Switzerland')
  config.unseen.examples = (0, 10, 20, 60)
  config.unseen.epochs = 10
  config.run.seeds = 20  # Five turns of all four.
  alone = {'start': 'initial', 'epochs': 50, 'learning_rate': 0.05}
  config.overrides = ml_collections.ConfigDict(
    {
      'isolated': {'run': {'rounds': 1}, 'unseen': alone},
      'fedper': {'algorithm': {'personal_layers': 1}},
    }
  )
  config.report.title = 'A hospital that took no part: AUC'


def smoke(config):
  """A few rounds of two rows."""
  config.cases = ('isolated', 'multi_task_fl')
  config.run.rounds = 2
  config.run.seeds = 2
  config.run.evaluate_every = 2
  config.report.figure_formats = ()


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'hospitals'
  config.cases = (*_CASES, 'separate_fl', 'multi_task_fl')
  config.data.name = 'heart_disease'
  config.data.partition = 'key'
  config.data.protocol = 'random'
  config.data.test_fraction = 0.25
  config.data.validation_fraction = 0.0
  config.data.tasks_per_client = 2
  config.data.standardize = True
  config.cohort.slots = 'all'
  config.model.hidden = (8,)
  config.client.batch_size = 32
  config.client.local_epochs = 2
  config.run.rounds = 30
  config.run.seeds = 5
  config.run.evaluate_every = 10
  config.execution.compile_effort = 'low'  # Rounds take milliseconds.
  config.report.view = 'client'
  config.report.metric = 'auc'
  config.report.more_metrics = ('balanced_accuracy',)
  config.report.baseline = 'isolated'
  config.report.curve_case = ''
  config.report.labels = {'isolated': 'Local'}
  known = [disease, private, left_out, smoke]
  return config_lib.apply_variants(
    config, variants, {variant.__name__: variant for variant in known}
  )
