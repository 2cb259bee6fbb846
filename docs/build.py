"""Builds the documentation site: python docs/build.py

Pages are those of docs/, the parts of WORKSPACE.md and others that they
include, and pages that are made: of algorithms, of public names, of laws, of
config fields. All that is made is below the folder `build/docs`; the site is
in its `html`. Nothing comes from the network, warnings are errors, and in the
end the pages are checked: links, completeness, and that they fetch nothing.

  python docs/build.py --figures    makes the pictures of README.md again
"""

import argparse
import os
import pathlib
import shutil
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Beside docs/, what its pages include.
INCLUDED = ('WORKSPACE.md', 'CHANGELOG.md', 'experiments/benchmarks/README.md')


def write_sources(folder: pathlib.Path) -> None:
  """Writes all pages and pictures that Sphinx reads.

  Args:
    folder: New; the sources are in its `source`, files that they include lie
      beside it as they lie beside docs/.
  """
  from docs.making import algorithm_pages
  from docs.making import api_pages
  from docs.making import law_pages
  from docs.making import leaving_pages
  from docs.making import notebook_pages
  from docs.making import pictures
  from docs.making import settings_pages

  source = folder / 'source'
  ignored = shutil.ignore_patterns(
    'making', '__init__.py', 'build.py', '__pycache__'
  )
  shutil.copytree(ROOT / 'docs', source, ignore=ignored)
  for name in INCLUDED:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / name, folder / name)
  laws = list(law_pages.laws())
  made = {
    **algorithm_pages.pages(laws),
    **api_pages.pages(),
    **law_pages.pages(laws),
    **leaving_pages.pages(),
    **settings_pages.pages(),
    **notebook_pages.pages(ROOT / 'notebooks', source / 'notebooks'),
  }
  for name, text in made.items():
    path = source / f'{name}.md'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
  pictures.draw_all(source)


def main() -> int:
  """Builds and checks the site, or draws the pictures of README.md."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--figures', action='store_true')
  parser.add_argument('--folder', default=str(ROOT / 'build' / 'docs'))
  arguments = parser.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  os.environ['FMTL_JAX_ROOT'] = str(ROOT)
  sys.path.insert(0, str(ROOT))
  import experiments  # noqa: F401, which gives its modules both names.

  if arguments.figures:
    from docs.making import pictures

    pictures.draw_for_readme(ROOT / 'docs' / 'figures')
    return 0
  from docs.making import checks
  from sphinx.cmd import build

  begin = time.perf_counter()
  folder = pathlib.Path(arguments.folder)
  shutil.rmtree(folder, ignore_errors=True)
  write_sources(folder)
  html = folder / 'html'
  code = build.main(
    [
      *('-b', 'html', '-W', '--keep-going', '-q'),
      *('-d', str(folder / 'doctrees'), str(folder / 'source'), str(html)),
    ]
  )
  if code:
    return code
  problems = checks.problems(html)
  for problem in problems:
    print(problem, file=sys.stderr)
  if problems:
    return 1
  pages = len(list(html.rglob('*.html')))
  seconds = time.perf_counter() - begin
  print(f'{pages} pages in {html}, {seconds:.0f} s.')
  return 0


if __name__ == '__main__':
  sys.exit(main())
