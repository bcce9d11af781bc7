"""Cleaning, one document at a time: Unicode normal form, personal data and keys taken out, unfit documents found.

Each function is pure. Domains that `cleaning.verbatim_domains` names keep their text to the byte: in code, a letter in
another normal form is another string, and an address in a licence is part of it.
"""

import itertools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from pico.config import Cleaning
from pico.data.tokens.documents import Use

EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
"""The addresses in use: RFC 5321 without quoted names and address literals."""

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
"""Where it is worth asking the phonenumbers library."""

PROFILED = 2**18
"""Characters whose kinds are counted at a time; they take twenty bytes each."""

LETTER, CONTROL, SPACE = 1, 2, 4
"""Kinds of characters, as bits."""


def clean(text: str, settings: Cleaning, domain: str) -> tuple[str, Counter[str]]:
    """The text in its normal form, without what is to be redacted; and how often each kind of that was found."""
    found: Counter[str] = Counter()
    if domain in settings.verbatim_domains:
        return text, found
    text = normalised(text, settings.unicode)
    for kind in settings.redact:
        text = REDACTIONS[kind](text, found, settings.phone_region)
    return text, found


def normalised(text: str, form: str) -> str:
    """In Unicode normal form NFC or NFKC; or repaired by ftfy (text decoded with the wrong table), then NFC."""
    if form == "none" or text.isascii():
        return text
    if form == "ftfy":
        import ftfy

        # Only what is certainly damage: quotes, ligatures, wide letters and markup are the author's.
        return ftfy.fix_text(text, unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False,
                             fix_character_width=False, fix_line_breaks=False, normalization="NFC")  # fmt: skip
    return text if unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)  # type: ignore[arg-type]


def _redact_email(text: str, found: Counter[str], region: str) -> str:
    return _replace(EMAIL, "email", text, found) if "@" in text else text


def _redact_key(text: str, found: Counter[str], region: str) -> str:
    return _replace(KEY, "key", text, found)


def _redact_phone(text: str, found: Counter[str], region: str) -> str:
    """Numbers that are valid where they say they are, or in `region` where they do not say."""
    if not PHONE.search(text):
        return text
    import phonenumbers

    pieces, end = [], 0
    for match in phonenumbers.PhoneNumberMatcher(text, region, max_tries=sys.maxsize):
        pieces += [text[end : match.start], "<phone>"]
        end = match.end
        found["phone"] += 1
    return "".join([*pieces, text[end:]])


REDACTIONS: dict[str, Callable[[str, Counter[str], str], str]] = {
    "email": _redact_email,
    "phone": _redact_phone,
    "key": _redact_key,
}


def _replace(pattern: re.Pattern[str], kind: str, text: str, found: Counter[str]) -> str:
    text, count = pattern.subn(f"<{kind}>", text)
    if count:
        found[kind] += count
    return text


def judge(texts: Sequence[str], settings: Cleaning, domain: str) -> np.ndarray:
    """The use of each text by its own length, characters and language: TRAIN, or why it is dropped; uint8."""
    uses = np.full(len(texts), Use.TRAIN, np.uint8)
    if not len(texts):
        return uses
    sizes = np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))
    letters, control, visible, characters = profile(texts)
    # In rising order of what is said: a text that is too short is only that.
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


def profile(texts: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Counts of each text's characters, int64 (n,): letters, marks and digits; control; visible; all."""
    kinds = character_kinds()
    counts = np.zeros((4, len(texts)), np.int64)
    for number, text in enumerate(texts):
        for start in range(0, len(text), PROFILED):
            found = kinds[np.frombuffer(text[start : start + PROFILED].encode("utf-32-le"), np.uint32)]
            by_kind = np.bincount(found, minlength=8)
            counts[:, number] += by_kind[LETTER], by_kind[CONTROL], len(found) - by_kind[SPACE], len(found)
    return counts[0], counts[1], counts[2], counts[3]


@lru_cache(maxsize=1)
def character_kinds() -> np.ndarray:
    """The kind of every code point: uint8, (0x110000,). Control as in the gates: not tab and line ends; U+FFFD too."""
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
    kinds[0x1C:0x20] = CONTROL  # separators of files and records count as white space for Python
    kinds[0x85] = CONTROL
    kinds[0x0B:0x0D] = CONTROL
    kinds[0xFFFD] = CONTROL
    return kinds
