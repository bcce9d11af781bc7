"""A folder in the published layout, and what preparation makes of it."""

import pytest
from made_documents import BPE, cleaning, packing, small_corpus
from rows_of_ids import fetched, prepared

from pico.data.preparation.pipeline import prepare as prepare_text


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A folder in the layout of the published data set, made from text by another run; its tokenizer beside it."""
    root = tmp_path_factory.mktemp("published")
    prepare_text(small_corpus(root / "text"), root / "made", tokenizer=BPE, cleaning=cleaning(), packing=packing(),
                 vocab_size=300, runs=root / "runs")  # fmt: skip
    (root / "rows").mkdir()
    for path in (root / "made" / "train").iterdir():
        (root / "rows" / path.name).write_bytes(path.read_bytes())
    return root


@pytest.fixture(scope="session")
def made(published, tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    provenance = prepared(fetched(published, root))
    return root, provenance
