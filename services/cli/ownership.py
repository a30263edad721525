"""`portcullis verify` and `portcullis evidence`: whether a model was stolen, and what proves it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from services.cli.output import AsJson, CommandError, say, show_table
from services.ownership.settings import DEFAULT_REGISTRY
from shared.bundle import Bundle, BundleError, ModelSection
from shared.settings import ServiceSettings

if TYPE_CHECKING:
    from services.ownership.chain import Link
    from services.ownership.interview import Interview
    from services.ownership.registry import Chain, Registry
    from services.ownership.verification import Finding, Verification

CLAIM = 3
"""Exit status where the claim holds that the suspect learnt from some account's answers."""
UNSTABLE = 0.05
"""Share of changed answers from which a person is told that the suspect may answer at random."""

evidence = typer.Typer(
    no_args_is_help=True,
    help="What is kept of answers that were spoiled on purpose: a hash chain for each account, which shows every "
    "alteration. It does not show when it was made: leave its head with somebody else before a suspect is looked at.",
)

RegistryUrl = Annotated[
    str,
    typer.Option(
        "--registry",
        envvar="PORTCULLIS_REGISTRY",
        help="sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/DATABASE.",
    ),
]
Model = Annotated[str, typer.Option(help="Name of the model; the bundle's if not given.", show_default=False)]


def verify(
    suspect: Annotated[
        str,
        typer.Argument(
            help="grpc://HOST:PORT/MODEL (grpcs:// for TLS), or a file: ONNX, or the weights of a network of ours as "
            "safetensors, TorchScript or torch.save. No code that a file carries is run."
        ),
    ],
    registry: RegistryUrl = DEFAULT_REGISTRY,
    evidence_files: Annotated[
        list[Path] | None,
        typer.Option("--evidence", help="A file of `portcullis evidence export` instead; may be given again."),
    ] = None,
    account: Annotated[
        list[str] | None, typer.Option(help="Of this account only; may be given again. All where not given.")
    ] = None,
    innocent: Annotated[
        list[str] | None,
        typer.Option(
            help="A model that never saw our answers, in any form that SUSPECT has; may be given again. How often "
            "these say the told labels is the base rate. Without any, it is what the suspect says elsewhere."
        ),
    ] = None,
    class_map: Annotated[
        str,
        typer.Option(
            help="Which of our classes each of the suspect's is, by name or number, in its order, separated by commas; "
            "- for none. Its classes are ours in our order where not given."
        ),
    ] = "",
    key: Annotated[
        str, typer.Option(envvar="PORTCULLIS_SUSPECT_KEY", help="Sent to the suspect as a bearer token.")
    ] = "",
    patience: Annotated[float, typer.Option(min=1.0, help="Seconds to wait for an endpoint that is away.")] = 60.0,
    level: Annotated[
        float,
        typer.Option(min=1e-12, max=0.5, help="Probability by chance, over all accounts, up to which it is theft."),
    ] = 0.001,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="t of AMAO's Algorithm 3, for the paper's rule beside it.")
    ] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Ask a suspect model about every answer that was spoiled, and say for each account how probable its answers are
    if it never learnt from them.

    Exit status: 0 it was asked and no claim holds; 3 a claim holds; 1 it could not be asked, and nothing follows; 2
    wrong usage.
    """
    try:
        from services.inference.network import ARCHITECTURES
        from services.ownership.interview import interview
        from services.ownership.suspects import open_suspect
        from services.ownership.verification import verify as hold_against
    except ImportError as error:
        raise CommandError(
            f"verification needs more packages ({error}): pip install 'portcullis[verification]'"
        ) from error
    section = _image_model(Bundle.load(ServiceSettings().bundle))
    with ExitStack() as stack:
        chains, total = _chains(stack, registry, evidence_files or [], section.name, account or [])
        asked = open_suspect(suspect, section, ARCHITECTURES, _class_map(class_map, section), key, patience)
        stack.callback(asked.close)
        innocents = []
        for what in innocent or []:
            innocents.append(open_suspect(what, section, ARCHITECTURES, patience_seconds=patience))
            stack.callback(innocents[-1].close)
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True, disable=as_json))
        task = progress.add_task("asking", total=total)
        heard = interview(chains, asked, innocents, section, lambda records: progress.advance(task, records))
    verification = hold_against(
        heard.marks, heard.suspect, heard.innocents, len(section.classes), threshold=threshold, level=level
    )
    if as_json:
        say(_document(suspect, section, verification, heard, innocent or []), True, "")
    else:
        _explain(suspect, verification, heard, len(innocents))
    if verification.claim:
        raise typer.Exit(CLAIM)


@evidence.command("list")
def list_evidence(
    registry: RegistryUrl = DEFAULT_REGISTRY,
    model: Annotated[str, typer.Option(help="Of this model only.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show every account with spoiled answers, how many, and the head of its chain."""
    with _opened(registry) as opened:
        rows = [
            {"model": of.model_name, "account": of.account, "records": of.records, "head": of.head.hex()}
            for of in opened.chains(model)
        ]
        aside = len(opened.rejected())
    show_table(rows, ("model", "account", "records", "head"), as_json, "no answer was spoiled so far")
    if aside and not as_json:
        typer.echo(f"{aside} records of the topic were no evidence and are kept aside")


