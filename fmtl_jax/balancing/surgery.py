"""Balancers that change the common direction and leave tasks' own layers alone.

They look at how the gradients stand to each other and need neither losses nor a
state, so that they can also combine the updates of clients.
"""

import jax
import jax.numpy as jnp

from fmtl_jax import random_bits
from fmtl_jax.balancing import base

_MOST_STEPS = 2000
_GAP = 1e-6  # Relative to the gradients' scale; products are known no better.


def _of_direction(direction_fn):
  """A balancer of `problem -> direction`."""
  return base.Balancer(
    init=lambda n: (),
    weigh=lambda state, p: (direction_fn(p), p.weights, state),
    uses_losses=False,
  )


def pcgrad() -> base.Balancer:
  """PCGrad: removes from each gradient what conflicts with the others.

  For every i, and the others j in random order: where g_i . g_j < 0,

    g_i <- g_i - (g_i . g_j) / |g_j|^2 g_j,

  with g_j as it was. The result is the sum w_i g_i.

  References:
    Yu, Kumar, Gupta, Levine, Hausman, Finn (2020), Gradient surgery for
    multi-task learning, https://arxiv.org/abs/2001.06782, Algorithm 1.
  """

  def direction(problem):
    n, products = len(problem.losses), problem.products
    keys = jax.random.split(random_bits.narrow(problem.key), n)
    orders = jax.vmap(lambda key: jax.random.permutation(key, n))(keys)
    squares = jnp.diagonal(products)

    def project(place, mixed):
      """`mixed` is `[n, n]`: each gradient as a mix of those that came in."""
      other = orders[:, place]
      along = (mixed * products[other]).sum(1)
      conflicts = (along < 0) & (other != jnp.arange(n))
      cut = jnp.where(conflicts, base.ratio(along, squares[other]), 0)
      return mixed.at[jnp.arange(n), other].add(-cut)

    mixed = jax.lax.fori_loop(0, n, project, jnp.eye(n, dtype=products.dtype))
    return base.mix(problem, problem.weights @ mixed)

  return _of_direction(direction)


def mgda() -> base.Balancer:
  """MGDA: the shortest vector in the convex hull of the gradients, times W.

  The weights enter by their sum W alone; the paper takes W = 1. Over clients
  this is FedMGDA+ without its bound on the coefficients, and with updates as
  long as they are.

  References:
    Sener, Koltun (2018), Multi-task learning as multi-objective optimization,
    https://arxiv.org/abs/1810.04650, Algorithm 2.
    Hu, Shaloudegi, Zhang, Yu (2020), Federated learning meets multi-objective
    optimization, https://arxiv.org/abs/2006.11489.
  """

  def direction(problem):
    products = base.ratio(problem.products, _longest(problem) ** 2)
    linear = jnp.zeros_like(problem.weights)
    mixture = _minimum(products, linear, 1.0, problem.active)
    return base.mix(problem, problem.weights.sum() * mixture)

  return _of_direction(direction)


def cagrad(c: jax.Array | float = 0.5) -> base.Balancer:
  """CAGrad: near the mean, the direction whose worst improvement is the best.

  With g_0 the weighted mean and g_w a convex combination of the gradients that
  minimizes g_w . g_0 + c |g_0| |g_w|,

    d = W (g_0 + c |g_0| / |g_w| g_w) / (1 + c).

  The division is not the paper's: it keeps the scale where gradients agree.

  Args:
    c: How far d may be from the mean, in units of |g_0|; 0 is no balancing.

  References:
    Liu B., Liu X., Jin, Stone, Liu Q. (2021), Conflict-averse gradient descent
    for multi-task learning, https://arxiv.org/abs/2110.14048, Algorithm 1.
  """

  def direction(problem):
    total = problem.weights.sum()
    mean = _careful_mean(problem)
    # Not by products, which are noise where gradients cancel.
    radius = c * base.norm(mean)
    longest = _longest(problem)
    mixture = _minimum(
      base.ratio(problem.products, longest**2),
      base.ratio(base.along(problem, mean), longest**2),
      base.ratio(radius, longest),
      problem.active,
    )
    towards = base.mix(problem, mixture)
    stretch = base.ratio(radius, base.norm(towards))
    return jax.tree.map(
      lambda x, y: total * (x + stretch * y) / (1 + c), mean, towards
    )

  return _of_direction(direction)


