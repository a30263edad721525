"""`portcullis redteam`: attack your own deployment, and read what became of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
import yaml

from services.cli.keys import open_keys
from services.cli.output import AsJson, CommandError, say, show_table
from services.cli.streams import read_verdicts
from services.redteam.plan import CampaignPlan, CampaignReport
from services.redteam.scenario import Scenario, load_scenario, load_secrets
from shared.datasets import DEFAULT_FOLDER
from shared.events import Verdict
from shared.files import write_whole
from shared.keys import DEFAULT_KEYS, issue_key
from shared.settings import ServiceSettings

app = typer.Typer(
    no_args_is_help=True,
    help="Scenarios of attackers and honest accounts, run against a deployment. 'python -m services.redteam' drives "
    "single accounts.",
)
SCENARIOS = Path(__file__).parents[1] / "redteam" / "scenarios"
DEFAULT_SECRETS = Path("build/redteam/secrets.yaml")
FOUND = 3
"""Exit status where an attacker went free or an honest account was hurt."""
SETTLE_SECONDS = 3.0
"""For the last queries to become verdicts."""

Name = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A YAML file, or the name of a scenario that is shipped.")
]
Secrets = Annotated[Path, typer.Option(help="File of the accounts' API keys, account: key.", show_default=True)]


def _file(name: str) -> Path:
    shipped = SCENARIOS / f"{name}.yaml"
    if Path(name).exists() or not shipped.exists():
        return Path(name)
    return shipped


@app.command("list")
def list_scenarios(as_json: AsJson = False) -> None:
    """Show the scenarios that are shipped."""
    rows = []
    for path in sorted(SCENARIOS.glob("*.yaml")):
        scenario = load_scenario(path)
        rows.append({"scenario": path.stem, "accounts": len(scenario.accounts), "title": scenario.title})
    show_table(rows, ("scenario", "accounts", "title"), as_json, "")


@app.command()
def keys(
    name: Name,
    secrets: Secrets = DEFAULT_SECRETS,
    file: Annotated[
        Path, typer.Option("--keys", envvar="PORTCULLIS_KEYS", help="File of the deployment's keys.", show_default=True)
    ] = DEFAULT_KEYS,
    as_json: AsJson = False,
) -> None:
    """Issue an API key to every account of a scenario that has none yet."""
    known = load_secrets(secrets) if secrets.exists() else {}
    key_file = open_keys(file)
    added = [account for account in load_scenario(_file(name)).accounts if account not in known]
    for account in added:
        known[account], record = issue_key(account)
        key_file = key_file.add(account, record)
    key_file.save()
    secrets.parent.mkdir(parents=True, exist_ok=True)
    write_whole(secrets, yaml.safe_dump(known).encode(), private=True)
    say(
        {"issued": added, "keys": str(file), "secrets": str(secrets)}, as_json,
        f"{len(added)} keys issued; their hashes are in {file}, they themselves in {secrets}",
    )  # fmt: skip


@app.command()
def run(
    name: Name,
    address: Annotated[str, typer.Option(help="host:port of the gRPC endpoint.")] = "127.0.0.1:8001",
    secrets: Secrets = DEFAULT_SECRETS,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report, and of what was answered: a run that was cut goes on. "
            "build/redteam/<scenario> if not given.",
            show_default=False,
        ),
    ] = None,
    kafka: Annotated[
        bool,
        typer.Option("--kafka/--no-kafka", help="Whether to ask PORTCULLIS_KAFKA for the verdicts."),
    ] = True,
    yardstick: Annotated[
        bool, typer.Option("--yardstick/--no-yardstick", help="Whether to measure copies by the model of the bundle.")
    ] = True,
    undefended: Annotated[
        bool,
        typer.Option("--undefended/--no-undefended", help="Whether to run the attacks on the bundle's bare model too."),
    ] = True,
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")] = DEFAULT_FOLDER,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a scenario against a deployment and write a report: Markdown, JSON and a picture.

    The exit status is 3 where an attacker went free or an honest account was hurt.
    """
    path = _file(name)
    scenario = load_scenario(path)
    clients = scenario.clients(load_secrets(secrets) if secrets.exists() else {})
    settings = ServiceSettings()
    folder = output or Path("build/redteam") / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    plan = CampaignPlan(
        address=address, model=scenario.model, clients=clients, report=folder / "clients.json",
        journals=folder / "journals", seed=scenario.seed, data=data, bundle=settings.bundle if yardstick else None,
    )  # fmt: skip
    started_at = _started(folder)
    bars = not quiet and not as_json
    defended = _campaign(plan, folder, bars)
    alone = None
    if undefended and yardstick and any(client.role == "attack" for client in clients):
        update = {"undefended": scenario.answers, "report": folder / "undefended.json", "journals": None}
        alone = _campaign(plan.model_copy(update=update), folder, bars)
    else:
        time.sleep(SETTLE_SECONDS)
    verdicts = _verdicts(settings, scenario, started_at) if kafka else None
    # Torch and matplotlib take seconds, which no other command need wait for.
    from services.evaluation import report
    from services.evaluation.outcome import Outcome

    outcome = Outcome(scenario, defended, alone, verdicts, started_at)
    report.write(outcome.study(folder), folder, f"portcullis redteam run {name}")
    lines = [*outcome.sentences, f"The report is {folder / 'report.md'}."]
    say(json.loads((folder / "report.json").read_text()), as_json, "\n".join(lines))
    raise typer.Exit(FOUND if outcome.complaints else 0)


def _started(folder: Path) -> int:
    """When the run began, microseconds since the Unix epoch: the first time, where one that was cut goes on."""
    file = folder / "started"
    if not file.exists():
        write_whole(file, str(time.time_ns() // 1000).encode())
    return int(file.read_text())


def _campaign(plan: CampaignPlan, folder: Path, bars: bool) -> CampaignReport:
    """Drive the clients in a process of their own: two stub sets of one protobuf package cannot live in one."""
    file = folder / "plan.json"
    write_whole(file, plan.model_dump_json().encode(), private=True)  # it holds the accounts' keys
    try:
        command = [sys.executable, "-m", "services.redteam", "campaign", *([] if bars else ["--quiet"]), str(file)]
        ended = subprocess.run(
            command, check=False, stdout=subprocess.DEVNULL if not bars else None, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    finally:
        file.unlink(missing_ok=True)
    result = CampaignReport.read(plan.report)
    if ended.returncode and not any(one.state == "failed" for one in result.accounts.values()):
        raise CommandError(f"the clients failed with status {ended.returncode}: {ended.stderr.strip()[-2000:]}")
    return result


def _verdicts(settings: ServiceSettings, scenario: Scenario, since: int) -> Mapping[str, Sequence[Verdict]]:
    found: defaultdict[str, list[Verdict]] = defaultdict(list)
    accounts = set(scenario.accounts)
    for account, verdict in read_verdicts(settings):
        if verdict and account in accounts and verdict.model_name == scenario.model and verdict.issued_at >= since:
            found[account].append(verdict)
    return found
