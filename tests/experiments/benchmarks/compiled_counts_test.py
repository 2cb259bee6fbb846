"""Laws of the counts: what starts something counts, as often as it runs."""

from absl.testing import absltest
import jax

from experiments.benchmarks import compiled_counts
from fmtl_jax import testing
from fmtl_jax.clients import client_batches

# A step with a loop of three inside of it, in a loop over clients.
TEXT = """HloModule jit_round, entry_computation_layout={()->f32[2]{0}}

%inner.1 (p.1: (s32[], f32[2])) -> (s32[], f32[2]) {
  %p.1 = (s32[], f32[2]{0}) parameter(0)
  %a.1 = f32[2]{0} get-tuple-element(%p.1), index=1
  %dot.1 = f32[2]{0} dot(%a.1, %a.1), @step/while/body/dot"}
  ROOT %t.1 = (s32[], /*index=1*/f32[2]{0}) tuple(%a.1, %dot.1)
}

%branch.1 (p.4: f32[2]) -> f32[2] {
  %p.4 = f32[2]{0} parameter(0)
  %copy.4 = f32[2]{0} copy(%p.4)
  ROOT %negate.4 = f32[2]{0} negate(%copy.4)
}

%branch.2 (p.5: f32[2]) -> f32[2] {
  ROOT %p.5 = f32[2]{0} parameter(0)
}

%called.1 (p.6: f32[2]) -> f32[2] {
  %p.6 = f32[2]{0} parameter(0)
  ROOT %fusion.6 = f32[2]{0:T(8,128)} fusion(%p.6), kind=kLoop, calls=%fused
}

%step.1 (p.2: (s32[], f32[2])) -> (s32[], f32[2]) {
  %p.2 = (s32[], f32[2]{0}) parameter(0)
  %f.2 = f32[2]{0} fusion(%p.2), kind=kLoop, calls=%fused, @step/add"}
  %w.2 = (s32[], f32[2]{0}) while(%p.2), body=%inner.1, @trips3
  %i.2 = f32[2]{0} conditional(%f.2, %f.2), @branches
  %call.2 = f32[2]{0} call(%f.2), to_apply=%called.1
  ROOT %t.2 = (s32[], f32[2]{0}) tuple(%f.2, %i.2)
}

%clients.1 (p.3: (s32[], f32[2])) -> (s32[], f32[2]) {
  %p.3 = (s32[], f32[2]{0}) parameter(0)
  %hoisted = f32[2]{0} broadcast(%p.3), @step/while/body/broadcast"}
  ROOT %w.3 = (s32[], f32[2]{0}) while(%p.3), condition=%c, body=%step.1
}

ENTRY %main.1 (p.0: f32[2]) -> f32[2] {
  %p.0 = f32[2]{0} parameter(0)
  %w.0 = (s32[], f32[2]{0}) while(%p.0), body=%clients.1, @trips5
  ROOT %r.0 = f32[2]{0} bitcast(%w.0)
}
"""
for short, long in (
  ('@step/', 'metadata={op_name="while/body/local_step/'),
  ('@trips3', 'backend_config={"known_trip_count":{"n":"3"}}'),
  ('@trips5', 'backend_config={"known_trip_count":{"n":"5"}}'),
  ('@branches', 'branch_computations={%branch.1, %branch.2}'),
):
  TEXT = TEXT.replace(short, long)


class CountsTest(absltest.TestCase):
  def test_a_step_is_the_loop_of_its_scope_with_the_loops_inside(self):
    costs = {'flops': 7.0, 'bytes accessed': 9.0}
    self.assertEqual(
      compiled_counts.counts(TEXT, costs),
      {
        'step_operations': 7,
        'step_opcodes': {'dot': 3, 'fusion': 2, 'copy': 1, 'negate': 1},
        'cost_flops': 7.0,
        'cost_bytes_accessed': 9.0,
      },
    )

  def test_without_such_a_loop_nothing_is_said(self):
    text = TEXT.replace('local_step', 'other')
    self.assertEqual(
      compiled_counts.counts(text, None),
      dict.fromkeys(
        (
          *('step_operations', 'step_opcodes'),
          *('cost_flops', 'cost_bytes_accessed'),
        )
      ),
    )

  def test_a_program_of_this_xla_can_be_read(self):
    def step(_, x):
      with jax.named_scope(client_batches.STEP_SCOPE):
        return jax.lax.sort(x) @ x

    run = lambda x, steps: jax.lax.fori_loop(0, steps, step, x)
    compiled = testing.jit(run).lower(jax.numpy.eye(4), 3).compile()
    found = compiled_counts.counts(compiled.as_text(), compiled.cost_analysis())
    self.assertEqual(found['step_opcodes']['sort'], 1)
    self.assertGreaterEqual(found['step_operations'], 2)
    self.assertGreater(found['cost_flops'], 0)


if __name__ == '__main__':
  absltest.main()
