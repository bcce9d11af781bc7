"""Benchmarks by lm-eval over local Parquet: what a model is asked, and what its answers are worth.

The task definitions in tasks/*.yaml are lm-eval's own, but for where the data lie; prompts, metrics and standard errors
are made by lm-eval. Models are asked elsewhere (pico.evaluation.answer), in whatever process, so that only one process
pays for importing lm-eval.
"""

import contextlib
import functools
import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

import lm_eval.utils
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks._yaml_loader import load_yaml

from pico.errors import PicoError
from pico.evaluation.answer import Answerer

TASKS = Path(__file__).parent / "tasks"

# lm-eval compiles its few templates anew for every document, several times over: most of the time that building and
# scoring requests takes (0.6 s of 0.7 s for 100 documents). A compiled template has no state.
lm_eval.utils.env.from_string = functools.cache(lm_eval.utils.env.from_string)

Requests = dict[str, list[tuple]]
"""Kind of request (loglikelihood, ...) -> arguments, in lm-eval's order."""


class LocalTask(ConfigurableTask):
    """An lm-eval task over rows in memory: nothing is downloaded, and no cache is written."""

    def __init__(self, config: dict[str, Any], rows: pa.Table) -> None:
        self._rows = rows
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        documents = Dataset(self._rows)
        if self.config.process_docs is not None:  # once, not at each look at the documents
            documents = self.config.process_docs(documents)
            self.config.process_docs = None
        self.dataset = {self.config.test_split or self.config.validation_split: documents}


class Benchmark:
    """One task over the documents that are used of it."""

    def __init__(self, name: str, folder: Path, *, metric: str, limit: int | None, seed: int) -> None:
        """Reads `folder/<name>/<split>.parquet`; metric: the one to be drawn; limit, seed: see `choose_rows`.

        Raises PicoError for an unknown name or metric, and data that don't fit the task.
        """
        definition = TASKS / f"{name}.yaml"
        if not definition.exists():
            known = ", ".join(sorted(path.stem for path in TASKS.glob("*.yaml")))
            raise PicoError(
                f"there is no benchmark task {name!r}",
                where="params.yaml: benchmarks.tasks",
                mend=f"choose among: {known}; or define it in pico/evaluation/tasks/{name}.yaml",
            )
        config = load_yaml(definition)
        data = folder / name / f"{config.get('test_split') or config['validation_split']}.parquet"
        rows = choose_rows(_read(data), limit=limit, seed=seed, name=name)
        if metric not in (own := [entry["metric"] for entry in config["metric_list"]]):
            raise PicoError(
                f"benchmark {name} has no metric {metric!r}",
                where="params.yaml: benchmarks.tasks",
                mend=f"choose among: {', '.join(own)}",
            )
        self.name, self.metric = name, metric
        try:
            with silenced():
                self.task = LocalTask(config, rows)
                self.task.build_all_requests(rank=0, world_size=1)
        except Exception as error:  # whatever a template makes of columns that are not those of the task
            raise PicoError(
                f"{data} does not fit the task: {type(error).__name__}: {error}",
                where=str(definition),
                mend="fetch the data again (dvc repro -f fetch_benchmarks), or mend the definition",
            ) from error

    @property
    def n(self) -> int:
        """Documents used."""
        return len(self.task.eval_docs)

    @functools.cached_property
    def chance(self) -> float:
        """The accuracy of guessing: the mean of 1 / answers over the documents; 0 where the answer is free text."""
        if self.task.config.output_type != "multiple_choice":
            return 0.0
        return sum(1 / len(self.task.doc_to_choice(document)) for document in self.task.eval_docs) / self.n

    @functools.cached_property
    def requests(self) -> Requests:
        """The requests to a model."""
        found: Requests = {}
        for instance in self.task.instances:
            found.setdefault(instance.request_type, []).extend([tuple(instance.args)] * instance.repeats)
        return found

    def results(self, answers: Mapping[str, Sequence[Any]], *, bootstrap: int) -> dict[str, Any]:
        """Scores the answers to `requests`: the entry of results.json.

        bootstrap: resamples for the standard error of metrics that have no closed form.
        """
        with silenced(), _no_process_pool():
            found = evaluate(
                lm=AnsweredLM(self.requests, answers),
                task_dict={"tasks": {self.name: self.task}},
                bootstrap_iters=bootstrap,
                log_samples=False,
            )
        values = {key.removesuffix(",none"): value for key, value in found["results"][self.name].items() if "," in key}
        numbers = {key: _number(value) for key, value in sorted(values.items())}
        return {
            "metric": self.metric,
            "value": numbers[self.metric],
            "stderr": numbers.get(f"{self.metric}_stderr"),
            "chance": self.chance,
            "n": self.n,
            "all": numbers,
        }


def choose_rows(rows: pa.Table, *, limit: int | None, seed: int, name: str) -> pa.Table:
    """Returns the first `limit` rows of a shuffle fixed by seed and name, in the file's order; all for None.

    lm-eval's own limit takes the first rows of the file, which are often of one kind.
    """
    if limit is None or limit >= rows.num_rows:
        return rows
    return rows.take(pa.array(sorted(Random(f"{seed}-{name}").sample(range(rows.num_rows), limit))))


def _read(path: Path) -> pa.Table:
    try:
        rows = pq.read_table(path)
    except FileNotFoundError:
        raise PicoError(f"{path} does not exist", mend="fetch it: dvc repro fetch_benchmarks") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise PicoError(f"{path} cannot be read as Parquet: {error}", mend="dvc repro -f fetch_benchmarks") from error
    if not rows.num_rows:
        raise PicoError(f"{path} has no rows", mend="dvc repro -f fetch_benchmarks")
    return rows


def _number(value: Any) -> float | None:
    """Returns a finite float; None for lm-eval's "N/A" and for an overflown perplexity, which JSON has no word for."""
    return float(value) if isinstance(value, int | float) and isfinite(value) else None


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Silences lm-eval's progress bars, prints and notes: a stage shows progress of its own. Warnings stay."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _no_process_pool() -> Iterator[None]:
    """Keeps lm-eval from bootstrapping in a pool of forked processes, which may hang beside threads."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


class DecoderLM(LM):
    """Any lm-eval task on our decoder: `lm_eval.simple_evaluate(model=DecoderLM(answerer), tasks=[...])`."""

    def __init__(self, answerer: Answerer) -> None:
        super().__init__()
        self._answer: Callable[[str, list[tuple]], list[Any]] = answerer.answer

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [tuple(answer) for answer in self._answer("loglikelihood", _arguments(requests))]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return self._answer("loglikelihood_rolling", _arguments(requests))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return self._answer("generate_until", _arguments(requests))


def _arguments(requests: list[Instance]) -> list[tuple]:
    return [tuple(request.args) for request in requests]


class AnsweredLM(DecoderLM):
    """A model whose answers are known. The requests must be those that the answers were given to, in their order."""

    def __init__(self, requests: Mapping[str, Sequence[tuple]], answers: Mapping[str, Iterable[Any]]) -> None:
        """Takes, by kind of request, the arguments and what the model answered to each."""
        LM.__init__(self)
        self.known, self.answers = requests, answers
        self._answer = self._look_up

    def _look_up(self, kind: str, arguments: list[tuple]) -> list[Any]:
        if arguments != list(self.known[kind]):
            raise ValueError(f"the {kind} requests are not those that were answered")
        return list(self.answers[kind])
