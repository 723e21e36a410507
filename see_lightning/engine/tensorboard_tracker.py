"""TensorBoard: the event files of a run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from see_lightning.engine.curve_tracker import CurveTracker, Point
from see_lightning.engine.preemption import StopSignal
from see_lightning.engine.record import commit
from see_lightning.engine.tracker import TIMEOUT, needs
from see_lightning.files.writing import refuse_links
from see_lightning.reporting.markdown_cells import escaped, markdown_table
from see_lightning.reporting.words import number

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FOLDER = "tensorboard"
START, END = "_hparams_/session_start_info", "_hparams_/session_end_info"  # tags of the HParams page


class TensorboardTracker(CurveTracker):
    """Event files in the folder ``tensorboard`` of the run directory, by which TensorBoard names the run.

    Args:
        timeout: seconds that the run waits for its reports at its end.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, *, timeout: float = TIMEOUT) -> None:
        needs("tensorboard", "tensorboard")
        super().__init__("TensorBoard", timeout)

    def open(self, directory: Path, config: Mapping[str, Any], stop_signal: StopSignal) -> None:
        """Refuse links before the thread writes."""
        refuse_links(directory / FOLDER, directory)
        super().open(directory, config, stop_signal)

    def begin(self, directory: Path, config: Mapping[str, Any]) -> None:
        """Read earlier event files, open a new one, and write the settings for the page HParams."""
        from torch.utils.tensorboard import SummaryWriter

        folder = directory / FOLDER
        self._earlier = _read(folder)
        self._writer = SummaryWriter(str(folder), flush_secs=5)
        _, method, key, _ = directory.parts[-4:]
        facts = {"method": method, "key": key, "commit": commit()}
        self._write_session(START, {name: _plain(value) for name, value in (facts | dict(config)).items()})

    def kept(self, name: str) -> dict[int, float]:
        """The values in earlier event files."""
        if name not in self._earlier.Tags()["scalars"]:
            return {}
        return {event.step: event.value for event in self._earlier.Scalars(name)}

    def send(self, points: Sequence[Point]) -> None:
        """Write scalars."""
        for point in points:
            self._writer.add_scalar(point.name, point.value, point.step, walltime=point.when)

    def tell_report(self, results: Mapping[str, Any], report: Path) -> None:
        """Write the results matrix as a text."""
        rows = [
            [escaped(task), *map(number, row)] for task, row in zip(results["tasks"], results["matrix"], strict=True)
        ]
        text = markdown_table(["after", *results["tasks"]], rows)
        tag, step = "report/matrix", len(results["tasks"])
        summary = f"{tag}/text_summary"
        earlier = self._earlier.Tensors(summary) if summary in self._earlier.Tags()["tensors"] else []
        if text.encode() not in [event.tensor_proto.string_val[0] for event in earlier]:
            self._writer.add_text(tag, text, step)

    def end(self, code: int, *, goes_on: bool) -> None:
        """Close the file; a finished run is marked as such on the page HParams."""
        if code == 0:
            self._write_session(END, {})
        self._writer.close()

    def _write_session(self, tag: str, values: dict[str, Any]) -> None:
        """Write what the page HParams shows of a run, once; metrics are taken from the scalars."""
        from torch.utils.tensorboard.summary import hparams

        try:
            written = self._earlier.PluginTagToContent("hparams")
        except KeyError:
            written = {}
        if tag not in written:
            _, start, end = hparams(values, {})
            self._writer.file_writer.add_summary(start if tag == START else end)


def _read(folder: Path) -> "EventAccumulator":
    """All scalars and texts in the event files of a folder, which may be missing."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return read.Reload() if folder.is_dir() else read


def _plain(value: Any) -> Any:
    """A setting as a number, a truth value or a text.

    >>> _plain(0.5), _plain(["a", 1]), _plain(None)
    (0.5, '["a", 1]', 'null')
    """
    return value if isinstance(value, bool | int | float | str) else json.dumps(value, ensure_ascii=False)