@evidence.command("export")
def export(
    account: Annotated[str, typer.Option(help="Whose evidence.")],
    output: Annotated[Path, typer.Option(help="File to write: JSON lines.")],
    registry: RegistryUrl = DEFAULT_REGISTRY,
    model: Model = "",
    as_json: AsJson = False,
) -> None:
    """Write one account's evidence into a file that shows by itself whether it was altered."""
    with _opened(registry) as opened:
        from services.ownership.evidence import export_evidence

        name = model or Bundle.load(ServiceSettings().bundle).manifest.model.name
        (chain,) = _wanted(opened, name, [account])
        export_evidence(opened, chain, output)
    document = {"file": str(output), "account": account, "records": chain.records, "head": chain.head.hex()}
    say(document, as_json, f"{output}: {chain.records} records of {account}, head {chain.head.hex()}")


@evidence.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="Of `portcullis evidence export`.")],
    head: Annotated[str, typer.Option(help="A head as somebody else kept it: how many records there were then.")] = "",
    as_json: AsJson = False,
) -> None:
    """Prove that a file of evidence is what was exported, or name the first record that was altered."""
    from services.ownership.evidence import Evidence

    opened = Evidence.open(file)
    known = opened.check(head)
    found = opened.header
    document = {"file": str(file), "sound": True, **found.model_dump()} | ({"known": known} if head else {})
    then = (
        f"the first {known} were there when its head was {head}"
        if head
        else "when that was, only a head that was kept elsewhere shows: --head"
    )
    say(
        document,
        as_json,
        f"{file}: all {found.records} records of {found.account} are sound, head {found.head}; {then}",
    )


@contextmanager
def _opened(url: str) -> Iterator[Registry]:
    from services.ownership.registry import Registry

    registry = Registry.open(url)
    try:
        yield registry
    finally:
        registry.close()


def _image_model(bundle: Bundle) -> ModelSection:
    section = bundle.manifest.model
    if len(section.input_shape) != 3:
        raise BundleError(f"{bundle.folder}: field model.input_shape is no image; only those can be asked about")
    return section


def _chains(
    stack: ExitStack, registry: str, files: Sequence[Path], model_name: str, accounts: Sequence[str]
) -> tuple[Iterable[tuple[str, Iterator[Link]]], int]:
    """Accounts with their chains, and how many records that is."""
    if files:
        from services.ownership.evidence import Evidence

        opened = [Evidence.open(file) for file in files]
        for one in opened:
            if one.header.model_name != model_name:
                raise CommandError(
                    f"{one.path}: is of the model {one.header.model_name}, the bundle of {model_name}; set "
                    "PORTCULLIS_BUNDLE"
                )
        held = {one.header.account: one for one in opened}
        if len(held) < len(opened) or not held.keys() >= set(accounts):
            there = ", ".join(one.header.account for one in opened)
            raise CommandError(f"--evidence must name one file of each account; these are of {there}")
        chosen = [held[name] for name in dict.fromkeys(accounts)] or list(held.values())
        return [(one.header.account, one.links()) for one in chosen], sum(one.header.records for one in chosen)
    source = stack.enter_context(_opened(registry))
    wanted = _wanted(source, model_name, accounts)
    return (
        [(of.account, source.links(of.model_name, of.account, of.records)) for of in wanted],
        sum(of.records for of in wanted),
    )


