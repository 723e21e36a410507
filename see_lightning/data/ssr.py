"""SSR's split of ten SuperNI tasks (Huang et al., ACL 2024), in the file names of its repository."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from see_lightning.data.checks import BadRow, RowChecks
from see_lightning.data.example import Example
from see_lightning.data.reader import Part, json_lines, read_published, require_task, where_to_put
from see_lightning.data.split import Split
from see_lightning.errors import DataError

PUBLISHED_AT = "https://github.com/DeepLearnXMU/SSR, folder data/ni-cus0.12/split"


class SsrReader:
    """Reads ``<task>.train.json`` and ``<task>.eval.json``, which have one JSON object per line.

    The prompt is ``full_prompt`` (definition, blank line, input) and the target is ``output``. Both are not changed: the
    published rows have no whitespace at either end. Rows are in file order; ``sa`` and ``pos`` are sorted by label.

    Args:
        folder: contains the files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def tasks(self) -> list[str]:
        """Names of the tasks that have a test file.

        Raises:
            DataError: no such folder, or no test file in it.
        """
        names = sorted(path.name.removesuffix(".eval.json") for path in self.folder.glob("*.eval.json"))
        if not names:
            raise DataError(
                f"SSR's data were looked for in {self.folder}, where there is no <task>.eval.json. "
                f"{where_to_put(self.folder, PUBLISHED_AT)}"
            )
        return names

    def parts(self, task: str) -> dict[str, Part]:
        """The rows of the training and the test file.

        If ``<task>.train.json`` is missing, SSR's two disjoint samples of it, 10 % and 1 %, are used instead.

        Raises:
            DataError: no such folder, task or file.
        """
        require_task(task, self.tasks())
        samples = tuple(self.folder / f"{task}.train.{size}.json" for size in ("smp01", "smp001"))
        in_samples = not self._whole(task).is_file() and all(path.is_file() for path in samples)
        train = samples if in_samples else (self._whole(task),)
        test = self.folder / f"{task}.eval.json"
        return {
            "train": Part(chain.from_iterable(_rows(path, task) for path in train), train),
            "test": Part(_rows(test, task), (test,)),
        }

    def read(self, task: str, checks: RowChecks) -> Split:
        """The examples of one task, with a notice if samples are used instead of the training file.

        Raises:
            DataError: no such folder, task or file, or a row that ``checks`` refuses.
        """
        parts = self.parts(task)
        split = read_published(task, parts, checks)
        whole, used = self._whole(task), parts["train"].files
        if used == (whole,):
            return split
        notice = (
            f"{task}: {whole} is missing; the {len(split.train)} rows of {used[0].name} and {used[1].name} are "
            f"the training rows. The whole file is at {PUBLISHED_AT}"
        )
        return Split(train=split.train, test=split.test, notices=(notice, *split.notices))

    def _whole(self, task: str) -> Path:
        return self.folder / f"{task}.train.json"


def _rows(path: Path, task: str) -> Iterator[Example | BadRow]:
    return json_lines(path, task=task, prompt_key="full_prompt", answer_key="output")
