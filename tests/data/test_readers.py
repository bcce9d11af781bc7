"""Readers: every format gives the texts that were put in, compressed or not, or an error that says what is wrong."""

import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pico.data.sources import reading
from pico.data.sources.readers import documents, find_reader
from pico.data.sources.reading import File, unpacked_limit
from pico.errors import PicoError

TEXTS = ["Plain.", 'Two\nlines, with "quotes".', "Æøå — 中文 🙂", ""]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}
text = st.text(st.characters(exclude_categories=["Cs"]))


def read(data: bytes, name: str, reader: str = "auto", **options) -> list[str]:
    return list(documents(io.BytesIO(data), File(name, **options), find_reader(reader, name)))


def as_jsonl(texts: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({"n": number, field: text}) + "\n" for number, text in enumerate(texts)).encode()


def as_csv(texts: list[str], delimiter: str = ",") -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([["n", "text"], *([n, text] for n, text in enumerate(texts))])
    return file.getvalue().encode()


def as_parquet(texts: list[str], kind: pa.DataType | None = None) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(texts, kind or pa.string())}), file)
    return file.getvalue()


@pytest.mark.parametrize("ending", COMPRESS)
def test_every_format_gives_the_texts_back_whatever_the_compression(ending: str) -> None:
    pack = COMPRESS[ending]
    assert read(pack(as_jsonl(TEXTS)), f"d.jsonl{ending}") == TEXTS
    assert read(pack(as_csv(TEXTS)), f"d.csv{ending}") == TEXTS
    assert read(pack(as_csv(TEXTS, "\t")), f"d.tsv{ending}") == TEXTS
    assert read(pack(as_parquet(TEXTS)), f"d.parquet{ending}") == TEXTS
    assert read(pack(TEXTS[2].encode()), f"D.TXT{ending}") == [TEXTS[2]]
    assert read(pack(b"# Title\n"), f"d.md{ending}") == ["# Title\n"]


@given(st.lists(text, max_size=5))
def test_any_text_survives_jsonl_and_parquet(texts: list[str]) -> None:
    assert read(as_jsonl(texts), "d.jsonl") == texts
    assert read(as_parquet(texts), "d.parquet") == texts


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_text_may_be_stored_in_any_way(kind: pa.DataType) -> None:
    assert read(as_parquet(TEXTS, kind), "d.parquet") == TEXTS


def test_several_compressed_frames_one_after_the_other_are_read_to_the_end() -> None:
    halves = [as_jsonl(["one"]), as_jsonl(["two"])]
    for ending in (".gz", ".xz", ".zst"):
        assert read(b"".join(map(COMPRESS[ending], halves)), f"d.jsonl{ending}") == ["one", "two"], ending


def test_a_parquet_file_on_disk_is_read_in_batches(tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(5000)]
    path = tmp_path / "d.parquet"
    path.write_bytes(as_parquet(texts))
    with open(path, "rb") as stream:
        assert list(documents(stream, File(str(path)))) == texts


def test_null_is_an_empty_document_and_blank_lines_are_none() -> None:
    assert read(b'{"text": null}\n\n{"text": "x"}\n', "d.jsonl") == ["", "x"]
    assert read(as_parquet([None, "x"]), "d.parquet") == ["", "x"]  # type: ignore[list-item]


def test_byte_order_marks_and_windows_line_ends_are_no_text() -> None:
    assert read(b"\xef\xbb\xbfone\r\ntwo", "d.txt") == ["one\ntwo"]
    assert read(b"\xef\xbb\xbf" + as_jsonl(["x"]), "d.jsonl") == ["x"]
    assert read(b"\xef\xbb\xbftext,n\r\nx,1\r\n", "d.csv") == ["x"]


def test_a_field_may_be_longer_than_the_csv_modules_limit() -> None:
    assert read(as_csv(["x" * 500_000]), "d.csv") == ["x" * 500_000]


