"""The red team's command: one attack, one honest client, or a campaign of many against an endpoint.

The API key of `attack` and `honest` is read from PORTCULLIS_API_KEY, so that it does not show among the processes.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.redteam.blinding import BLINDINGS
from services.redteam.campaign import ATTACKS, Campaign
from services.redteam.honest import HONEST_KINDS
from services.redteam.plan import CampaignPlan, CampaignReport, ClientPlan
from shared.bundle import BundleError
from shared.datasets import DEFAULT_FOLDER, DatasetError

KEY_VARIABLE = "PORTCULLIS_API_KEY"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.redteam",
        description="Clients of a served model: extraction attacks and honest accounts.",
        epilog=f"The API key of one client is read from {KEY_VARIABLE}.",
    )
    commands = parser.add_subparsers(dest="role", required=True)
    for role, kinds in (("attack", sorted(ATTACKS)), ("honest", sorted(HONEST_KINDS))):
        one = commands.add_parser(role, help=f"drive one account: {', '.join(kinds)}")
        one.add_argument("kind", choices=kinds)
        one.add_argument("--address", default="127.0.0.1:8001", help="host:port of the endpoint (%(default)s)")
        one.add_argument("--model", required=True, help="name of the model")
        one.add_argument("--queries", type=int, default=1200, help="most images sent (%(default)s)")
        one.add_argument("--pace", type=float, help="queries a second; as fast as they are answered where not given")
        one.add_argument("--request-rows", type=int, default=1, help="images a request of an attack (%(default)s)")
        one.add_argument("--seed", type=int, default=0, help="of everything that is drawn (%(default)s)")
        one.add_argument("--data", type=Path, default=DEFAULT_FOLDER, help="folder of the data sets (%(default)s)")
        one.add_argument("--journals", type=Path, help="folder of what was answered: with it a cut run can go on")
        one.add_argument("--report", type=Path, help="JSON file to write")
        one.add_argument("--yardstick", type=Path, help="folder of the victim's bundle, to measure the copy by")
        if role == "attack":
            _add_disguises(one)
    many = commands.add_parser("campaign", help="drive many accounts side by side")
    many.add_argument("plan", type=Path, help="JSON file: a CampaignPlan")
    many.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _add_disguises(attack: argparse.ArgumentParser) -> None:
    disguises = attack.add_argument_group("adaptive attacks", "what the attacker does against detectors and defences")
    disguises.add_argument(
        "--blinding", choices=BLINDINGS, default="", help="transform each image and book the answer to the original"
    )
    disguises.add_argument("--blinding-strength", choices=("low", "high"), default="low", help="how much (%(default)s)")
    disguises.add_argument(
        "--mix", type=float, default=0.0, metavar="SHARE",
        help="share of honest images among all that is sent, such as 0.875; --queries counts them too (%(default)s)",
    )  # fmt: skip
    disguises.add_argument(
        "--filter", action="store_true",
        help="hold back what a similarity detector of the attacker's own believes suspicious; trains it first",
    )  # fmt: skip
    disguises.add_argument(
        "--recover", action="store_true",
        help="D-DAE: mend spoiled answers by what was learnt from playing victims with defences; does that first",
    )  # fmt: skip


def _disguises(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.role != "attack":
        return {}
    return {
        "blinding": arguments.blinding,
        "blinding_strength": arguments.blinding_strength,
        "mix": arguments.mix,
        "filtered": arguments.filter,
        "recovering": arguments.recover,
    }


def _plan_of_one(arguments: argparse.Namespace, report: Path) -> CampaignPlan:
    client = ClientPlan(
        account=arguments.kind,
        key=os.environ.get(KEY_VARIABLE, ""),
        role=arguments.role,
        kind=arguments.kind,
        queries=arguments.queries,
        queries_per_second=arguments.pace,
        request_rows=arguments.request_rows,
        **_disguises(arguments),
    )
    return CampaignPlan(
        address=arguments.address,
        model=arguments.model,
        clients=(client,),
        report=report,
        journals=arguments.journals,
        seed=arguments.seed,
        data=arguments.data,
        bundle=arguments.yardstick,
    )


def _run(plan: CampaignPlan, quiet: bool) -> CampaignReport:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=quiet) as bars:
        tasks = {client.account: bars.add_task(client.account, total=client.queries) for client in plan.clients}

        def show(report: CampaignReport) -> None:
            for account, one in report.accounts.items():
                bars.update(tasks[account], completed=one.queries)

        return Campaign(plan).run(show)


def _print(report: CampaignReport) -> None:
    for account, one in report.accounts.items():
        copies = ", ".join(f"{agreement:.1%} after {queries:,}" for queries, agreement, _ in one.milestones)
        print(
            f"{account}: {one.state}, {one.queries:,} queries answered"
            + (f"; the copy agrees with the victim on {copies}" if copies else "")
            + (f"; {one.error}" if one.error else "")
        )


def main() -> int:
    """Run the command; 1 where a client failed or the plan is no good."""
    arguments = _parser().parse_args()
    # Clients wait in threads; an interrupt must not wait for them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            if arguments.role == "campaign":
                plan = CampaignPlan.model_validate_json(arguments.plan.read_text())
                report = _run(plan, arguments.quiet)
            else:
                plan = _plan_of_one(arguments, arguments.report or Path(scratch) / "report.json")
                report = _run(plan, not sys.stdout.isatty())
    except (OSError, ValidationError, BundleError, DatasetError) as error:
        print(error, file=sys.stderr)
        return 1
    _print(report)
    return 1 if any(one.state == "failed" for one in report.accounts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
