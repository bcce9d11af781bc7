"""reports/data.html: the documents' sources, the reasons for which some are dropped, and statistics of the rest."""

import re
from typing import Any

from pico.report.figures.corpus import median_length
from pico.report.figures.drawing import Figure, Painter
from pico.report.pages.rendering import render_page

NAMES = {
    "duplicates_dropped": "exact duplicates",
    "sampled_out": "beyond the domain's share",
    "short": "too short",
    "long": "too long",
    "control": "too many control characters",
    "letters": "too few letters and digits",
    "language": "other languages",
    "cleaned_duplicate": "equal after cleaning",
    "near_duplicate": "near-duplicates",
}
"""Reasons for which documents are dropped, in words; others are shown by their keys."""
FURTHER = (
    ("changed_by_cleaning", "Texts changed by cleaning"),
    ("repetitions", "Repetitions in training"),
    ("bytes_read", "Bytes fetched"),
    ("bytes", "Bytes used"),
    ("tokens", "Tokens"),
    ("bytes_per_token", "Bytes per token"),
    ("train_tokens", "Training tokens"),
    ("heldout_tokens", "Held-out tokens"),
    ("heldout_rows", "Held-out rows scored"),
    ("tinsy_rows", "Of them for learning dynamics"),
)
"""Other counts of provenance.json that are shown where they are there."""
UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that a page cannot hold, or that would turn the text around them."""


def render_data(painter: Painter, figures: list[Figure]) -> str:
    """Returns the page as HTML."""
    suite = painter.suite
    profile = suite.profile.get("domains", {})
    width = 2 ** (1 / suite.profile.get("length_bins_per_octave", 1))
    return render_page(
        "data.html.j2",
        suite,
        figures={figure.key: figure for figure in figures},
        legend=painter.legend,
        domains=sorted(suite.provenance.get("domains", {})),
        steps=steps(suite.provenance),
        further=further(suite.provenance),
        profile=dict(sorted(profile.items())),
        medians={name: round(median_length(entry, width)) for name, entry in profile.items() if entry["lengths"]},
        classes=[kind for kind in next(iter(profile.values()), {"characters": {}})["characters"] if kind != "all"],
        samples={name: [seen(one["text"]) for one in entry["samples"]] for name, entry in sorted(profile.items())},
        gates=[gate for gate in suite.gates if str(gate.get("gate", "")).startswith("documents.")],
    )


def dropped(entry: dict[str, Any]) -> dict[str, int]:
    """Returns the documents of an entry of provenance.json that are not used, by reason, in the order of NAMES.

    Any count named `..._dropped` or `..._out` is one, but those of tokens and rows; and all in `dropped`.
    """
    found = {
        key: value
        for key, value in entry.items()
        if isinstance(value, int) and re.fullmatch(r"(?!tail_|heldout_).*(_dropped|_out)", key)
    }
    found |= entry.get("dropped", {})
    return {key: found[key] for key in [*NAMES, *sorted(found)] if key in found}


def steps(provenance: dict[str, Any]) -> list[tuple[str, dict[str, int], str]]:
    """Returns (name, documents by domain with `total`, kind) from those fetched to those used; kind: `sum` or `less`.

    Documents that are not accounted for, of which there should be none, have a line of their own.
    """
    entries = {**provenance.get("domains", {}), "total": provenance.get("total", {})}
    entries = {name: entry for name, entry in entries.items() if "documents_read" in entry}
    if not entries:
        return []
    out = {name: dropped(entry) for name, entry in entries.items()}

    def line(key: str) -> dict[str, int]:
        return {name: entry.get(key, 0) for name, entry in entries.items()}

    found = [("Fetched", line("documents_read"), "sum")]
    for reason in dict.fromkeys(reason for counts in out.values() for reason in counts):
        counts = {name: one.get(reason, 0) for name, one in out.items()}
        found.append((NAMES.get(reason, reason.replace("_", " ")), counts, "less"))
    missing = {
        name: entry["documents_read"] - sum(out[name].values()) - entry["documents"] for name, entry in entries.items()
    }
    if any(missing.values()):
        found.append(("not accounted for", missing, "less"))
    found.append(("Used", line("documents"), "sum"))
    if all("train_documents" in entry for entry in entries.values()):
        found += [
            ("of them trained on", line("train_documents"), ""),
            ("of them held out", line("heldout_documents"), ""),
        ]
    return found


def further(provenance: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns (name, value by domain with `total`) of FURTHER, and of personal data removed from texts."""
    entries = {**provenance.get("domains", {}), "total": provenance.get("total", {})}
    found = [
        (name, {domain: entry.get(key) for domain, entry in entries.items()})
        for key, name in FURTHER
        if any(key in entry for entry in entries.values())
    ]
    for kind in dict.fromkeys(kind for entry in entries.values() for kind in entry.get("redacted", {})):
        counts = {domain: entry.get("redacted", {}).get(kind) for domain, entry in entries.items()}
        found.append((f"Redacted: {kind}", counts))
    return found


def seen(text: str) -> str:
    """Returns text as it can be shown, with replacement characters for what cannot."""
    return UNSEEN.sub("\ufffd", text)
