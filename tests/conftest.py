"Fixtures that every test file may ask for. Two workers on two cores: one thread each, and no network."
import os
from pathlib import Path

os.environ.update(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false', MPLBACKEND='Agg')

import pytest

ROOT = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def root(): return ROOT

@pytest.fixture(scope='session')
def data():
    "The folder with the real test data: $ECGNB_DATA, else ../shared/data beside the project; skips the test where there is none."
    for path in (os.environ.get('ECGNB_DATA'), ROOT.parent / 'shared/data'):
        if path and Path(path).is_dir(): return Path(path)
    pytest.skip('no real data: neither $ECGNB_DATA nor ../shared/data is a folder')

@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache folder, for this test only."
    monkeypatch.setenv('ECGNB_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'

@pytest.fixture(scope='module')
def stores(tmp_path_factory):
    "A cache folder for a whole file, apart from those of other workers."
    folder = tmp_path_factory.mktemp('cache')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('ECGNB_CACHE', str(folder))
        yield folder
