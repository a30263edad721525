"""Several clients at once, each an account of its own in a thread of its own; told by a plan, reporting to a file."""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import numpy as np

from services.inference.model import Model, softmax
from services.inference.responses.interface import AnswerMode, truth
from services.redteam.adaptive import Colluding, Filtered, Mixed, SubstituteDetector, train_encoder
from services.redteam.attack import Account, Ask, Attack, AttackReport, Banned, Route
from services.redteam.blinding import Blinded, blinding
from services.redteam.client import EndpointError, VictimClient
from services.redteam.dfme import Dfme, Maze
from services.redteam.dfms import DfmsHl
from services.redteam.honest import DIGITS, HONEST_KINDS, Pace, drive
from services.redteam.jacobian import SEEDS, Cloudleak, JbaBs, JbaCw, JbaPgd, Jbda, JbdaTr, JbTop3
from services.redteam.journal import Journal, JournalError
from services.redteam.plan import AnswerKind, CampaignPlan, CampaignReport, ClientPlan, ClientReport
from services.redteam.pool import (
    AdaptiveKnockoff,
    CopyCat,
    Dfal,
    DfalKCenter,
    KCenter,
    KnockoffNets,
    LineSearch,
    PoolAttack,
    RandomSelection,
    Uncertainty,
)
from services.redteam.recovery import Recovering
from services.redteam.substitute import Yardstick, shape_of
from shared.bundle import Bundle
from shared.datasets import Dataset, load_digits, load_fashion_mnist
from shared.files import write_whole

YARDSTICK_IMAGES = 2000
REPORT_SECONDS = 1.0
"""Between two writings of the report."""

AttackBuilder = Callable[[Dataset, np.random.Generator, Path, int], Attack]


DFME_BATCH = 32
"""The authors' 256 would spend a budget of a few thousand queries in a round or two."""
MAZE_BATCH = 16
"""A round asks for fifteen times as many."""
MAZE_STEP, MAZE_GENERATOR_RATE = 1.0, 1e-2
"""Of one who knows that pixels have 8 bits, which the authors' step of 1e-3 hardly moves, and has no millions of
queries for their rate of 1e-4."""
DFMS_INITIAL, DFMS_BATCH, DFMS_REPLAYS = 500, 32, 5
DFMS_COPY_RATE, DFMS_GENERATOR_RATE = 0.03, 1e-3
"""As for MAZE: the authors' rates are for millions of queries."""
DFMS_GAME_STEPS = 0
"""A generator that has learnt to draw synthetic shapes before it is asked for questions makes worse ones: copies of a
victim for 14 by 14 pixels agreed on 48% after 4,000 queries with 100 steps, on 59% with none (means of four draws)."""
OWN_IMAGES = 2000
"""Labelled images that an adaptive attacker has to train an encoder, an auto-encoder or shadow models of its own on."""
OWN_EPOCHS = 4


def _jacobian(
    attack: type[Jbda] | type[JbdaTr] | type[JbaPgd] | type[JbTop3] | type[JbaCw] | type[JbaBs] | type[Cloudleak],
) -> AttackBuilder:
    def build(data: Dataset, random: np.random.Generator, folder: Path, request_rows: int) -> Attack:
        seeds = data.images[random.choice(len(data), SEEDS, replace=False)]
        return attack(seeds, request_rows=request_rows)

    return build


def _chosen(attack: type[PoolAttack]) -> AttackBuilder:
    def build(data: Dataset, random: np.random.Generator, folder: Path, request_rows: int) -> Attack:
        return attack(data.images, request_rows=request_rows)

    return build


def _adaptive_knockoff(data: Dataset, random: np.random.Generator, folder: Path, request_rows: int) -> Attack:
    return AdaptiveKnockoff(load_digits(folder), request_rows=request_rows)


def _copycat(data: Dataset, random: np.random.Generator, folder: Path, request_rows: int) -> Attack:
    return CopyCat(np.concatenate([load_digits(folder).images, data.images]), request_rows=request_rows)


def _line_search(data: Dataset, random: np.random.Generator, folder: Path, request_rows: int) -> Attack:
    return LineSearch(data.images[random.choice(len(data), SEEDS, replace=False)], request_rows=request_rows)


def _knockoff(data: Dataset, random: np.random.Generator, folder: Path, request_rows: int) -> Attack:
    return KnockoffNets(load_digits(folder).images, request_rows=request_rows)


