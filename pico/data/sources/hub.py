"""Datasets of the Hugging Face hub, or folders in their layout: streamed by `datasets`, only the columns in use."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pico.config import HubDataset, Source
from pico.data.sources.token_rows import ROWS, Part
from pico.data.sources.wheels import DownloadError
from pico.errors import PicoError


def pin(dataset: HubDataset) -> str:
    """Returns the name of a dataset in provenance: `repository@revision split`."""
    return f"{dataset.repository}@{dataset.revision} {' '.join(filter(None, [dataset.config, dataset.split]))}"


def texts(source: Source, dataset: HubDataset) -> Iterator[str]:
    """Yields the documents of a text dataset.

    Raises DownloadError where the hub cannot be reached, PicoError where the split or a column is missing, or a column
    is no text.
    """
    columns = _columns(source, dataset)
    with _named(dataset):
        for row in stream(dataset, columns):
            _check(columns, list(row), dataset)
            for column in columns:
                if row[column] is not None and not isinstance(row[column], str):
                    what = f"column {column!r} holds {type(row[column]).__name__}, not text"
                    raise PicoError(what, where=pin(dataset), mend="set `text_field` or `hub.columns`")
            yield "\n\n".join(row[column] for column in columns if row[column])


def parts(source: Source, dataset: HubDataset) -> Iterator[Part]:
    """Yields the rows of token ids, counted over the split, at most ROWS at a time. Raises as `texts`."""
    columns = _columns(source, dataset)
    if len(columns) > 1:
        raise PicoError(f"token ids lie in one column, not in {columns}", where=pin(dataset), mend="name one")
    first = 0
    with _named(dataset):
        for table in stream(dataset, columns).with_format("arrow").iter(ROWS):
            _check(columns, table.column_names, dataset)
            for chunk in table[columns[0]].chunks:
                yield dataset.split, first, chunk
                first += len(chunk)


def stream(dataset: HubDataset, columns: Sequence[str]) -> Any:
    """Returns the rows of the split as a `datasets.IterableDataset` of these columns."""
    from datasets import load_dataset_builder

    def open_(**options: Any) -> tuple[Any, Any]:
        builder = load_dataset_builder(dataset.repository, dataset.config, revision=dataset.revision, **options)
        return builder, builder.as_streaming_dataset()

    builder, splits = open_()
    if dataset.split not in splits:
        raise PicoError(
            f"there is no split {dataset.split!r}; there are: {', '.join(splits)}",
            where=f"{dataset.repository}@{dataset.revision}",
            mend="set `hub.split` to one of them",
        )
    features = splits[dataset.split].features
    if features is not None:
        _check(columns, list(features), dataset)
    if hasattr(builder.config, "columns"):  # Parquet: the other columns are not even fetched
        return open_(columns=list(columns))[1][dataset.split]
    return splits[dataset.split] if features is None else splits[dataset.split].select_columns(list(columns))


def _columns(source: Source, dataset: HubDataset) -> list[str]:
    return list(dataset.columns or [source.text_field])


def _check(columns: Sequence[str], present: Sequence[str], dataset: HubDataset) -> None:
    missing = [column for column in columns if column not in present]
    if missing:
        raise PicoError(
            f"there is no column {missing[0]!r}",
            where=f"{pin(dataset)}, which has: {', '.join(present)}",
            mend="set `text_field` or `hub.columns` of this source",
        )


@contextmanager
def _named(dataset: HubDataset) -> Iterator[None]:
    try:
        yield
    except PicoError:
        raise
    except Exception as error:  # datasets raises whatever its many readers and transports raise
        raise DownloadError(
            f"the dataset cannot be read: {type(error).__name__}: {error}",
            where=pin(dataset),
            mend="check repository, revision and split, and the network (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE)",
        ) from error
