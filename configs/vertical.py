"""Vertical federations: parties with other columns of the same rows.

Sources: breast cancer Wisconsin (Street et al. 1993), three parties with a
block of ten columns each (mean, error, worst of cell nuclei), of which `mean`
has the diagnosis; with the variant `digits`, the left and the right half of
handwritten digits, five tasks at the party with the left one. Both of
scikit-learn. Every other party lacks a tenth of the entities; rows are those
that all have, found by private alignment.

Command: python -m experiments.main --config=configs/vertical.py
Variants: digits, faces, star, drop, private, smoke; they combine, as in
:digits,smoke. With star, tests of pupils at schools, and what is known of them
at home (extra `relations`). With faces, halves of photographs
(--config.data.manual_dir=DIR with UTKFace.zip, for research only:
https://susanqq.github.io/UTKFace). With drop, parties drop out of three rounds
in ten; with private, embeddings and gradients of encoders are noisy, in ten
full-batch epochs.
"""

from fmtl_jax.experiments import config as config_lib


def digits(config):
  """Handwritten digits: the left and the right half."""
  config.data.name = 'digits'
  config.data.vertical.split = 'even'
  config.data.vertical.parties = 2
  config.data.tasks_per_client = 5
  config.cohort.slots = 'all'
  config.data.standardize = False
  config.model.embedding = 16
  config.overrides.centralized_joint.model.hidden = (32, 16)
  config.client.learning_rate = 0.05
  config.report.metric = 'accuracy'
  config.report.more_metrics = ('auc',)
  config.report.title = 'Digits, two halves: test accuracy (%)'


def faces(config):
  """Photographs of faces, 32 x 32 in grey: the left and the right half."""
  digits(config)
  config.data.name = 'utkface'
  config.data.image_size = 32
  config.data.image_crop = 0.8
  config.data.grey = True
  config.data.standardize = True
  config.client.batch_size = 64
  config.run.rounds = 15
  config.run.seeds = 3
  config.model.hidden = (32,)
  config.overrides.centralized_joint.model.hidden = (64, 32, 16)
  config.report.more_metrics = ('balanced_accuracy', 'auc')
  config.report.title = 'UTKFace, two halves: test accuracy (%)'


def star(config):
  """Eight tests of pupils at schools; what is known of a pupil at home."""
  config.cases = ('label_party', 'vertical', 'centralized_joint')
  config.data.name = 'star'
  config.data.vertical.label_party = 'school'
  config.data.tasks_per_client = 8
  config.data.standardize_targets = 'column'
  config.cohort.slots = 'all'
  config.client.batch_size = 64
  config.client.learning_rate = 0.005  # The sum of eight losses.
  config.run.rounds = 15
  config.data.metrics = ('rmse', 'nrmse')
  config.report.metric = 'nrmse'
  config.report.more_metrics = ('rmse',)
  config.report.title = 'STAR, two parties: test RMSE in deviations'


def drop(config):
  """Parties without labels drop out of three rounds in ten."""
  config.algorithm.vertical.dropout = 0.3


def private(config):
  """Rows of parties are protected: few releases, with much noise."""
  config.algorithm.vertical.clip = 0.1  # The noise is z times this: near one.
  config.algorithm.vertical.gradient_clip = 0.1
  config.algorithm.vertical.noise_multiplier = 8.0
  config.privacy.standardization_is_public = True
  config.client.batch_size = 0
  config.client.learning_rate = 0.1
  config.run.rounds = 10
  config.run.evaluate_every = 10


def smoke(config):
  """A few rounds of two rows, without keys."""
  config.cases = ('label_party', 'vertical')
  config.data.vertical.alignment = 'plain'
  config.run.rounds = 3
  config.run.seeds = 2
  config.run.evaluate_every = 3
  config.report.figure_formats = ()
  config.execution.compile_effort = 'low'


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'vertical'
  config.cases = ('majority', 'label_party', 'vertical', 'centralized_joint')
  config.data.name = 'breast_cancer'
  config.data.clients = 1
  config.data.vertical.split = 'blocks'
  config.data.vertical.overlap = 0.9
  config.data.test_fraction = 0.3
  config.data.validation_fraction = 0.0
  config.data.standardize = True
  config.model.name = 'vertical'
  config.model.hidden = ()
  config.model.embedding = 8
  config.model.head = (16,)
  pooled = {'name': 'mlp', 'hidden': (24, 16)}  # As wide, on all columns.
  for field, value in pooled.items():
    name = f'overrides.centralized_joint.model.{field}'
    config_lib.put_field(config, name, value)
  config.client.learning_rate = 0.02
  config.client.momentum = 0.9
  config.client.batch_size = 32
  config.client.keep_optimizer_state = True
  config.run.rounds = 40
  config.run.seeds = 5
  config.run.evaluate_every = 5
  config.report.metric = 'auc'
  config.report.more_metrics = ('accuracy',)
  config.report.curve_case = 'vertical'
  config.report.baseline = 'label_party'
  config.report.title = 'Breast cancer, three parties: test AUC'
  return config_lib.apply_variants(
    config,
    variants,
    {
      'digits': digits,
      'faces': faces,
      'star': star,
      'drop': drop,
      'private': private,
      'smoke': smoke,
    },
  )
