"""Every router on the experts of one finished run: ``see-lightning route RUN_DIR``."""

import argparse

from see_lightning.cli.command import Parser, at_least, command
from see_lightning.config.trust import add_trust, trust_in
from see_lightning.engine.latest import find_run
from see_lightning.engine.measured import ROUTE
from see_lightning.errors import ConfigError
from see_lightning.files.run_files import well_shaped

DESCRIPTION = """\
Routes the test queries of a finished run by every router, over the same experts: no expert is trained. For each router: the
share of the run's own queries that reach their expert, as they stand and under other wordings; the share of foreign queries
that reach the base model, with and without their definitions; AR; the bytes that it keeps; how often a query's prompt is
read, and how many experts are asked. Prints a table and keeps it as route.json, route.csv and route.svg in the run's
directory and in report.html. A router that cannot route the run's experts has a line with the reason."""
EPILOG = """\
A router is measured once: the rows of route.json are kept, and further routers are added to them. Responses that the run
needed are not generated again; new ones are added to its cache, so that an interrupted command goes on. Reads the model and
the data, unless route.json has all rows already."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments: a run, routers, queries, and another file for the output."""
    parser.add_run_dir()
    parser.add_argument(
        "--router",
        action="append",
        default=[],
        metavar='"NAME [SETTING=VALUE ...]"',
        help='an option of conf/router, such as density or "density reject_above=3"; may be given several times'
        " (default: the run's own and every option of conf/router, also of conf/router in the working directory)",
    )
    parser.add_argument(
        "--ood",
        metavar='"NAME [SETTING=VALUE ...]"',
        help='foreign queries: an option of conf/ood, such as wide or "wide size=8" (default: those that the run was'
        " evaluated on)",
    )
    parser.add_argument(
        "--variants",
        metavar="NAME,...",
        help="wordings of the run's own queries, such as input_only,paraphrased (default: all that the benchmark has)",
    )
    parser.add_argument(
        "--size", type=at_least(1), metavar="N", help="only the first N test queries of each task (default: all)"
    )
    parser.add_argument("--no-answers", action="store_true", help="only route: no answers, and so no AR")
    parser.add_out("route.json, route.csv, route.svg and the report")
    add_trust(parser)


@command("route", DESCRIPTION, add_arguments, EPILOG)
def main(given: argparse.Namespace) -> None:
    """Print the comparison of routers on a run; measure the routers that it lacks."""
    path = find_run(given.run_dir) / ROUTE
    if given.out and given.out.suffix != ".json":
        raise ConfigError(
            f"--out {given.out}: give a file that ends in .json; a .csv and an .svg are written beside it."
        )
    # Late, because these import torch, which takes longer than a refusal should.
    from rich.console import Console

    from see_lightning.engine.router_comparison import Asked, compare_routers
    from see_lightning.reporting.report.routers import print_routers

    asked = Asked(
        routers=given.router,
        ood=given.ood,
        variants=None if given.variants is None else [name for name in given.variants.split(",") if name],
        size=given.size,
        answers=not given.no_answers,
    )
    found = compare_routers(path, given.command, asked, given.out, trust_in(given))
    with well_shaped(path):
        print_routers(found, Console())
    print(given.out or path)
