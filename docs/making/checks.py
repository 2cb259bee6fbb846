"""Checks of a site that was built: links, completeness, no network."""

from collections.abc import Iterable, Iterator
from html import parser
import pathlib
from urllib import parse
import zlib

# Attributes whose address a browser fetches by itself.
_FETCHED = {
  ('script', 'src'),
  ('img', 'src'),
  ('link', 'href'),
  ('iframe', 'src'),
  ('source', 'src'),
}
_NOT_FETCHED = {'canonical', 'next', 'prev', 'search', 'index', 'author'}


class Page(parser.HTMLParser):
  """What a page links to, has as targets, and fetches."""

  def __init__(self, text: str):
    """Reads the text."""
    super().__init__()
    self.links: list[str] = []
    self.fetched: list[str] = []
    self.targets: set[str] = set()
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    """See `html.parser.HTMLParser`."""
    given = dict(attrs)
    for key in ('id', 'name'):
      if given.get(key):
        self.targets.add(given[key])
    for key, value in attrs:
      if (tag, key) == ('a', 'href') and value is not None:
        self.links.append(value)
      elsewhere = tag == 'link' and given.get('rel') in _NOT_FETCHED
      if (tag, key) in _FETCHED and value and not elsewhere:
        self.fetched.append(value)


def problems(html: pathlib.Path) -> list[str]:
  """What is wrong with a site, a sentence each.

  Args:
    html: Its folder.
  """
  from docs.making import algorithm_pages
  from docs.making import api_pages

  pages = {
    path.resolve(): Page(path.read_text(encoding='utf-8'))
    for path in html.rglob('*.html')
    if '_static' not in path.parts  # The theme's own.
  }
  inventory = (html / 'objects.inv').read_bytes()
  return [
    *broken_links(pages),
    *from_elsewhere(pages),
    *missing('public name', api_pages.needed(), names(inventory, 'py:')),
    *missing('page', algorithm_pages.names(), names(inventory, 'std:doc')),
  ]


def broken_links(pages: dict[pathlib.Path, Page]) -> Iterator[str]:
  """Links inside of a site whose file or anchor is not there."""
  for path, page in sorted(pages.items()):
    for link in dict.fromkeys(page.links + page.fetched):
      address = parse.urlsplit(link)
      if address.scheme or address.netloc:
        continue
      name = parse.unquote(address.path)
      target = (path.parent / name).resolve() if name else path
      anchor = parse.unquote(address.fragment)
      if target not in pages:
        if not target.is_file():
          yield f'{path.name}: the link {link!r} leads to no file.'
      elif anchor and anchor not in pages[target].targets:
        yield f'{path.name}: the link {link!r} leads to no anchor.'


def from_elsewhere(pages: dict[pathlib.Path, Page]) -> Iterator[str]:
  """Scripts, styles and pictures that are not in the site."""
  for path, page in sorted(pages.items()):
    for address in page.fetched:
      if parse.urlsplit(address).netloc:
        yield f'{path.name} fetches {address!r}; put it into docs/static.'


def names(inventory: bytes, role: str) -> set[str]:
  """The names in an `objects.inv` of Sphinx.

  Args:
    inventory: Four lines, and compressed ones: name, role, priority, ...
    role: What roles begin with.
  """
  packed = inventory.split(b'\n', 4)[4]
  lines = zlib.decompress(packed).decode().splitlines()
  entries = (line.split(' ') for line in lines)
  return {entry[0] for entry in entries if entry[1].startswith(role)}


def missing(kind: str, needed: Iterable[str], found: set[str]) -> Iterator[str]:
  """What there has to be and is not."""
  for name in needed:
    if name not in found:
      yield f'Expected a {kind} {name} in the site, got none.'
