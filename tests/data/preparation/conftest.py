"""A small corpus, and what preparation makes of it."""

import pytest
from made_documents import small_corpus
from prepared_corpus import prepare


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus") / "documents")


@pytest.fixture(scope="session")
def made(corpus, tmp_path_factory):
    """data/tokens/ of the small corpus, and its provenance."""
    target = tmp_path_factory.mktemp("made") / "tokens"
    return target, prepare(corpus, target)