def _careful_mean(problem):
  """The weighted mean without the rounding of sums of what nearly cancels.

  References:
    Neumaier (1974), Rundungsfehleranalyse einiger Verfahren zur Summation
    endlicher Summen (from memory).
  """
  largest = problem.weights.max()
  relative = base.ratio(problem.weights, largest)  # Often ones: exact.
  scale = base.ratio(largest, problem.weights.sum())

  def add(carry, row):
    total, lost = carry
    weight, value = row
    value = weight * value
    new = total + value
    lost += jnp.where(
      jnp.abs(total) >= jnp.abs(value),
      (total - new) + value,
      (value - new) + total,
    )
    return (new, lost), None

  def mean(leaf):
    zeros = jnp.zeros_like(leaf[0])
    (total, lost), _ = jax.lax.scan(add, (zeros, zeros), (relative, leaf))
    return scale * (total + lost)

  return jax.tree.map(mean, problem.gradients)


def _longest(problem):
  """The norm of the longest gradient."""
  return base.norms(problem).max()


def _norm(products, mixture):
  return jnp.sqrt(jnp.maximum(mixture @ products @ mixture, 0))


def _minimum(products, linear, scale, active):
  """Minimizes `linear . w + scale |g_w|` over convex combinations g_w.

  Frank-Wolfe in pairs: mass moves to the best member from the one that gains
  most by it, by as much as is best, which the closed form of the line says. So
  two gradients take one step. It ends where the gap, which the minimum is no
  farther away than, is below what products are known to.

  Args:
    products: `[n, n]`, of the gradients, the longest of which has the norm 1.
    linear: `[n]`.
    scale: `[]`, at least 0.
    active: `[n]` bool, who may have mass.

  Returns:
    `[n]`, at least 0, with the sum 1.

  References:
    Fan, Chen, Lin (2005), Working set selection using second order information
    for training support vector machines, WSS 2, for the choice of the pair
    (from memory).
  """
  squares = jnp.diagonal(products)

  def above_best(mixture):
    """The best member, and how much worse the slopes of the others are."""
    along = base.ratio(products @ mixture, _norm(products, mixture))
    slopes = linear + scale * along
    best = jnp.argmin(jnp.where(active, slopes, jnp.inf))
    return best, slopes - slopes[best]

  def goes_on(carry):
    steps, mixture = carry
    size = scale + jnp.abs(linear).max(where=active, initial=0)
    size += base.ratio(scale, _norm(products, mixture))
    above = above_best(mixture)[1]
    gap = jnp.max(above, where=mixture > 0, initial=0)
    return (steps < _MOST_STEPS) & (gap > _GAP * size)

  def step(carry):
    steps, mixture = carry
    best, above = above_best(mixture)
    distances = squares[best] + squares - 2 * products[best]
    gains = jnp.where(mixture > 0, base.ratio(above**2, distances), -1)
    worst = jnp.argmax(gains)
    places = jnp.arange(len(mixture))
    line = jnp.where(places == best, 1.0, 0) - jnp.where(
      places == worst, 1.0, 0
    )
    # |g_w + a line|^2 = square + 2 a first + a^2 second.
    square, first, second = (
      x @ products @ y
      for x, y in ((mixture, mixture), (mixture, line), (line, line))
    )
    slope = linear @ line
    room = scale**2 * second - slope**2
    rest = jnp.maximum(square * second - first**2, 0)
    move = base.ratio(-slope * jnp.sqrt(base.ratio(rest, room)) - first, second)
    most = mixture[worst]
    move = jnp.where(room > 0, jnp.clip(move, 0, most), most)
    moved = mixture + move * line
    # What is all taken away is exactly 0.
    return steps + 1, jnp.where((places == worst) & (move >= most), 0, moved)

  ones = active.astype(products.dtype)
  start = base.ratio(ones, ones.sum())
  return jax.lax.while_loop(goes_on, step, (0, start))[1]
