#!/usr/bin/env bash
# tensorflow_datasets 4.9.10 without TensorFlow, as it is installed: a data set
# is prepared as array_record and read again. Where its examples take more than
# 1000 MB, preparing it fails for want of TensorFlow, when all of it has been
# generated: what shuffles them spills to disk, and its files are TensorFlow's.
# `disable_shuffling=True` does not help. Cure: prepare it with TensorFlow
# installed once, or raise `tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE`
# on a machine with the memory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  numpy==2.2.6 'setuptools<81' array-record==0.8.1 tensorflow-datasets==4.9.10
cat > "$folder/run.py" <<'EOF'
import sys

import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

MEGABYTES = 4  # Of an example.


class Toy(tfds.core.GeneratorBasedBuilder):
  """As many megabytes as it is told."""

  VERSION = tfds.core.Version('1.0.0')
  pkg_dir_path = None
  megabytes = 0

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict({'text': tfds.features.Text()}),
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for number in range(self.megabytes // MEGABYTES):
      yield number, {'text': b'x' * (MEGABYTES << 20)}


def prepare(megabytes):
  """What becomes of a data set of this size."""
  Toy.megabytes = megabytes
  folder = f'{sys.argv[1]}/{megabytes}_{shuffle.MAX_MEM_BUFFER_SIZE}'
  toy = Toy(data_dir=folder, file_format='array_record')
  try:
    toy.download_and_prepare()
  except ImportError as error:
    return 'tensorflow' in str(error).lower() and 'no TensorFlow'
  return f'{len(toy.as_data_source()["train"])} examples'


found = [prepare(960), prepare(1040)]
shuffle.MAX_MEM_BUFFER_SIZE = sys.maxsize
found.append(prepare(1040))
print('seen:', ', '.join(found))
EOF
seen=$("$folder/venv/bin/python" "$folder/run.py" "$folder" 2>"$folder/log" \
  | grep '^seen:') || { tail -n 5 "$folder/log"; exit 1; }
echo "of 960 and 1040 MB, and of 1040 MB with room for them: $seen"
[ "$seen" = 'seen: 240 examples, no TensorFlow, 260 examples' ] \
  || { echo 'CHANGED'; exit 1; }
echo 'as described'
