"""What one client's update tells of its image, with and without protection.

python -m experiments.benchmarks.gradient_inversion --out=DIR

Clients have one handwritten digit each and make one step. A row of the figure
is a protection, a column an image; beside a row stand the mean peak
signal-to-noise ratio and the share of images whose reconstruction is most like
them among all 1,797 digits. Attacks are those of `inversion`, and the better
one of both counts: another attacker may find more. Noise stands beside each
message as if the cohort were that client alone; a sum of many clients has the
same noise once. It takes about three minutes on two cores.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from absl import flags
import numpy as np

from ..console import command_line
from ..console import programs

_OUT = command_line.define_path('out', 'The folder of the figure.', None)
_SEED = flags.DEFINE_integer('seed', 0, 'Of images, parameters and messages.')
_IMAGES = flags.DEFINE_integer('images', 100, 'How many, a multiple of 100.')
_CLIP = flags.DEFINE_float('clipping_norm', 0.1, 'Of private rounds.')
_NOISES = flags.DEFINE_list(
  'noise_multipliers', ['0', '0.01', '0.1', '1'], 'Of private rounds.'
)
_STEPS = flags.DEFINE_integer('steps', 400, 'Of the attack that optimizes.')
flags.mark_flag_as_required('out')


def protections(clip: float, noises: Sequence[float]) -> list[Any]:
  """The rows: as it is, compressed, summed up, clipped and noised.

  Args:
    clip: The clipping norm.
    noises: Noise multipliers of one message.
  """
  from . import inversion
  from fmtl_jax import RoundSettings
  from fmtl_jax import compression
  from fmtl_jax import privacy

  def coded(name, codec, **settings):
    codecs: dict[str, Any] = {'common': compression.get(codec, **settings)}
    return inversion.Protection(name, RoundSettings(compression=codecs))

  def private(noise):
    name = f'clipped, noise {noise:g}' if noise else 'clipped'
    of_rounds = privacy.ClientPrivacy(
      clipping_norm=clip, noise_multiplier=noise, sampling='fixed'
    )
    return inversion.Protection(name, RoundSettings(privacy=of_rounds))

  return [
    inversion.Protection('as it is', RoundSettings()),
    coded('EDEN, 2 bits', 'eden', bits=2),
    coded('EDEN, 1 bit', 'eden', bits=1),
    coded('QSGD, 2 bits', 'qsgd', bits=2),
    coded('top-k, 1 %', 'top_k', share=0.01),
    *(
      inversion.Protection(f'secure sum of {count}', RoundSettings(), count)
      for count in (4, 20, 100)
    ),
    *map(private, noises),
  ]


def draw(
  path: pathlib.Path,
  true: np.ndarray,
  rows: Mapping[str, tuple[np.ndarray, str]],
  chosen: np.ndarray,
) -> None:
  """Draws images: the true ones, and what was read of them.

  Args:
    path: Of the figure.
    true: `[N, 64]`.
    rows: Reconstructions `[N, 64]` and what is written beside them, by name.
    chosen: Which images are shown.
  """
  from ..reporting import drawing

  shown = {'the images': (true, 'PSNR, recognized'), **rows}
  columns = len(chosen)
  with drawing.figure(path, height=0.62 * len(shown) + 0.5) as figure:
    grid = figure.subplots(
      len(shown),
      columns + 2,
      width_ratios=[2.6, *[1.0] * columns, 2.6],
      squeeze=False,
    )
    for axes, (name, (images, words)) in zip(grid, shown.items(), strict=True):
      weight = 'bold' if images is true else 'normal'
      axes[0].text(
        *(1.0, 0.5, name), va='center', ha='right', fontweight=weight
      )
      axes[-1].text(*(0.0, 0.5, words), va='center', ha='left', fontsize=8.5)
      for image, one in zip(images[chosen], axes[1:-1], strict=True):
        one.imshow(image.reshape(8, 8), cmap='gray_r', vmin=0, vmax=1)
      for one in axes:
        one.set_axis_off()
    drawing.title(
      figure, 'What an attacker reads in the update of a client with one image'
    )


def main() -> int:
  """Attacks all rows, and writes a figure and its numbers."""
  from . import inversion
  from . import outputs
  from ..folders import environments
  from fmtl_jax.data import digits

  folder = pathlib.Path(_OUT.value or '')
  if _IMAGES.value < 1 or _IMAGES.value % 100:
    raise ValueError(
      f'Expected --images to be a multiple of 100, got {_IMAGES.value}.'
    )
  data = digits.load()
  order = np.random.default_rng(_SEED.value).permutation(len(data.features))
  order = order[: _IMAGES.value]
  images, labels = data.features[order], data.strata[order]
  found, figures = {}, {}
  for row in protections(_CLIP.value, [float(x) for x in _NOISES.value]):
    one = inversion.attack(
      *(row, images, labels, data.features),
      seed=_SEED.value,
      steps=_STEPS.value,
    )
    figures[row.name] = {
      'attack': one.by,
      'psnr_mean': float(one.psnr.mean()),
      'recognized_percent': 100 * one.recognized,
    }
    words = f'{one.psnr.mean():.1f} dB, {100 * one.recognized:.0f} %'
    print(f'{row.name}: {words} ({one.by})', flush=True)
    found[row.name] = one.images, words
  folder.mkdir(parents=True, exist_ok=True)
  # The first of each digit.
  chosen = np.unique(labels, return_index=True)[1]
  draw(folder / 'gradient_inversion.png', images, found, chosen)
  outputs.write(
    {
      'rows': figures,
      'mean_digit_psnr': float(inversion.chance(images, data.features).mean()),
      'chance_percent': 100 / len(data.features),
      'config': {
        'seed': _SEED.value,
        'images': _IMAGES.value,
        'clipping_norm': _CLIP.value,
        'noise_multipliers': _NOISES.value,
        'steps': _STEPS.value,
      },
      'environment': environments.environment(),
    },
    str(folder / 'gradient_inversion.json'),
  )
  return 0


if __name__ == '__main__':
  programs.run(main)
