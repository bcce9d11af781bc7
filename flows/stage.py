"""What every flow module shares: `run` (arguments, settings, Prefect, exit codes) and `Stage` (what a flow may use)."""

import argparse
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pico.config import Params, load_params
from pico.errors import PicoError

if TYPE_CHECKING:
    from logging import Logger, LoggerAdapter

PROGRESS_SECONDS = 2.0
"""Least time between two updates of a progress artifact: each is a request to the server."""


@dataclass(frozen=True)
class Stage:
    """What a flow is given: its settings, and ways to be seen in Prefect."""

    name: str
    params: Params
    model: str | None = None
    """The model that the stage runs for; None for stages that are not per model."""

    @property
    def run_name(self) -> str:
        """`pretrain-tiny`, or the bare name for stages that are not per model."""
        return f"{self.name}-{self.model}" if self.model else self.name

    @property
    def logger(self) -> "Logger | LoggerAdapter[Any]":
        """Prefect's logger of the run: the terminal and the UI."""
        from prefect import get_run_logger

        return get_run_logger()

    def table(self, key: str, rows: Sequence[dict[str, Any]], description: str = "") -> None:
        """Publishes a table artifact. `key`: lower-case letters, digits and dashes."""
        from prefect.artifacts import create_table_artifact

        create_table_artifact(table=[dict(row) for row in rows], key=key, description=description)

    def markdown(self, key: str, text: str, description: str = "") -> None:
        """Publishes a Markdown artifact."""
        from prefect.artifacts import create_markdown_artifact

        create_markdown_artifact(markdown=text, key=key, description=description)

    def link(self, key: str, path: Path | str, description: str = "") -> None:
        """Publishes a link to a file or folder of the checkout."""
        from prefect.artifacts import create_link_artifact

        path = Path(path)
        create_link_artifact(link=path.resolve().as_uri(), link_text=str(path), key=key, description=description)

    @contextmanager
    def progress(self, key: str, description: str = "") -> Iterator[Callable[[float], None]]:
        """Gives `update(fraction)`, with the fraction done in [0, 1]; shown in the UI every few seconds."""
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        artifact: Any = create_progress_artifact(progress=0.0, key=key, description=description)
        shown, fraction = time.monotonic(), 0.0

        def show(value: float) -> None:
            update_progress_artifact(artifact, progress=round(100 * value, 1))

        def update(value: float) -> None:
            nonlocal shown, fraction
            fraction = min(1.0, max(0.0, value))
            if time.monotonic() - shown >= PROGRESS_SECONDS:
                show(fraction)
                shown = time.monotonic()

        try:
            yield update
        finally:
            show(fraction)

    def device(self) -> str:
        """ "cuda" where training may use a GPU and there is one, else "cpu"."""
        if self.params.training.device == "cpu":
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def ray(self) -> AbstractContextManager[None]:
        """A context in which Ray is up: that of RAY_ADDRESS, else the lab's, else one of this stage's own."""
        from flows.lab.ray_session import ray_session

        return ray_session(Path.cwd())


def watched_by_dvc(stage: str, paths: Sequence[str], where: str) -> None:
    """Raises PicoError for a user's file that DVC would not see change, as it is no dep of a stage.

    where: the setting that names the files.
    """
    from ruamel.yaml import YAML

    if not paths:
        return
    deps = YAML(typ="safe").load(Path("dvc.yaml"))["stages"][stage]["deps"]
    for path in paths:
        if not any(str(folder) in deps for folder in (Path(path), *Path(path).parents)):
            raise PicoError(
                f"{path} is no dep of stage {stage}, so that DVC would not notice when it changes",
                where=where,
                mend=f"add it in dvc.yaml to the deps of stage {stage}:  - {path}",
            )


def run(name: str, body: Callable[[Stage], None]) -> NoReturn:
    """Runs `body` as the Prefect flow `name`: reads `--model` and params.yaml, and ends the process.

    Exit status: 0 when all went well; 1 after an error (a `PicoError` as a short message, any other with its
    traceback); 2 for wrong arguments; 130 after Ctrl-C and 143 after SIGTERM. The flow run is Failed after an error,
    and Crashed after a signal.
    """
    model = _parse(name).model
    try:
        params = load_params()
        if model is not None and model not in params.suite.models:
            raise PicoError(
                f"model {model!r} is not in the suite",
                where=f"params.yaml: suite.models = {params.suite.models}",
                mend="name one of these, or add it to conf/scale/*.yaml and run: pico scale NAME",
            )
    except PicoError as error:
        leave(name, error)
    _reach_the_hub(name, params)
    execute(Stage(name, params, model), body)


