# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: a federation of five tasks
#
# Fifty clients hold handwritten digits. Each of them has the labels of one of
# five binary tasks (is it odd? has it a closed loop?), and none has enough to
# learn its task well alone. This notebook trains them alone, in a federation
# for each task, and in one federation for all tasks; then it shows the table,
# the figures, and what the trained model of one client says.
#
# It takes less than three minutes on two CPU cores (80 seconds of CPU time),
# most of it compilation.
# Nothing in it is particular to a device: it is written for CPU, GPU and
# Colab's TPU runtimes (*Runtime*, *Change runtime type*, a TPU, then *Run
# all*), but it **has never been run on a TPU**.
#
# The package is on no index yet: on Colab, give the cell below a wheel
# (`pip wheel --no-deps .` in a checkout makes one; upload it) or an address
# that pip knows. The runtime keeps its own JAX.

# %%
import importlib.util
from importlib import metadata
import os
import pathlib
import subprocess
import sys

# A wheel that you uploaded, a folder with the sources, or git+https://...
PACKAGE = os.environ.get('FMTL_JAX_PACKAGE', '')
SMOKE = os.environ.get('FMTL_JAX_SMOKE') == '1'  # Only whether it runs.

if importlib.util.find_spec('fmtl_jax') is None:
  if not PACKAGE:
    raise SystemExit('Set PACKAGE: fmtl_jax is not installed here.')
  # What the runtime has for its devices stays as it is.
  keep = ('jax', 'libtpu', 'flax', 'optax', 'orbax', 'numpy')
  versions = sorted(
    f'{found.name}=={found.version}'
    for found in metadata.distributions()
    if found.name.lower().startswith(keep)
  )
  pathlib.Path('keep.txt').write_text('\n'.join(versions), encoding='utf-8')
  pip = [sys.executable, '-m', 'pip', 'install', '-q', '-c', 'keep.txt']
  subprocess.run([*pip, PACKAGE], check=True)

import jax

import fmtl_jax

fmtl_jax.prepare_jax()  # All cores of a CPU; compiled programs are kept.
print(jax.__version__, jax.devices())
# %% [markdown]
# ## The table
#
# `run` takes a config and gives what the command `fmtl main --config=digits`
# gives. Each row is a case: an algorithm, and who has which data. All seeds of
# a case are one compiled program, and all cases are compiled together. The
# config has eight cases and five seeds; here are four cases and three seeds.

# %%
from fmtl_jax.configs import digits
from fmtl_jax.experiments import run

cases = ('majority', 'distributed_separate', 'separate_fl', 'multi_task_fl')
config = digits.get_config('smoke' if SMOKE else '')
config.run.seeds = 2 if SMOKE else 3
results = run(config, cases)
results

# %% [markdown]
# Accuracy in percent on test digits, mean and standard deviation over seeds.
# *Distributed separate* is every client alone; *separate FL* is FedAvg for each
# task; *multi-task FL* shares the first layers among all tasks.

# %%
results.figures['cases']

# %%
results.figures['curves']  # Multi-task FL by task.

# %% [markdown]
# The same numbers as a frame, a value a row (it needs pandas):

# %%
frame = results.to_frame()
test = frame.query('split == "test" and view == "pooled"')
last = test[test['round'] == test['round'].max()]
accuracy = last[(last.metric == 'accuracy') & (last.task != 'mean')]
accuracy.pivot_table(index='case', columns='task', values='value').round(1)

# %% [markdown]
# ## What a client predicts
#
# The model of client 2 after the last round, on digits that nobody trained on
# with this seed.

# %%
from matplotlib import pyplot as plt
import numpy as np

from fmtl_jax.data import digits as digits_data

model = results.predictor('multi_task_fl', client=2)
loaded = digits_data.load()
shown = np.random.default_rng(0).choice(len(loaded.features), 10)
images = loaded.features[shown].reshape(-1, 8, 8, 1)
answers = np.asarray(model.predict(images))
probabilities = np.asarray(model.probabilities(images))[:, 1]

figure, axes = plt.subplots(1, 10, figsize=(10, 1.8))
for axis, image, answer, probability in zip(
  axes, images, answers, probabilities, strict=True
):
  axis.imshow(image[..., 0], cmap='gray_r')
  axis.set_title(f'{"yes" if answer else "no"}\n{probability:.2f}', fontsize=9)
  axis.axis('off')
figure.suptitle(f'{model.task.name}?', y=1.15)
plt.show()

# %% [markdown]
# ## Without a config: `fit`
#
# `run` is for tables of named cases. For a network, data and label rules of
# your own there is one call that trains and evaluates: `fmtl_jax.fit`. Here
# each client keeps an output layer of its own (`personal`).

# %%
rng = np.random.default_rng(0)
rows = rng.permutation(len(loaded.features))[:1000].reshape(20, 50)
data = fmtl_jax.FederatedDataset.create(
  features=loaded.features,
  labels=loaded.labels,
  tasks=loaded.tasks,
  client_tasks=np.arange(20) % 5,
  train=rows[:, :40],
  test=rows[:, 40:],
)
federation = fmtl_jax.Federation.create(
  fmtl_jax.models.mlp((64,), (32,), 1),
  [('dense_0/.*', 'common'), ('output/.*', 'personal')],
  data,
)
result = fmtl_jax.fit(
  federation,
  'fedper',
  data,
  rounds=4 if SMOKE else 40,
  seeds=range(2),
  evaluate_every=2 if SMOKE else 10,
  local=fmtl_jax.LocalSgd(learning_rate=0.3, batch_size=8),
  compile_effort='low' if SMOKE else 'high',
)
result

# %%
for name, curve in result.history.items():
  if name == 'test/client/accuracy':
    plt.plot(result.rounds, curve.mean(0)[:, -1], 'o-', label=name)
plt.xlabel('round')
plt.legend()
plt.show()

# %% [markdown]
# ## Callbacks: W&B, MLflow, or whatever you use
#
# After each evaluation `fit` calls what it is given with the number of rounds
# and plain numbers by name. One that returns True ends the training. Neither
# tracker is a dependency; where one is installed, this is all it takes:


# %%
def to_wandb(project, **settings):
  """A callback that logs to Weights & Biases."""
  import wandb

  tracked = wandb.init(project=project, config=settings)

  def callback(round_number, metrics):
    tracked.log(metrics, step=round_number)

  return callback


def to_mlflow(experiment, **settings):
  """A callback that logs to MLflow."""
  import mlflow

  mlflow.set_experiment(experiment)
  mlflow.start_run()
  mlflow.log_params(settings)

  def callback(round_number, metrics):
    mlflow.log_metrics(metrics, step=round_number)

  return callback


def tell(round_number, metrics):
  accuracy = metrics['test/client/accuracy']
  print(f'after round {round_number}: {100 * accuracy:.1f} %')
  return accuracy > 0.97


more = fmtl_jax.fit(
  federation,
  'fedper',
  data,
  rounds=2 if SMOKE else 20,
  evaluate_every=2 if SMOKE else 10,
  start=result,  # Goes on where it ended.
  local=fmtl_jax.LocalSgd(learning_rate=0.3, batch_size=8),
  compile_effort='low' if SMOKE else 'high',
  callbacks=[tell],  # Or to_wandb('digits', rate=0.3), to_mlflow(...).
)
more
