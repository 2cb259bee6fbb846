"""Metrics: what tasks are evaluated by, values that say all about themselves.

A metric is a mean (values of examples, or sums and counts of what is inside
them, such as tokens) or a function of a whole set of examples (the AUC). An own
one is given to a task and enters every result:

```python
error = metrics.Metric(
  name='absolute_error',
  values=lambda answers: jnp.abs(answers.outputs[:, 0] - answers.targets),
  lower_is_better=True,
)
task = tasks.Task(name='age', kind='regression', metrics=(error,))
```

So are those that tasks do not have by themselves:

```python
tasks.Task(name='glasses', metrics=(metrics.F1, *metrics.confusion(2)))
```

`metric`      what a metric is, and those of the kinds
`of_classes`  F1, average precision, calibration, the confusion matrix
`of_tokens`   accuracy, perplexity and bits of the tokens of sequences
`choices`     metrics by name, for the tasks that they fit
"""

from fmtl_jax.metrics.choices import CHOICES
from fmtl_jax.metrics.choices import chosen
from fmtl_jax.metrics.metric import ACCURACY
from fmtl_jax.metrics.metric import AUC
from fmtl_jax.metrics.metric import BALANCED_ACCURACY
from fmtl_jax.metrics.metric import CLIENT_MEAN
from fmtl_jax.metrics.metric import CLIENT_STD
from fmtl_jax.metrics.metric import LOSS
from fmtl_jax.metrics.metric import METRICS
from fmtl_jax.metrics.metric import MSE
from fmtl_jax.metrics.metric import NRMSE
from fmtl_jax.metrics.metric import RMSE
from fmtl_jax.metrics.metric import SUFFIXES
from fmtl_jax.metrics.metric import WORST_DECILE
from fmtl_jax.metrics.metric import Answers
from fmtl_jax.metrics.metric import Metric
from fmtl_jax.metrics.metric import Value
from fmtl_jax.metrics.metric import area_under_curve
from fmtl_jax.metrics.metric import base_name
from fmtl_jax.metrics.of_classes import AVERAGE_PRECISION
from fmtl_jax.metrics.of_classes import BRIER
from fmtl_jax.metrics.of_classes import ECE
from fmtl_jax.metrics.of_classes import F1
from fmtl_jax.metrics.of_classes import MACRO_F1
from fmtl_jax.metrics.of_classes import confusion
from fmtl_jax.metrics.of_classes import confusion_name
from fmtl_jax.metrics.of_tokens import BITS
from fmtl_jax.metrics.of_tokens import BITS_PER_CHARACTER
from fmtl_jax.metrics.of_tokens import log_likelihoods
from fmtl_jax.metrics.of_tokens import PERPLEXITY
from fmtl_jax.metrics.of_tokens import TOKEN_ACCURACY
from fmtl_jax.metrics.of_tokens import TOP_ACCURACIES

__all__ = (
  'ACCURACY',
  'AUC',
  'AVERAGE_PRECISION',
  'Answers',
  'BALANCED_ACCURACY',
  'BITS',
  'BITS_PER_CHARACTER',
  'BRIER',
  'CHOICES',
  'CLIENT_MEAN',
  'CLIENT_STD',
  'ECE',
  'F1',
  'LOSS',
  'MACRO_F1',
  'METRICS',
  'MSE',
  'Metric',
  'NRMSE',
  'PERPLEXITY',
  'RMSE',
  'SUFFIXES',
  'TOKEN_ACCURACY',
  'TOP_ACCURACIES',
  'Value',
  'WORST_DECILE',
  'area_under_curve',
  'base_name',
  'chosen',
  'confusion',
  'confusion_name',
  'log_likelihoods',
)
