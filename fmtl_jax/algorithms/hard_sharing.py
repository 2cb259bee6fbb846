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

label_rules = multi_task_fl.label_rules
