"""MLflow: a run in its tracking store."""

import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from see_lightning.engine.curve_tracker import CurveTracker, Point
from see_lightning.engine.preemption import StopSignal
from see_lightning.engine.record import commit
from see_lightning.engine.relay import CREDENTIALS
from see_lightning.engine.tracked import files, pictures
from see_lightning.engine.tracker import TIMEOUT, kept_id, needs
from see_lightning.errors import ConfigError
from see_lightning.files.writing import make_folder, write_bytes, write_text
from see_lightning.reporting.runs import MLFLOW_ARTIFACTS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SQLITE = "sqlite:///"
ID = Path("mlflow", "id")  # in the run directory
MOST_METRICS, MOST_PARAMS = 1000, 100  # that MLflow takes at once
UNKNOWN = re.compile(r"[^/\w.\- :]")  # characters that MLflow takes in no name


class MlflowTracker(CurveTracker):
    """One MLflow run for each run directory, over all resumptions; its id is kept in ``mlflow/id``.

    Args:
        tracking_uri: of the store; None takes MLFLOW_TRACKING_URI, or else ``mlflow.db`` in the folder of all runs.
        experiment: that the run belongs to; None is the name of the order.
        name: of the run; None is ``<method>/<key>/seed=<n>``.
        timeout: seconds that the run waits for its reports at its end.

    Raises:
        ConfigError: MLflow is not installed, or ``tracking_uri`` has a password.
    """

    def __init__(
        self, *, tracking_uri: str | None, experiment: str | None, name: str | None, timeout: float = TIMEOUT
    ) -> None:
        if tracking_uri and CREDENTIALS.search(tracking_uri):
            raise ConfigError(
                "logger.tracking_uri has a user or a password, and the files of a run would keep it. Set the environment"
                " variable MLFLOW_TRACKING_URI instead, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD too."
            )
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        local = not self.tracking_uri or self.tracking_uri.startswith(SQLITE)
        for package in ("mlflow", *(("sqlalchemy", "alembic") if local else ())):
            needs(package, "mlflow")
        super().__init__("MLflow", timeout)
        self.experiment, self.run_name = experiment, name

    def open(self, directory: Path, config: Mapping[str, Any], stop_signal: StopSignal) -> None:
        """Read the id of the MLflow run, before the thread starts."""
        self._id = kept_id(directory / ID, "MLflow")
        super().open(directory, config, stop_signal)

    def begin(self, directory: Path, config: Mapping[str, Any]) -> None:
        """Create the MLflow run or continue it; a parameter that it has is never changed in MLflow, and keeps its value."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow's own reports on its use
        runs = directory.absolute().parents[3]
        order, method, key, seed = directory.parts[-4:]
        self._client = _client(self.tracking_uri or f"{SQLITE}{runs / 'mlflow.db'}")
        facts = {"method": method, "key": key, "seed": seed.removeprefix("seed="), "commit": commit() or ""}
        run = self._find() or self._create(runs, self.experiment or order, self.run_name or f"{method}/{key}/{seed}")
        self._id, self._earlier = run.info.run_id, set(run.data.metrics)
        make_folder((directory / ID).parent)
        write_text(directory / ID, self._id)
        self._client.update_run(self._id, status="RUNNING")
        for name, value in (facts | {"mlflow.source.git.commit": facts["commit"]}).items():
            self._client.set_tag(self._id, name, value)
        self._tell_settings({_named(name): _text(value) for name, value in config.items()}, set(run.data.params))

    def kept(self, name: str) -> dict[int, float]:
        """The values in the store."""
        assert self._id
        if _named(name) not in self._earlier:
            return {}
        return {metric.step: metric.value for metric in self._client.get_metric_history(self._id, _named(name))}

    def send(self, points: Sequence[Point]) -> None:
        """Log metrics."""
        from mlflow.entities import Metric

        metrics = [Metric(_named(name), value, int(when * 1000), step) for name, step, value, when in points]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + MOST_METRICS])

    def tell_report(self, results: Mapping[str, Any], report: Path) -> None:
        """Log report, results and pictures as artifacts; a file of the same name is replaced."""
        pages = {f"{name}.html": page for name, page in pictures(results).items()}
        for name, text in (files(report) | pages).items():
            self._client.log_text(self._id, text, name)

    def end(self, code: int, *, goes_on: bool) -> None:
        """End the MLflow run: finished, failed, or killed if it can be resumed."""
        self._client.set_terminated(self._id, "FINISHED" if code == 0 else "KILLED" if goes_on else "FAILED")

    def where(self) -> str:
        """The store."""
        return f" from {self.tracking_uri or 'mlflow.db'}"

    def _find(self) -> "Run | None":
        """The run that the directory belongs to; None if there is none yet in this store, or it was deleted."""
        from mlflow import MlflowException

        if self._id is None:
            return None
        try:
            run = self._client.get_run(self._id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _create(self, runs: Path, experiment: str, name: str) -> "Run":
        """A new run.

        Args:
            runs: folder of all runs.
            experiment: name of the experiment, which may be missing.
            name: of the run.
        """
        from mlflow import MlflowException

        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            # A server decides where artifacts are; without one MLflow would take the working folder.
            is_server = (self.tracking_uri or "").startswith(("http:", "https:", "databricks"))
            location = None if is_server else (runs / MLFLOW_ARTIFACTS).as_uri()
            try:
                return self._client.create_run(self._client.create_experiment(experiment, location), run_name=name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by another run, just now
                    raise
                found = self._client.get_experiment_by_name(experiment)
        return self._client.create_run(found.experiment_id, run_name=name)

    def _tell_settings(self, texts: Mapping[str, str], earlier: set[str]) -> None:
        from mlflow.entities import Param

        new = [Param(name, text) for name, text in texts.items() if name not in earlier]
        for start in range(0, len(new), MOST_PARAMS):
            self._client.log_batch(self._id, params=new[start : start + MOST_PARAMS])


def _client(uri: str) -> "MlflowClient":
    """A client of a store; a SQLite database that is missing is created.

    MLflow creates its tables in a hundred steps without a lock. If it were killed between two of them, or two runs began
    together, the database could not be used, so it is created elsewhere and then put in its place.
    """
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    path = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and not path.exists():
        with FileLock(f"{path}.lock"), tempfile.TemporaryDirectory() as folder:
            if not path.exists():
                MlflowClient(f"{SQLITE}{folder}/new.db")
                write_bytes(path, Path(folder, "new.db").read_bytes())
    return MlflowClient(uri)


def _named(name: str) -> str:
    """A name in MLflow, which takes no ``=``.

    >>> _named("eval/after=1/qa")
    'eval/after_1/qa'
    """
    return UNKNOWN.sub("_", name)


def _text(value: Any) -> str:
    """A setting as a text.

    >>> _text("qa"), _text(0.5), _text(None)
    ('qa', '0.5', 'null')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
