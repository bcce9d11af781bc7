"""Cleaning, one document at a time: Unicode normal form, personal data and keys taken out, unfit documents found.

Each function is pure. Domains that `cleaning.verbatim_domains` names keep their text to the byte: in code, a letter in
another normal form is another string, and an address in a licence is part of it.
"""

import itertools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pico.config import Cleaning
from pico.data.tokens.documents import Use

EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
"""Addresses as they are in use: RFC 5321 without quoted names and address literals."""

KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]{1,20000}?-----END [A-Z ]*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS
    r"|\bgh[pousr]_[A-Za-z0-9]{36,255}\b|\bgithub_pat_[A-Za-z0-9_]{60,255}\b"  # GitHub
    r"|\bglpat-[A-Za-z0-9_-]{20,64}"  # GitLab
    r"|\bxox[abeoprs]-[A-Za-z0-9-]{10,250}"  # Slack
    r"|\bAIza[0-9A-Za-z_-]{35}"  # Google
    r"|\b[rs]k_live_[0-9A-Za-z]{20,250}\b"  # Stripe
    r"|\bsk-[A-Za-z0-9_-]{32,250}"  # OpenAI and Anthropic
    r"|\bhf_[A-Za-z0-9]{30,64}\b"  # Hugging Face
    r"|\beyJ[A-Za-z0-9_-]{10,4000}\.eyJ[A-Za-z0-9_-]{10,8000}\.[A-Za-z0-9_-]{10,4000}"  # JSON web tokens
)
"""Keys that say by their form what they are, in the forms that their issuers document."""

PHONE = re.compile(r"[+(]?\d[\d\s().\-/]{5,20}\d")
"""Text that may hold a number, so that the phonenumbers library is asked."""

PROFILED = 2**18
"""Characters whose kinds are counted at a time; they take twenty bytes each."""

LETTER, CONTROL, SPACE = 1, 2, 4
"""Kinds of characters, as bits."""


def clean(text: str, settings: Cleaning, domain: str) -> tuple[str, Counter[str]]:
    """Returns the text in its normal form and redacted, and how often each kind of redaction was made."""
    found: Counter[str] = Counter()
    if domain in settings.verbatim_domains:
        return text, found
    text = normalise(text, settings.unicode)
    for kind in settings.redact:
        text, count = redact(text, kind, settings.phone_region)
        if count:
            found[kind] += count
    return text, found


def normalise(text: str, form: str) -> str:
    """Returns the text in Unicode normal form NFC or NFKC; or repaired by ftfy (a wrong decoding), then in NFC."""
    if form == "none" or text.isascii():
        return text
    if form == "ftfy":
        import ftfy

        # Only what is certainly damage: quotes, ligatures, wide letters and markup are the author's.
        return ftfy.fix_text(text, unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False,
                             fix_character_width=False, fix_line_breaks=False, normalization="NFC")  # fmt: skip
    return text if unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)  # type: ignore[arg-type]


def redact(text: str, kind: str, region: str) -> tuple[str, int]:
    """Returns the text with `<kind>` in place of what is of that kind, and how often it was found.

    Telephone numbers are those that are valid in the country that they name, or in `region` where they name none.
    """
    if kind != "phone":
        return {"email": EMAIL, "key": KEY}[kind].subn(f"<{kind}>", text)
    if not PHONE.search(text):
        return text, 0
    import phonenumbers

    pieces, end = [], 0
    for match in phonenumbers.PhoneNumberMatcher(text, region, max_tries=sys.maxsize):
        pieces += [text[end : match.start], "<phone>"]
        end = match.end
    return "".join([*pieces, text[end:]]), len(pieces) // 2


def quality(texts: Sequence[str], settings: Cleaning, domain: str) -> np.ndarray:
    """Returns the use of each text by its own length, characters and language: TRAIN, or a reason to drop it; uint8."""
    uses = np.full(len(texts), Use.TRAIN, np.uint8)
    if not len(texts):
        return uses
    sizes = np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))
    letters, control, visible, characters = count_characters(texts)
    # The last reason that applies is given: a text that is too short is only that.
    if settings.languages is not None and domain not in settings.verbatim_domains:
        from py3langid import classify  # langid.py's model of 97 languages, which lies in the wheel

        uses[[classify(text)[0] not in settings.languages for text in texts]] = Use.LANGUAGE
    uses[letters < settings.min_letter_fraction * visible] = Use.LETTERS
    uses[control > settings.max_control_fraction * characters] = Use.CONTROL
    if settings.max_document_bytes is not None:
        uses[sizes > settings.max_document_bytes] = Use.LONG
    blank = np.fromiter((not text or text.isspace() for text in texts), bool, len(texts))
    uses[(sizes < settings.min_document_bytes) | blank] = Use.SHORT
    return uses


def count_characters(texts: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Counts each text's characters: int64 (n,): letters, marks and digits; control; visible; all."""
    kinds = character_kinds()
    counts = np.zeros((4, len(texts)), np.int64)
    for number, text in enumerate(texts):
        for start in range(0, len(text), PROFILED):
            found = kinds[np.frombuffer(text[start : start + PROFILED].encode("utf-32-le"), np.uint32)]
            by_kind = np.bincount(found, minlength=8)
            counts[:, number] += by_kind[LETTER], by_kind[CONTROL], len(found) - by_kind[SPACE], len(found)
    return tuple(counts)


@lru_cache(maxsize=1)
def character_kinds() -> np.ndarray:
    """Returns the kind of every code point: uint8, (0x110000,). Tab and line ends are no control; U+FFFD is."""
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    # Beyond the first range lie no letters; and of marks only the variation selectors of the second.
    for code in itertools.chain(range(0x323B0), range(0xE0100, 0xE01F0)):
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "LMN":
            kinds[code] = LETTER
        elif character.isspace():
            kinds[code] = SPACE
        elif category == "Cc":
            kinds[code] = CONTROL
    # Python takes separators of files and records, among others, for white space.
    kinds[[0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x1F, 0x85, 0xFFFD]] = CONTROL
    return kinds