def _dfme(data: Dataset, random: np.random.Generator, folder: Path, request_rows: int) -> Attack:
    return Dfme(shape_of(data.images), DFME_BATCH, request_rows=request_rows)


def _maze(data: Dataset, random: np.random.Generator, folder: Path, request_rows: int) -> Attack:
    return Maze(
        shape_of(data.images),
        MAZE_BATCH,
        epsilon=MAZE_STEP,
        generator_rate=MAZE_GENERATOR_RATE,
        request_rows=request_rows,
    )


def _dfms(data: Dataset, random: np.random.Generator, folder: Path, request_rows: int) -> Attack:
    return DfmsHl(
        shape_of(data.images),
        initial=DFMS_INITIAL,
        batch=DFMS_BATCH,
        replays=DFMS_REPLAYS,
        game_steps=DFMS_GAME_STEPS,
        copy_rate=DFMS_COPY_RATE,
        generator_rate=DFMS_GENERATOR_RATE,
        request_rows=request_rows,
    )


ATTACKS: Mapping[str, AttackBuilder] = MappingProxyType(
    {
        "jbda": _jacobian(Jbda),
        "jbda-tr": _jacobian(JbdaTr),
        "jba-pgd": _jacobian(JbaPgd),
        "jb-top3": _jacobian(JbTop3),
        "jba-cw": _jacobian(JbaCw),
        "jba-bs": _jacobian(JbaBs),
        "cloudleak": _jacobian(Cloudleak),
        "dfme": _dfme,
        "maze": _maze,
        "dfms-hl": _dfms,
        "knockoff-digits": _knockoff,
        "knockoff-adaptive-digits": _adaptive_knockoff,
        "copycat": _copycat,
        "random-natural": _chosen(RandomSelection),
        "activethief-uncertainty": _chosen(Uncertainty),
        "activethief-k-center": _chosen(KCenter),
        "activethief-dfal": _chosen(Dfal),
        "activethief-dfal-k-center": _chosen(DfalKCenter),
        "line-search": _line_search,
    }
)
"""How each attack is built from natural images (its seeds), its randomness, the data folder and the rows a request."""


def adaptive_route(plan: ClientPlan, asks: Sequence[Ask], data: Dataset, random: np.random.Generator) -> Route:
    """The route from an attack to its accounts, by way of the disguises that its plan asks for.

    The filter of each account comes last and sees what is sent; honest queries are mixed in unblinded.

    Args:
        plan: of the accounts.
        asks: the accounts, of which there are several where they collude.
        data: natural images with labels, of which the attacker's own and its honest ones are drawn.
        random: of all that is drawn.

    Raises:
        KeyError: no such blinding.
    """
    routes: list[Route] = [Account(ask) for ask in asks]
    own = data[random.permutation(len(data))[:OWN_IMAGES]]
    if plan.filtered:
        encode = train_encoder(own, OWN_EPOCHS, OWN_EPOCHS, int(random.integers(2**31)))
        routes = [Filtered(route, SubstituteDetector.tuned(encode, own.images)) for route in routes]
    if plan.mix:
        routes = [Mixed(route, data.images[random.permutation(len(data))], plan.mix, random) for route in routes]
    route = Colluding(routes) if len(routes) > 1 else routes[0]
    if plan.blinding:
        labels = np.eye(int(own.labels.max()) + 1, dtype=np.float32)[own.labels]
        route = Blinded(route, blinding(plan.blinding, plan.blinding_strength, own.images, labels, random), random)
    return route


def recovering(plan: ClientPlan, attack: Attack, data: Dataset, random: np.random.Generator) -> Attack:
    """The attack, learning from mended answers if its plan asks for that.

    Args:
        plan: of the account.
        attack: as it would learn from what it is told.
        data: natural images with labels, of which the attacker's own are drawn.
        random: of all that is drawn.
    """
    if not plan.recovering:
        return attack
    return Recovering(attack, data[random.permutation(len(data))[:OWN_IMAGES]], random)


def bundle_yardstick(bundle: Bundle, data: Dataset) -> Yardstick:
    """Measures copies by the undefended victim of a bundle.

    Raises:
        BundleError: the bundle has no such network.
    """
    labels = Model(bundle).logits(data.images).argmax(axis=1)
    return Yardstick(data.images, labels.astype(np.int64), data.labels)