def _wanted(registry: Registry, model_name: str, accounts: Sequence[str]) -> list[Chain]:
    """
    Raises:
        CommandError: there is no evidence of one of the accounts, or none at all.
    """
    chains = {chain.account: chain for chain in registry.chains(model_name)}
    absent = [account for account in accounts if account not in chains]
    if absent or not chains:
        of = ", ".join(absent) or "any account"
        raise CommandError(
            f"no answer of {model_name} to {of} was spoiled so far; `portcullis evidence list` shows what there is"
        )
    return [chains[account] for account in dict.fromkeys(accounts)] or list(chains.values())


def _class_map(text: str, section: ModelSection) -> list[int] | None:
    if not text:
        return None
    numbers = {name: number for number, name in enumerate(section.classes)}
    numbers |= {str(number): number for number in range(len(section.classes))} | {"-": -1}
    unknown = [name for name in text.split(",") if name.strip() not in numbers]
    if unknown:
        raise CommandError(f"--class-map: {unknown[0]!r} is no class; there are {', '.join(section.classes)}")
    return [numbers[name.strip()] for name in text.split(",")]


def _document(
    suspect: str, section: ModelSection, verification: Verification, heard: Interview, innocents: Sequence[str]
) -> dict[str, Any]:
    return {
        "suspect": suspect,
        "model": {"name": section.name, "version": section.version},
        "claim": verification.claim,
        "level": verification.level,
        "threshold": verification.threshold,
        "base": verification.base,
        "innocents": list(innocents),
        "confidence": verification.confidence,
        "records": heard.records,
        "asked_twice": heard.asked_twice,
        "changed": heard.changed,
        "accounts": [dataclasses.asdict(of) | {"ratio": of.ratio} for of in verification.findings],
    }


def _explain(suspect: str, verification: Verification, heard: Interview, innocents: int) -> None:
    rows = [_row(of) for of in verification.findings]
    show_table(rows, tuple(rows[0]), False, "")
    measured = (
        f"measured on {innocents} innocent models"
        if innocents
        else "what the suspect says elsewhere, as no --innocent model was given"
    )
    typer.echo(
        f"matches: the suspect says the wrong label that was told\n"
        f"base: how often that happens without theft, {measured} ({verification.confidence:.0%} confidence)\n"
        f"chance: probability of so many matches without theft; corrected: for "
        f"{sum(of.marks > 0 for of in verification.findings)} accounts (Holm)\n"
        f"paper: whether over {verification.threshold:.0%} match (AMAO, Algorithm 3)"
    )
    if heard.changed:
        share = heard.changed / heard.asked_twice
        warning = "; it may answer at random" if share >= UNSTABLE else ""
        typer.echo(f"asked twice, it changed {heard.changed} of {heard.asked_twice} answers ({share:.1%}){warning}")
    for of in verification.findings:
        if of.accused_innocents:
            typer.echo(
                f"{of.account}: the same tests would accuse {of.accused_innocents} of the innocent models, so they "
                "prove nothing here"
            )
    claimed = [of for of in verification.findings if of.claim]
    for of in claimed:
        typer.echo(
            f"{suspect} learnt from the answers told to {of.account}: chance explains it only where innocent models "
            f"say the told label on {of.tolerated_base_rate:.0%} of the marks"
        )
    if not claimed:
        typer.echo(f"nothing shows that {suspect} learnt from spoiled answers")


def _row(of: Finding) -> dict[str, Any]:
    return {
        "account": of.account,
        "marks": of.marks,
        "matches": f"{of.matches} ({of.ratio:.0%})",
        "base": f"≤ {of.base_rate_limit:.1%}",
        "chance": _probability(of.p),
        "corrected": _probability(of.p_holm),
        "paper": "stolen" if of.paper_rule else "benign",
        "claim": "yes" if of.claim else "no",
    }


def _probability(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else f"10^{math.floor(math.log10(value))}"
