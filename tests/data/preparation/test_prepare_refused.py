"""Documents that cannot be prepared are refused: the error names the fault, the place and the remedy."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_documents import made_up, packing, write_documents
from prepared_corpus import prepare

from pico.errors import PicoError


def one_domain(tmp_path, texts):
    return write_documents(tmp_path / "documents", {"own": ("mine", texts)})


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (["a", "b", "c"], {}, r"too small for one training row: \d+ tokens in 2 training documents.*seq_len \+ 1 = 17"),
        (["only one, twice"] * 2, {}, "domain 'mine' has 1 documents after deduplication"),
        ([], {}, "domain 'mine' has 0 documents"),
        (made_up(5, 1), {"heldout_fraction": 1.0}, "all 5 documents of domain 'mine' are held out"),
        (
            made_up(5, 1),
            {"mixture": {"theirs": 1.0}},
            r"mixture names \['theirs'\], the corpus has the domains \['mine'\]",
        ),
    ],
)
def test_too_little_text_is_refused_with_numbers_and_leaves_no_out(tmp_path, texts, changes, message):
    documents = one_domain(tmp_path, texts)
    with pytest.raises(PicoError, match=message) as caught:
        prepare(documents, tmp_path / "tokens", packing=packing(**changes))
    assert caught.value.mend
    assert not (tmp_path / "tokens").exists()


def test_an_empty_domain_is_named(tmp_path):
    documents = write_documents(tmp_path / "documents", {"own": ("mine", made_up(9, 1)), "void": ("nothing", [])})
    with pytest.raises(PicoError, match=r"domain 'nothing' has 0 documents[\s\S]*void\.parquet"):
        prepare(documents, tmp_path / "tokens")


def test_missing_and_torn_documents_are_named(tmp_path):
    with pytest.raises(PicoError, match=r"sources\.json does not exist"):
        prepare(tmp_path / "documents", tmp_path / "tokens")
    documents = one_domain(tmp_path, made_up(5, 1))
    (documents / "own.parquet").write_bytes(b"PAR1")
    with pytest.raises(PicoError, match=r"source 'own' cannot be read[\s\S]*own\.parquet"):
        prepare(documents, tmp_path / "tokens")
    pq.write_table(pa.table({"id": ["a"]}), documents / "own.parquet")
    with pytest.raises(PicoError, match="source 'own' cannot be read"):
        prepare(documents, tmp_path / "tokens")


def test_a_tokenizer_larger_than_the_embedding_is_refused(corpus, tmp_path):
    with pytest.raises(PicoError, match=r"300 entries, the models' embedding only 299"):
        prepare(corpus, tmp_path / "tokens", vocab_size=299)
