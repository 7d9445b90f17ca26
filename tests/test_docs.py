"The site that pandoc makes where Quarto is missing: complete, without a dead link, and nothing is fetched from outside."
import json
import sys

import pytest

from project import NBS, ROOT, notebooks

sys.path.insert(0, str(ROOT / 'tools'))

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    from docs import build
    out = tmp_path_factory.mktemp('site')
    build(out)
    return out

def test_every_notebook_has_a_page(site):
    for nb in notebooks(): assert (site / nb.path.relative_to(NBS)).with_suffix('.html').is_file()

def test_links_pictures_and_resources(site):
    from docs import faults
    assert not faults(site), '\n'.join(faults(site))

def test_faults_are_found(tmp_path):
    from docs import faults
    (tmp_path / 'a.html').write_text('<link href="https://x.org/a.css"><a href="b.html">b</a><a id="i" href="#j">j</a><img src="a.html"><a href="https://x.org">x</a>')
    assert len(faults(tmp_path)) == 4

def test_hidden_cells_stay_hidden(site):
    page = (site / 'index.html').read_text()
    assert '#|' not in page and 'import numpy' not in page and '<img' in page

def test_search_knows_every_page_and_export(site):
    pages = json.loads((site / 'search.js').read_text().removeprefix('window.PAGES = '))
    urls = {p[2] for p in pages}
    assert {nb.path.relative_to(NBS).with_suffix('.html').as_posix() for nb in notebooks()} <= urls
    assert any('#api-' in u for u in urls)

def test_quarto_gets_the_same_order():
    import yaml
    from docs import sidebar, site
    items = yaml.safe_load(sidebar())['website']['sidebar']['contents']
    flat = [x for i in items for x in ([i] if isinstance(i, str) else i['contents'])]
    assert flat == [p.rel.as_posix() for _, pages in site() for p in pages if p.cells] and len(flat) == len(notebooks())

def test_quarto_runs_nothing():
    "nbdev would execute imports and exports to document them; a lesson cell that imports would then run alone, and fail."
    from nbdev.config import get_config
    skipped = get_config(ROOT)['skip_procs'].split(',')
    assert {'exec_show_docs', 'add_show_docs', 'rm_export'} <= set(skipped)
