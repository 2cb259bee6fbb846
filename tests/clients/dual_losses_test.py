"""Duals of losses: they bound the loss, and a step is their maximum."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from fmtl_jax import compatibility
from fmtl_jax import testing
from fmtl_jax.clients import dual_losses


class DualLossesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(compatibility.enable_x64(True))

  @parameterized.parameters(*dual_losses.DUAL_LOSSES)
  def test_a_step_is_the_maximum_and_the_dual_a_bound(self, name):
    loss = dual_losses.DUAL_LOSSES[name]
    rng = np.random.default_rng(0)
    count = 300
    targets = rng.choice([-1.0, 1.0], count)
    outputs, alpha = rng.normal(size=count) * 3, targets * rng.random(count)
    curvature = np.exp(rng.normal(size=count) * 3)
    curvature[:20], alpha[20:40] = 0, 0

    @testing.jit
    def gain(new):  # Of a change, `[..., count]`.
      moved = new - alpha
      cost = moved * outputs + curvature * moved**2 / 2
      return loss.dual(new, jnp.broadcast_to(targets, new.shape)) - cost

    new = np.asarray(testing.jit(loss.step)(outputs, alpha, targets, curvature))
    grid = targets * np.linspace(0, 1, 2001)[:, None]
    if name == dual_losses.SQUARED:
      grid = new + np.linspace(-1, 1, 2001)[:, None]
    best = np.asarray(gain(grid)).max(0)
    found = np.asarray(gain(new))
    self.assertTrue((found >= best - 1e-9).all())
    values = loss.primal(outputs, targets)
    bounds = loss.dual(grid, jnp.broadcast_to(targets, grid.shape))
    self.assertTrue((values >= bounds - grid * outputs - 1e-12).all())


if __name__ == '__main__':
  absltest.main()
