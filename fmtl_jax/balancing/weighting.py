"""Balancers that weigh the tasks' losses, and so the layers of each task, too.

All of them multiply the weights w_i by factors and keep their sum, so that they
say how much a task counts against the others and never how long a step is: the
learning rate does. They start with factors of one (FAMO's are 1 / L_i). A loss
L_i is how far it is above its lower bound, which has to be known: what falls
below zero has neither a ratio nor a logarithm.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax.balancing import base

_SMALL = 1e-8  # The least loss whose logarithm is taken, as FAMO's authors do.
_LEAST = 1e-3  # A task of GradNorm with a weight of zero would stay there.


def _of_factors(init, factors_fn, **settings):
  """A balancer of `(state, problem) -> (factors, state)`."""

  def weigh(state, problem):
    factors, state = factors_fn(state, problem)
    weights = base.scaled(factors, problem)
    return base.mix(problem, weights), weights, state

  return base.Balancer(init, weigh, **settings)


def fixed() -> base.Balancer:
  """Takes the weights as they are."""
  return base.Balancer(
    init=lambda n: (),
    weigh=lambda state, problem: (
      base.mix(problem, problem.weights),
      problem.weights,
      state,
    ),
    uses_losses=False,
  )


def uncertainty(rate: jax.Array | float = 0.025) -> base.Balancer:
  """Learns a log-variance s_i of each task: factors exp(-s_i).

  The objective is sum_i (exp(-s_i) L_i + s_i) / 2; a call takes a gradient step
  of s_i, which moves it towards log L_i. The steps of s are cut off at 1, and
  the scale of the sum is kept where the paper's is learned as well.

  Args:
    rate: Learning rate of s.

  References:
    Kendall, Gal, Cipolla (2018), Multi-task learning using uncertainty to weigh
    losses for scene geometry and semantics, https://arxiv.org/abs/1705.07115,
    equation 7, with s = log sigma^2.
  """

  def factors(state, problem):
    slope = (1 - jnp.exp(-state) * problem.losses) / 2
    least = jnp.min(jnp.where(problem.active, state, jnp.inf))
    return jnp.exp(least - state), state - jnp.clip(rate * slope, -1, 1)

  return _of_factors(jnp.zeros, factors, needs_bounds=True)


class _Averages(NamedTuple):
  """Losses of rounds.

  Attributes:
    last: Mean losses of the last round.
    previous: Those of the one before.
    rounds: How many rounds there were, at most 2.
    total: The sum of this round's.
    steps: Their number.
  """

  last: jax.Array
  previous: jax.Array
  rounds: jax.Array
  total: jax.Array
  steps: jax.Array


def dwa(temperature: jax.Array | float = 2.0) -> base.Balancer:
  """Dynamic weight average: factors exp(r_i / T), r_i the last losses' ratio.

  r_i = L_i(t - 1) / L_i(t - 2), one in the first two rounds. A loss is the mean
  over the steps of a round, which takes the place of the paper's epoch.

  Args:
    temperature: T.

  References:
    Liu, Johns, Davison (2019), End-to-end multi-task learning with attention,
    https://arxiv.org/abs/1803.10704, equation 7.
  """

  def init(n):
    zeros = jnp.zeros(n)
    return _Averages(zeros, zeros, zeros, zeros, zeros)

  def factors(state, problem):
    known = (state.rounds > 1) & (state.previous > 0)
    ratio = jnp.where(known, base.ratio(state.last, state.previous), 1)
    largest = jnp.max(jnp.where(problem.active, ratio, -jnp.inf))
    return jnp.exp((ratio - largest) / temperature), state._replace(
      total=state.total + problem.losses, steps=state.steps + 1
    )

  def end_round(state):
    new = _Averages(
      last=base.ratio(state.total, state.steps),
      previous=state.last,
      rounds=jnp.minimum(state.rounds + 1, 2),
      total=jnp.zeros_like(state.total),
      steps=jnp.zeros_like(state.steps),
    )
    took_part = state.steps > 0
    return jax.tree.map(lambda x, y: jnp.where(took_part, x, y), new, state)

  return _of_factors(init, factors, end_round=end_round, needs_bounds=True)


class _Learned(NamedTuple):
  """What GradNorm keeps.

  Attributes:
    factors: Of the tasks.
    first: Their first losses, 0 before.
  """

  factors: jax.Array
  first: jax.Array


def gradnorm(
  alpha: jax.Array | float = 1.5, rate: jax.Array | float = 0.025
) -> base.Balancer:
  """GradNorm: factors v_i with which all tasks learn at similar rates.

  With G_i = v_i |g_i| and r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)), a call
  takes a gradient step of v on

    sum_i |G_i - mean_j(G_j) r_i^alpha|,

  whose target is kept constant; then the v_i of active tasks get the sum that
  they had. The factors used are those before the step. Norms are of all shared
  layers, where the paper's are of the last one.

  Args:
    alpha: How strongly tasks with slow progress are weighted.
    rate: Learning rate of v.

  References:
    Chen, Badrinarayanan, Lee, Rabinovich (2018), GradNorm: gradient
    normalization for adaptive loss balancing in deep multitask networks,
    https://arxiv.org/abs/1711.02257, Algorithm 1.
  """
  return _gradnorm(alpha, rate, base.norms)


def fedgradnorm(
  alpha: jax.Array | float = 1.5, rate: jax.Array | float = 0.025
) -> base.Balancer:
  """FedGradNorm: GradNorm at the server, with the norms of a round's updates.

  Losses are those that the clients of a task report; v stays at the server.
  Norms are relative to their mean, because those of updates grow with the
  clients' learning rate and number of steps: `rate` means the same for all.

  Args:
    alpha: As of `gradnorm`.
    rate: As of `gradnorm`.

  References:
    Mortaheb, Vahapoglu, Ulukus (2022), FedGradNorm: personalized federated
    gradient-normalized multi-task learning, https://arxiv.org/abs/2203.13663,
    Algorithm 1.
  """

  def relative(problem):
    norms = base.norms(problem)
    return base.ratio(norms, _mean(norms, problem.active))

  return _gradnorm(alpha, rate, relative)._replace(in_rounds=True)


def _mean(values, active):
  count = active.sum(dtype=values.dtype)
  return base.ratio(jnp.where(active, values, 0).sum(), count)


def _gradnorm(alpha, rate, norms_fn):
  def factors(state, problem):
    active = problem.active
    first = jnp.where(state.first > 0, state.first, problem.losses)
    norms = norms_fn(problem)
    weighted = state.factors * norms
    progress = base.ratio(problem.losses, first)
    pull = base.ratio(progress, _mean(progress, active)) ** alpha
    over = jnp.sign(weighted - _mean(weighted, active) * pull)
    moved = jnp.maximum(state.factors - rate * norms * over, _LEAST)
    total = lambda x: jnp.where(active, x, 0).sum()
    moved *= base.ratio(total(state.factors), total(moved))
    return state.factors, _Learned(moved, first)

  return _of_factors(
    lambda n: _Learned(jnp.ones(n), jnp.zeros(n)), factors, needs_bounds=True
  )


class _Logits(NamedTuple):
  """What FAMO keeps.

  Attributes:
    logits: Of the tasks.
    last: Logarithms of the losses that each was last active with.
    known: 1 where there is one, else 0.
  """

  logits: jax.Array
  last: jax.Array
  known: jax.Array


def famo(
  rate: jax.Array | float = 0.025, decay: jax.Array | float = 0.001
) -> base.Balancer:
  """FAMO: all losses fall by the same factor, at no cost in gradients.

  Factors are z_i / L_i with z = softmax(xi). From one step to the next

    xi <- xi - rate (delta + decay xi),   delta_i = z_i (v_i - sum_j z_j v_j),

  with v_i = log L_i(t) - log L_i(t + 1). L(t + 1) is that of the next step, on
  its own batch, and xi takes plain steps; the paper computes the losses of the
  same batch again and has Adam.

  Args:
    rate: beta of the paper.
    decay: gamma of the paper.

  References:
    Liu, Feng, Stone, Liu (2023), FAMO: fast adaptive multitask optimization,
    https://arxiv.org/abs/2306.03792, Algorithm 1.
  """

  def softmax(logits, chosen):
    largest = jnp.max(jnp.where(chosen, logits, -jnp.inf))
    exponentials = jnp.where(chosen, jnp.exp(logits - largest), 0)
    return base.ratio(exponentials, exponentials.sum())

  def factors(state, problem):
    now = jnp.log(problem.losses + _SMALL)
    known = problem.active & (state.known > 0)
    z = softmax(state.logits, known)
    fallen = jnp.where(known, state.last - now, 0)
    slope = z * (fallen - (z * fallen).sum()) + decay * state.logits
    logits = jnp.where(known, state.logits - rate * slope, state.logits)
    # In logarithms, because losses may be as small as they like.
    factors = softmax(logits - now, problem.active)
    return factors, _Logits(logits, now, jnp.ones_like(state.known))

  return _of_factors(
    lambda n: _Logits(jnp.zeros(n), jnp.zeros(n), jnp.zeros(n)),
    factors,
    needs_bounds=True,
  )