def execute(stage: Stage, body: Callable[[Stage], None], task_runner: Any = None) -> NoReturn:
    """The rest of `run`, for callers that have read their arguments and settings."""
    terminated = _die_on_sigterm()
    try:
        failure = _run_flow(stage, body, task_runner)
    except PicoError as error:  # no server
        leave(stage.run_name, error)
    except KeyboardInterrupt:
        print(f"{stage.run_name}: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except terminated:
        print(f"{stage.run_name}: terminated", file=sys.stderr, flush=True)
        sys.exit(143)
    if failure is not None:
        leave(stage.run_name, failure)
    sys.exit(0)


def _parse(name: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m flows.{name}", description=f"Runs stage {name}; see dvc.yaml.")
    parser.add_argument("--model", help="a model of the suite, for stages that run once per model")
    return parser.parse_args()


def _reach_the_hub(name: str, params: Params) -> None:
    """Lifts Hugging Face's offline switch for the fetch stage of a hub source, unless the user has set it."""
    if name == "fetch" and any(source.kind == "hub" for source in params.corpus.sources):
        from flows.lab.environment import SET_BY_US

        if "HF_HUB_OFFLINE" in SET_BY_US:
            os.environ["HF_HUB_OFFLINE"] = "0"


def _die_on_sigterm() -> type[BaseException]:
    """Makes SIGTERM an exception, so that Ray is shut down and the flow run marked; gives the exception's type."""
    from prefect.exceptions import TerminationSignal

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
        raise TerminationSignal(signal=number)

    signal.signal(signal.SIGTERM, handle)
    return TerminationSignal


def _run_flow(stage: Stage, body: Callable[[Stage], None], task_runner: Any) -> BaseException | None:
    """Runs the flow; gives the exception that failed it, or None."""
    from prefect import flow, tags
    from prefect.context import TagsContext
    from prefect.states import Failed

    from flows.lab.logs import shorten_tracebacks
    from flows.lab.prefect_session import prefect_session

    failure: BaseException | None = None

    def stage_flow() -> Any:  # without parameters: Prefect imports FastAPI to serialise any, and the tags say as much
        nonlocal failure
        shorten_tracebacks()
        try:
            # Tags are for finding flow runs. Tasks would inherit them, and ask the server for each tag whether it is
            # limited, before every task; now and then that takes 2 s.
            with TagsContext(current_tags=set()):
                body(stage)
        except Exception as error:
            failure = domain_error(error) or error
            if isinstance(failure, PicoError):
                return Failed(message=str(failure))
            raise
        return None

    stage_flow.__doc__ = sys.modules[body.__module__].__doc__
    run_flow = flow(
        name=stage.name,
        flow_run_name=stage.run_name,
        task_runner=task_runner,
        validate_parameters=False,
        persist_result=False,
        retries=0,
    )(stage_flow)
    with prefect_session(), tags(*_tags(stage)):
        state: Any = run_flow(return_state=True)
    if failure is None and not state.is_completed():
        failure = PicoError(f"the flow run ended as {state.name}: {state.message}", mend="see its logs in: pico ui")
    return failure


def _tags(stage: Stage) -> list[str]:
    """Model, scale and git revision, as they are searched for in the UI."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        revision = [f"git:{found.stdout.strip()}"]
    except (OSError, subprocess.CalledProcessError):  # no git, or no commit yet
        revision = []
    return [*([f"model:{stage.model}"] if stage.model else []), f"scale:{stage.params.suite.scale}", *revision]


def domain_error(error: BaseException | None) -> PicoError | None:
    """The PicoError in a chain of causes, such as Ray's wrappers of what a worker raised, or None."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        candidate = waiting.pop(0)
        if candidate is None or id(candidate) in seen:
            continue
        if isinstance(candidate, PicoError):
            return candidate
        seen.add(id(candidate))
        waiting += [candidate.__cause__, getattr(candidate, "cause", None)]
        waiting += list(getattr(candidate, "worker_failures", {}).values())  # Ray Train: rank -> exception
    return None


def leave(name: str, error: BaseException) -> NoReturn:
    """Says on stderr why the stage failed, and ends the process with status 1."""
    sys.stdout.flush()
    if isinstance(error, PicoError):
        print(f"{name}: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    sys.exit(1)
