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
# # Private federations: what personal layers buy
#
# Three hundred people in each of two groups answer a question about points,
# each in a way of their own. What leaves them is clipped and gets noise, so
# that nobody who sees all models can say whether a person took part. Personal
# layers stay at home: they need no noise. How much accuracy does an epsilon
# cost, with and without them?
#
# The people are **made up**, so that the notebook needs no data.

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
# ## The federation
#
# All see points through the same eyes (a layer that is worth sharing), each
# group asks another question, and each person deviates from its group.

# %%
import math

from fmtl_jax import privacy
from fmtl_jax import tasks
from fmtl_jax.privacy import accounting
from fmtl_jax.privacy import ledgers
from fmtl_jax.rounds import what_leaves
import numpy as np
import pandas as pd

PEOPLE, EXAMPLES = (120, 8) if SMOKE else (600, 24)
DRAWN, ROUNDS = (5, 2) if SMOKE else (30, 30)

rng = np.random.default_rng(0)
person = np.repeat(np.arange(PEOPLE), EXAMPLES)
x = rng.normal(size=(len(person), 10))
seen = np.tanh(x @ rng.normal(size=(10, 3)))
question = rng.normal(size=(2, 3))
own = question[np.arange(PEOPLE) % 2] + 0.7 * rng.normal(size=(PEOPLE, 3))
answers = ((seen * own[person]).sum(1) > 0).astype(np.float32)
rows = np.arange(len(person)).reshape(PEOPLE, EXAMPLES)
data = fmtl_jax.FederatedDataset.create(
  features=x.astype(np.float32),
  labels=np.stack([answers, answers], 1),
  tasks=(tasks.binary('first'), tasks.binary('second')),
  client_tasks=np.arange(PEOPLE) % 2,
  train=rows[:, : EXAMPLES // 2],
  test=rows[:, EXAMPLES // 2 :],
)
# Who owns the last layer: everybody, a person, a group.
LAST = {
  'fedavg': 'common',
  'fedper': 'personal',
  'multi_task_fl': 'task',
  'mr_mtl': 'common',
}


def federation_of(name):
  """The network, with the owners of its layers."""
  model = fmtl_jax.models.mlp((10,), (8,), 1)
  rules = [('dense_0/.*', 'common'), ('output/.*', LAST[name])]
  return fmtl_jax.Federation.create(model, rules, data)


# %% [markdown]
# ## The ledger, before anything is trained
#
# Public numbers are all that it needs: how many people there are, how likely
# each is to take part in a round, and how many rounds there will be. `z` is
# the noise of a sum, in units of what one person may change.

# %%
DELTA = 1e-4
groups = ledgers.Groups(
  names=('first', 'second'),
  sizes=(PEOPLE // 2, PEOPLE // 2),
  clients_per_task=(DRAWN, DRAWN),
)
rate = DRAWN / (PEOPLE // 2)
noises = {math.inf: 0.0}
for epsilon in (8.0,) if SMOKE else (8.0, 3.0, 1.0):
  sampling = accounting.Poisson(rate=rate)
  found = accounting.calibrated(epsilon, sampling, ROUNDS, DELTA)
  noises[epsilon] = found
pd.Series(noises, name='z').rename_axis('epsilon').round(2)

# %% [markdown]
# Epsilon grows with rounds. That of rounds is a little larger at last: a cohort
# has a cap, and the one who is dropped may be dropped because another is there.

# %%
private = privacy.ClientPrivacy(
  clipping_norm=1.0, noise_multiplier=noises[8.0], delta=DELTA
)
spent = {
  rounds: max(ledgers.epsilons(private, groups, rounds).values())
  for rounds in ((1, 2) if SMOKE else (1, 3, 10, 30))
}
pd.Series(spent, name='epsilon').rename_axis('rounds').round(2)

# %%
print(ledgers.assumption(private, groups))

# %% [markdown]
# ## What leaves a person
#
# Read off the rounds: the values of the layers that are sent. MR-MTL sends how
# far a person's own model is from the mean, which is clipped as any update.

# %%
leaving = {}
for name in LAST:
  federation = federation_of(name)
  settings = fmtl_jax.RoundSettings(privacy=private)
  algorithm = fmtl_jax.algorithms.build(
    name, federation, fmtl_jax.LocalSgd(), settings
  )
  leaving[name] = what_leaves(federation, algorithm, data).updates
pd.DataFrame(leaving).T.fillna(0).astype(int)

# %% [markdown]
# ## Accuracy against epsilon
#
# The mean test accuracy of all people (of %), each predicting with what they
# have. Without noise (infinity) messages are clipped all the same.

# %%
chosen = ('fedavg', 'fedper') if SMOKE else tuple(LAST)
accuracy = pd.DataFrame(index=list(noises), columns=list(chosen), dtype=float)
for name in chosen:
  for epsilon, noise in noises.items():
    settings = fmtl_jax.RoundSettings(
      clients_per_task=DRAWN,
      privacy=privacy.ClientPrivacy(
        clipping_norm=1.0, noise_multiplier=noise, delta=DELTA
      ),
    )
    result = fmtl_jax.fit(
      federation_of(name),
      name,
      data,
      rounds=ROUNDS,
      seeds=range(1 if SMOKE else 2),
      evaluate_every=ROUNDS,
      progress=False,
      compile_effort='low',
      local=fmtl_jax.LocalSgd(learning_rate=1.0, batch_size=0, epochs=5),
      settings=settings,
    )
    last = result.history['test/client/accuracy'][:, -1, -1]
    accuracy.loc[epsilon, name] = 100 * last.mean()
accuracy.rename_axis('epsilon').round(1)

# %%
from matplotlib import pyplot as plt

shown = accuracy.sort_index()
places = range(len(shown))
for name in chosen:
  plt.plot(places, shown[name], 'o-', label=name)
plt.xticks(places, [f'{epsilon:g}' for epsilon in shown.index])
plt.xlabel('epsilon of a person')
plt.ylabel('test accuracy (%)')
plt.legend()
plt.show()

# %% [markdown]
# ## Noise that is taken back
#
# With `banded` noise a part of each round's noise is taken back in the next
# ones (DP-FTRL), so that what adds up over rounds is less; people take turns,
# a quarter of each group in a round. A turn costs more than a round of all:
# the ledger says what is left of the gain.

# %%
banded = privacy.ClientPrivacy(
  clipping_norm=1.0,
  noise_multiplier=noises[8.0],
  delta=DELTA,
  banded=privacy.BandedNoise(bands=2 if SMOKE else 4),
)
size = banded.bands
matrix = np.zeros((ROUNDS, ROUNDS))
for place, value in enumerate(banded.banded.coefficients):
  matrix += value * np.eye(ROUNDS, k=-place)
sums = np.tril(np.ones((ROUNDS, ROUNDS)))
deviation = np.sqrt(np.square(sums @ np.linalg.inv(matrix)).sum(1).mean())
plain = np.sqrt(np.square(sums).sum(1).mean())
epsilons = [
  max(ledgers.epsilons(x, groups, ROUNDS).values()) for x in (private, banded)
]
pd.DataFrame(
  {'noise of sums over rounds': (plain, deviation), 'epsilon': epsilons},
  index=('independent', f'{size} bands'),
).round(2)
