"""The parts that all stages share: `run`, which makes a process a flow run, and `Stage`, which the flow is given."""

import argparse
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ruamel.yaml import YAML

from flows.lab.environment import SET_BY_US
from pico.config import Params, load_params
from pico.errors import PicoError
from pico.identity import require_pinned

if TYPE_CHECKING:
    from logging import Logger, LoggerAdapter

    from pico.watch.progress import Bar


def _may_succeed_again(task: Any, task_run: Any, state: Any) -> bool:
    """Returns whether a failed task is worth another try: an index or a hub recovers; a wrong pin does not."""
    from pico.data.sources.wheels import DownloadError

    return isinstance(state.data, DownloadError)


TRY_AGAIN: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": [2.0, 10.0],
    "retry_condition_fn": _may_succeed_again,
}
"""Options of the Prefect tasks that talk to the outside."""
RAY_BYTES = 2**28
"""Size of text from which Ray is worth its start-up."""


@dataclass(frozen=True)
class Stage:
    """The settings of a stage, and its ways to be seen in Prefect."""

    name: str
    params: Params
    model: str = ""
    """The model that the stage runs for; empty for stages that are not per model."""

    @property
    def run_name(self) -> str:
        """The name of the flow run: `pretrain-tiny`, or the bare name for stages that are not per model."""
        return f"{self.name}-{self.model}" if self.model else self.name

    def require_deps(self, files: Sequence[str], setting: str) -> None:
        """Raises PicoError for a file of the user that is no dep of this stage: DVC would not see it change.

        files: paths from the project, as the setting names them.
        """
        if not files:
            return
        deps = YAML(typ="safe").load(Path("dvc.yaml"))["stages"][self.name]["deps"]
        for file in files:
            if all(str(path) not in deps for path in (Path(file), *Path(file).parents)):
                raise PicoError(
                    f"{file} is no dep of stage {self.name}, so that DVC would not notice when it changes",
                    where=f"params.yaml: {setting}",
                    mend=f"add it in dvc.yaml to the deps of stage {self.name}:  - {file}",
                )

    @property
    def logger(self) -> "Logger | LoggerAdapter[Any]":
        """Prefect's logger of the run, which writes to the terminal and the UI."""
        from prefect import get_run_logger

        return get_run_logger()

    def table(self, key: str, rows: Sequence[dict[str, Any]], description: str = "") -> None:
        """Publishes a table in the UI, below `key`."""
        from prefect.artifacts import create_table_artifact

        create_table_artifact(table=[dict(row) for row in rows], key=_artifact_key(key), description=description)

    def link(self, key: str, path: Path | str, description: str = "") -> None:
        """Publishes a link to a file or folder of the clone."""
        from prefect.artifacts import create_link_artifact

        link = Path(path).resolve().as_uri()
        create_link_artifact(link=link, link_text=str(path), key=_artifact_key(key), description=description)

    @contextmanager
    def progress(self, total: float | None, unit: str) -> Iterator["Bar"]:
        """Shows how far the stage is: on the terminal or in the log, and as a progress artifact in the UI.

        `total`: the amount of work, an int where it is counted; None if the first update gives it.
        """
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        from flows.lab.prefect_server import log_console
        from pico.watch.progress import Bar

        key = _artifact_key(f"{self.run_name}-progress")
        title = f"{self.name.replace('_', ' ')} {self.model}".rstrip()
        artifact: Any = create_progress_artifact(progress=0.0, key=key, description=f"Progress of {title}")

        def publish(share: float) -> None:
            update_progress_artifact(artifact, progress=round(100 * share, 1))

        with Bar(title, total, unit, log=self.logger.info, publish=publish, console=log_console()) as bar:
            yield bar

    def device(self) -> str:
        """Returns "cuda" where training may use a GPU and there is one, else "cpu"."""
        if self.params.training.device == "cpu":
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def ray(self, wanted: bool = True) -> AbstractContextManager[None]:
        """Returns a context in which Ray is up: that of RAY_ADDRESS, else the lab's, else one of this stage's own."""
        if not wanted:
            return nullcontext()
        from flows.lab.ray_session import ray_session

        return ray_session(Path.cwd())