def _undefended(bundle: Bundle | None, kind: AnswerKind) -> Ask:
    """
    Raises:
        ValueError: there is no bundle whose model could answer.
    """
    if bundle is None:
        raise ValueError("field undefended needs attackers, and field bundle, whose model answers them")
    model = Model(bundle)
    return lambda images: truth(softmax(model.logits(images)), AnswerMode(kind))


class Campaign:
    """Drives a plan's accounts to their ends."""

    def __init__(self, plan: CampaignPlan) -> None:
        self._plan = plan
        test = load_fashion_mnist("test", plan.data)
        # Seeds and yardstick share no image.
        self._natural, self._clean = test[YARDSTICK_IMAGES:], test[:YARDSTICK_IMAGES]
        attackers = tuple(client for client in plan.clients if client.role == "attack")
        self._clients = plan.clients if plan.undefended is None else attackers
        bundle = Bundle.load(plan.bundle) if attackers and plan.bundle else None
        self._yardstick = bundle_yardstick(bundle, self._clean) if bundle else None
        self._victim = _undefended(bundle, plan.undefended) if plan.undefended else None
        self.report = CampaignReport(accounts={client.account: ClientReport() for client in self._clients})
        self._lock = threading.Lock()

    def run(self, progress: Callable[[CampaignReport], None] = lambda report: None) -> CampaignReport:
        """Run every client to its end; the report is written about every second, and told to `progress`."""
        with ThreadPoolExecutor(max_workers=max(len(self._clients), 1)) as threads:
            running = [threads.submit(self._client, client) for client in self._clients]
            while not all(one.done() for one in running):
                self._write()
                progress(self.report)
                time.sleep(REPORT_SECONDS)
            for one in running:
                one.result()
        self._write()
        progress(self.report)
        return self.report

    def _write(self) -> None:
        with self._lock:
            text = self.report.model_dump_json(indent=1)
        write_whole(self._plan.report, text.encode())

    def _client(self, plan: ClientPlan) -> None:
        report = self.report.accounts[plan.account]
        # Each account's own stream of random numbers, whatever else is in the plan.
        random = np.random.default_rng([self._plan.seed, zlib.crc32(plan.account.encode())])
        report.state = "running"
        drive_one = self._honest if plan.role == "honest" else self._attack
        keys = {plan.account: plan.key, **plan.accomplices}
        try:
            with contextlib.ExitStack() as stack:
                drive_one(plan, [self._ask(account, key, plan, stack) for account, key in keys.items()], random, report)
            report.state = "done"
        except Banned:
            report.state = "banned"
        except (EndpointError, JournalError) as error:
            report.state, report.error = "failed", str(error)

    def _ask(self, account: str, key: str, plan: ClientPlan, stack: contextlib.ExitStack) -> Ask:
        if self._victim:
            return self._victim
        client = stack.enter_context(VictimClient(self._plan.address, key, self._plan.model))
        ask = Pace(plan.queries_per_second).pacing(client.query)
        journals = self._plan.journals
        return Journal(journals / f"{quote(account, safe='')}.journal").keeping(ask) if journals else ask

    def _honest(self, plan: ClientPlan, asks: Sequence[Ask], random: np.random.Generator, report: ClientReport) -> None:
        def told(answered: int) -> None:
            report.queries = answered

        photographed = load_digits(self._plan.data) if plan.kind == DIGITS else self._natural
        drive(asks[0], HONEST_KINDS[plan.kind](photographed, plan.queries, random), told)

    def _attack(self, plan: ClientPlan, asks: Sequence[Ask], random: np.random.Generator, report: ClientReport) -> None:
        def told(progress: AttackReport) -> None:
            with self._lock:
                report.queries = progress.queries
                report.milestones = [
                    (milestone.queries, milestone.similarity.agreement, milestone.similarity.accuracy)
                    for milestone in progress.milestones
                    if milestone.similarity
                ]

        attack = ATTACKS[plan.kind](self._natural, random, self._plan.data, plan.request_rows)
        # Disguises and recovery draw from streams of their own, so that the attack underneath is the same without them.
        disguising, mending = random.spawn(2)
        attack = recovering(plan, attack, self._natural, mending)
        route = adaptive_route(plan, asks, self._natural, disguising)
        if attack.run(route, plan.queries, random, self._yardstick, told).banned:
            raise Banned
