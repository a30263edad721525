"""The command `portcullis`, for those who run the defence."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from kafka.errors import KafkaError
from pydantic import ValidationError

from services.cli import evaluation, inspection, keys, overrides, ownership, redteam, training
from services.cli.output import FAILED, CommandError
from services.decision.policy_file import PolicyFileError
from services.evaluation.figures import FiguresError
from services.ownership.errors import OwnershipError
from services.redteam.scenario import ScenarioError
from shared.bundle import BundleError
from shared.datasets import DatasetError
from shared.keys import KeyFileError
from shared.topics_admin import TopicsError

app = typer.Typer(
    name="portcullis",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Runs the defence: keys, people's decisions, policies, and what has been decided. Settings are environment "
    "variables PORTCULLIS_*: KAFKA, TOPIC_PREFIX, PARTITIONS, BUNDLE, KEYS, REGISTRY.",
)
app.add_typer(keys.app, name="keys")
app.add_typer(overrides.app, name="override")
app.add_typer(inspection.policy, name="policy")
app.add_typer(inspection.bundle, name="bundle")
app.add_typer(inspection.topics, name="topics")
app.add_typer(inspection.alerts, name="alerts")
app.add_typer(ownership.evidence, name="evidence")
app.add_typer(redteam.app, name="redteam")
app.command("verdicts")(inspection.show_verdicts)
app.command("verify")(ownership.verify)
app.command("train")(training.train)
app.command("evaluate")(evaluation.evaluate)
app.command("figures")(evaluation.show_figures)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the process: 0 done, 1 it could not be done, 2 wrong usage, 3 `verify` found theft
    or `redteam run` a hole.

    Args:
        arguments: of the command; the process's own where None.
    """
    try:
        app(args=arguments, prog_name="portcullis")
    except (
        CommandError, PolicyFileError, BundleError, KeyFileError, TopicsError, FiguresError, DatasetError,
        OwnershipError, ScenarioError,
    ) as error:  # fmt: skip
        _fail(str(error))
    except KafkaError as error:
        _fail(f"Kafka does not answer ({type(error).__name__}); start it, or set PORTCULLIS_KAFKA to host:port")
    except ValidationError as error:
        first = error.errors()[0]
        _fail(f"setting PORTCULLIS_{'.'.join(map(str, first['loc'])).upper()}: {first['msg']}")
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}")


def _fail(message: str) -> None:
    print(f"portcullis: {message}", file=sys.stderr)
    sys.exit(FAILED)


if __name__ == "__main__":
    main()