def _artifact_key(text: str) -> str:
    """Returns `text` as Prefect wants keys: lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9-]+", "-", text.lower())


def run(name: str, body: Callable[[Stage], None], *, per_model: bool = False) -> NoReturn:
    """Runs `body` as the Prefect flow `name`, with params.yaml and, where `per_model`, `--model`. Ends the process.

    Exit status: 0 when all went well; 1 after an error (a `PicoError` as a short message, any other with its
    traceback); 2 for wrong arguments; 130 after Ctrl-C and 143 after SIGTERM. The flow run is Failed after an error,
    and Crashed after a signal.
    """
    parser = argparse.ArgumentParser(prog=f"python -m flows {name}", description=f"Runs stage {name}; see dvc.yaml.")
    if per_model:
        parser.add_argument("--model", required=True, metavar="NAME", help="a model of the suite")
    model = getattr(parser.parse_args(), "model", "")
    try:
        params = load_params()
        if model and model not in params.suite.models:
            raise PicoError(
                f"model {model!r} is not in the suite",
                where=f"params.yaml: suite.models = {params.suite.models}",
                mend="name one of these, or add it to conf/scale/*.yaml and run: pico scale NAME",
            )
        require_pinned(Path("libraries.yaml"))
    except PicoError as error:
        leave(name, error)
    if name == "fetch" and "HF_HUB_OFFLINE" in SET_BY_US and any(one.kind == "hub" for one in params.corpus.sources):
        os.environ["HF_HUB_OFFLINE"] = "0"
    execute(Stage(name, params, model), body)


def execute(stage: Stage, body: Callable[[Stage], None], task_runner: Any = None) -> NoReturn:
    """Does the rest of `run`, for callers that have read their arguments and settings."""
    from prefect.exceptions import TerminationSignal

    def terminate(number: int, frame: Any) -> None:  # an exception, so that Ray is shut down and the flow run marked
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
        raise TerminationSignal(signal=number)

    signal.signal(signal.SIGTERM, terminate)
    try:
        failure = _run_flow(stage, body, task_runner)
    except PicoError as error:  # no server
        leave(stage.run_name, error)
    except KeyboardInterrupt:
        print(f"{stage.run_name}: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except TerminationSignal:
        print(f"{stage.run_name}: terminated", file=sys.stderr, flush=True)
        sys.exit(143)
    if failure is not None:
        leave(stage.run_name, failure)
    sys.exit(0)


def _run_flow(stage: Stage, body: Callable[[Stage], None], task_runner: Any) -> BaseException | None:
    """Runs the flow. Returns the exception that failed it, or None."""
    from prefect import flow, tags
    from prefect.context import TagsContext
    from prefect.states import Failed

    from flows.lab.prefect_server import prefect_session, shorten_tracebacks

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
    """Returns model, scale and git revision, as they are searched for in the UI."""
    found = [f"scale:{stage.params.suite.scale}", *([f"model:{stage.model}"] if stage.model else [])]
    with suppress(OSError, subprocess.CalledProcessError):  # no git, or no commit yet
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        found.append(f"git:{head.stdout.strip()}")
    return found


def domain_error(error: BaseException | None) -> PicoError | None:
    """Returns the PicoError in a chain of causes, such as Ray's wrappers of what a worker raised, or None."""
    chain: list[Any] = [error]
    for candidate in chain:  # grows meanwhile; each may name the other as its cause
        if isinstance(candidate, PicoError):
            return candidate
        causes = [getattr(candidate, name, None) for name in ("__cause__", "cause")]
        chain += [cause for cause in causes if cause not in chain]
    return None


def leave(name: str, error: BaseException) -> NoReturn:
    """Prints on stderr why the stage failed, and ends the process with status 1."""
    sys.stdout.flush()
    if isinstance(error, PicoError):
        print(f"{name}: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    sys.exit(1)
