"""Hard parameter sharing: one network, with output layers for each task.

Centralized multi-task learning as it is usually done: the first layers learn
from the examples of all tasks, the last ones from those of their own. Its
layers are those of the method of the paper without clients: common ones, and
task-specific ones, to which a personal layer belongs here. A round is one epoch
of joint training on the sum of the tasks' losses; its result is that of the
case `centralized_joint`.

References:
  Caruana (1997), Multitask learning,
  https://doi.org/10.1023/A:1007379606734, section 1 (unchecked).
"""

from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs

label_rules = multi_task_fl.label_rules


hard_sharing = multi_task_fl.under_rules(
  'hard_sharing',
  __name__,
  'Builds hard sharing: multi-task federated learning of one client.',
)

SPEC = specs.Spec(
  name='hard_sharing',
  label='Hard parameter sharing, centralized',
  doc=__doc__,
  family=specs.CENTRALIZED,
  year=1997,
  build=hard_sharing,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  depths=('task_layers', 'personal_layers'),
  centralized=specs.JOINT,
)