@pytest.mark.parametrize(
    ("data", "name", "offset"),
    [
        (b"abc\xe9def", "d.txt", 3),
        (b"\xef\xbb\xbfabc\xff", "d.txt", 6),
        (as_jsonl(["x"]) + b'{"text": "\xe9"}\n', "d.jsonl", len(as_jsonl(["x"])) + 10),
        (b"text\nfine\n\xe9\n", "d.csv", 10),
    ],
)
def test_what_is_not_utf8_is_named_by_file_and_byte_offset(data: bytes, name: str, offset: int) -> None:
    assert data[offset] in (0xE9, 0xFF)
    with pytest.raises(PicoError, match=rf"{name} is not UTF-8: byte 0x(e9|ff) at offset {offset}\b"):
        read(data, name)


def test_parquet_that_is_not_utf8_is_named_by_row() -> None:
    column = pa.array([b"fine", b"\xe9"], pa.binary()).view(pa.string())
    file = io.BytesIO()
    pq.write_table(pa.table({"text": column}), file)
    with pytest.raises(PicoError, match=r"d\.parquet row 1 is not UTF-8: byte 0xe9"):
        read(file.getvalue(), "d.parquet")


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (as_jsonl(["x"], "body"), "d.jsonl", r"no text column 'text' in line 1\n  where: present: n, body"),
        (b"title,body\na,b\n", "d.csv", r"no text column 'text'\n  where: present: title, body"),
        (b"", "d.csv", r"no text column 'text'\n  where: present: none"),
        (b"[1]\n", "d.jsonl", "no text column"),
        (b'{"text": 3}\n', "d.jsonl", "line 1: 'text' is int, not text"),
        (b'{"text": "x"}\n{"text": \n', "d.jsonl", "line 2 is not JSON"),
        (b'n,text\n1,"x\n', "d.csv", "is not CSV: unexpected end of data"),
        (b"n,text\n1\n", "d.csv", "line 2: 1 columns, but the header has 2"),
        (b"not parquet", "d.parquet", "cannot be read"),
        (as_parquet([[1, 2]], pa.list_(pa.int32())), "d.parquet", "is list<.*not text"),  # type: ignore[list-item]
        (b"x", "d.pdf", r"no reader is known for files that end in '\.pdf'"),
        (b"x", "LICENCE", "no reader is known for files that end in 'nothing'"),
        (b"not gzip", "d.txt.gz", "cannot be read"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong_and_the_mend(data: bytes, name: str, message: str) -> None:
    with pytest.raises(PicoError, match=message) as raised:
        read(data, name)
    assert name in str(raised.value)
    assert raised.value.mend


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_a_compressed_file_that_is_cut_short_is_refused(ending: str) -> None:
    data = COMPRESS[ending](as_jsonl([f"document {number}" for number in range(10_000)]))
    with pytest.raises(PicoError, match=rf"d\.jsonl{ending} cannot be read"):
        read(data[: len(data) // 2], f"d.jsonl{ending}")


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_a_bomb_within_an_archive_is_refused_by_name(ending: str) -> None:
    data = COMPRESS[ending](bytes(1_000_001))
    with pytest.raises(PicoError, match=rf"d\.txt{ending} was refused: it unpacks to more than 1000000 bytes"):
        read(data, f"d.txt{ending}", max_bytes=1_000_000)
    assert len(read(COMPRESS[ending](bytes(1_000_000)), f"d.txt{ending}", max_bytes=1_000_000)[0]) == 1_000_000


def dictionary_bomb(rows: int = 100_000, length: int = 10_000_000) -> bytes:
    """One text, and `rows` rows that name it: a kilobyte that comes to a terabyte."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * length]))
    file = io.BytesIO()
    pq.write_table(pa.table({"text": column}), file, compression="zstd", store_schema=False)
    return file.getvalue()


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_parquet_bomb_is_refused_by_name_before_it_fills_the_memory(ending: str) -> None:
    data = COMPRESS[ending](dictionary_bomb())
    assert len(data) < 10_000
    limit = unpacked_limit(len(data), 200.0)
    with pytest.raises(
        PicoError, match=rf"d\.parquet{ending} was refused: it unpacks to more than {limit} bytes"
    ) as raised:
        read(data, f"d.parquet{ending}", max_bytes=limit)
    assert "corpus.max_expansion" in raised.value.mend


def test_a_parquet_file_that_says_that_it_is_a_bomb_is_not_even_opened(monkeypatch) -> None:
    data = as_parquet(["x" * 100_000_000])
    assert len(data) < 10_000_000
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    with pytest.raises(PicoError, match=r"d\.parquet was refused: it unpacks to more than"):
        read(data, "d.parquet", max_bytes=unpacked_limit(len(data), 2.0))


def test_what_is_small_may_unpack_to_any_ratio_and_large_files_to_the_ratio_that_is_set() -> None:
    assert unpacked_limit(1, 200.0) == 2**26
    assert unpacked_limit(10**9, 200.0) == 200 * 10**9
    texts = ["the same line over and over " * 1000] * 500  # 14 MB in a few kB: no bomb
    for name, data in (("d.parquet", as_parquet(texts)), ("d.jsonl.zst", COMPRESS[".zst"](as_jsonl(texts)))):
        assert read(data, name, max_bytes=unpacked_limit(len(data), 200.0)) == texts


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("d.txt", b"x" * 1001, r"d\.txt"),
        ("d.txt.gz", gzip.compress(b"x" * 1001), r"d\.txt\.gz"),
        ("d.jsonl", as_jsonl(["short", "x" * 1001]), r"d\.jsonl line 2"),
        ("d.csv", as_csv(["short", "x" * 1001]), r"d\.csv line 3"),
        ("d.csv", b'text\n"' + b"a line of a quote that never ends\n" * 50, r"d\.csv line \d+"),
        ("d.parquet", as_parquet(["short", "x" * 1001]), r"d\.parquet row 1"),
    ],
)
def test_a_text_longer_than_any_document_is_refused_by_name_without_reading_on(name, data, named, monkeypatch) -> None:
    """With a limit of a thousand bytes for the real one of 128 MiB."""
    for module in ("reading", "readers"):
        monkeypatch.setattr(f"pico.data.sources.{module}.MAX_TEXT", 1000)
    with pytest.raises(
        PicoError, match=named + ".*(is longer than 1000 bytes|field larger than field limit)"
    ) as raised:
        read(data, name)
    assert raised.value.mend


def test_a_line_without_an_end_is_read_no_further_than_the_longest_text(monkeypatch) -> None:
    monkeypatch.setattr(reading, "MAX_TEXT", 1000)

    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            self.given += len(buffer)
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    for name in ("d.txt", "d.jsonl", "d.csv"):
        endless = Endless()
        with pytest.raises(PicoError, match=rf"{name}.* is longer than 1000 bytes"):
            list(documents(io.BufferedReader(endless, 512), File(name)))
        assert endless.given < 10_000


def test_an_unknown_reader_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(PicoError, match=r"no reader is called 'txt'(.|\n)*dictionary, drama(.|\n)*tokens"):
        read(b"", "d.txt", "txt")


def test_a_conversation_has_a_line_a_turn() -> None:
    def turn(*texts: str) -> list[dict[str, str]]:
        return [{"text": text, "sender": "s", "timestamp": "t"} for text in texts]

    data = {"id-1": {"messages": [turn("Hello", "how are\nyou?"), turn("  "), turn("Fine")], "ratings": {}}}
    assert read(json.dumps(data).encode(), "d.json", "chitchat") == ["Hello how are you?\nFine"]


def test_a_dictionary_entry_has_its_headword_above_its_definitions() -> None:
    def part(*texts: str) -> dict:
        return {"part_of_speech": "n.", "definitions": [{"text": text, "examples": []} for text in texts]}

    entries = {
        "dog": {"entry": "dog", "pos": [part("A quadruped.", "A fellow."), part("A fellow.", "To  hunt.")]},
        "bare": {"entry": "bare", "pos": [part(" ")]},
    }
    texts = read(json.dumps(entries).encode(), "d.json", "dictionary")
    assert texts == ["dog\n A quadruped.\n A fellow.\n To hunt.", ""]


def test_an_article_has_its_title_above_it() -> None:
    articles = {"A": {"title": "A", "extract": "First letter. "}, "B": {"title": "B", "extract": ""}}
    assert read(json.dumps(articles).encode(), "d.json", "encyclopedia") == ["A\n\nFirst letter.", ""]


def test_a_play_is_read_by_scenes_without_markdown() -> None:
    play = (
        "# Hamlet\n\n## PROLOGUE\n\n**CHORUS**  \nFor us.\n\n## ACT I\n\n### SCENE I. A platform.\n\n"
        "_Enter BERNARDO and\nFRANCISCO_\n\n**BERNARDO**  \n__\\[Aside]_  \nWho's there,'\\--  \nand *where*?\n\n"
        "#### SCENE II. A room.\n\n[Within]_  \nNay.\n\n# EPILOGUE\n\n**CHORUS**\nThe end.\n"
    )
    assert read(play.encode(), "plays/hamlet.md", "drama") == [
        "Hamlet\nPROLOGUE\n\nCHORUS\nFor us.",
        "Hamlet\nACT I\nSCENE I. A platform.\n\n[Enter BERNARDO and\nFRANCISCO]\n\nBERNARDO\n[Aside]\n"
        "Who's there,'--\nand [where]?",
        "Hamlet\nACT I\nSCENE II. A room.\n\n[Within]\nNay.",
        "Hamlet\nEPILOGUE\n\nCHORUS\nThe end.",
    ]
    assert read(b"## ACT I\n\nText", "plays/measure-for-measure.md", "drama") == ["Measure For Measure\nACT I\n\nText"]


def test_a_service_is_one_document_without_html_that_says_nothing_twice() -> None:
    page = "<p>The token for the next page.</p>"
    model = {
        "metadata": {"serviceFullName": "Tiny Queue"},
        "documentation": "<fullname>Tiny</fullname> <p>A <i>queue</i>.</p>",
        "operations": {
            "Send": {"input": {"shape": "SendRequest"}, "documentation": "<p>Sends&nbsp;a\n message &amp; waits.</p>"},
            "Purge": {"input": {"shape": "PurgeRequest"}},
        },
        "shapes": {
            "SendRequest": {"members": {"Body": {"documentation": "<p>One of:</p> <ul> <li> <p>text</p> </li> <li> "
                                                 "<p><code>a&lt;b</code></p> </li> </ul>"},
                                        "Token": {"documentation": page}, "Bare": {"shape": "String"}}},
            "PurgeRequest": {"members": {"Token": {"documentation": page}}},
            "Message": {"documentation": "<p/>", "members": {"Body": {"documentation": "plain"}}},
            "String": {"type": "string"},
        },
    }  # fmt: skip
    texts = read(gzip.compress(json.dumps(model).encode()), "tiny/2020-01-01/service-2.json.gz", "apidocs")
    assert texts == [
        "Tiny Queue\nTiny\nA queue.\n\n"
        "Send\nSends a message & waits.\nBody: One of:\n- text\n- a<b\nToken: The token for the next page.\n\n"
        "Message\nBody: plain"
    ]


@pytest.mark.parametrize("reader", ["chitchat", "dictionary", "encyclopedia", "apidocs"])
def test_a_special_reader_on_another_file_says_so(reader: str) -> None:
    for data, message in ((b'{"a": 1}', "has not the shape"), (b"[1]", "has not the shape"), (b"text", "is not JSON")):
        with pytest.raises(PicoError, match=rf"d\.json {message}"):
            read(data, "d.json", reader)
