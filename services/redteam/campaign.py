"""Several clients at once, each an account of its own in a thread of its own; told by a plan, reporting to a file."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import numpy as np

from services.inference.model import Model
from services.redteam.attack import Ask, Attack, AttackReport, Banned
from services.redteam.client import EndpointError, VictimClient
from services.redteam.honest import HONEST_KINDS, Pace, drive
from services.redteam.jacobian import SEEDS, JbaPgd, JbdaTr, JbTop3
from services.redteam.knockoff import KnockoffNets
from services.redteam.plan import CampaignPlan, CampaignReport, ClientPlan, ClientReport
from services.redteam.substitute import Yardstick
from shared.bundle import Bundle
from shared.datasets import Dataset, load_digits, load_fashion_mnist

YARDSTICK_IMAGES = 2000
REPORT_SECONDS = 1.0
"""Between two writings of the report."""

AttackBuilder = Callable[[Dataset, np.random.Generator, Path, int], Attack]


def _jacobian(attack: type[JbdaTr] | type[JbaPgd] | type[JbTop3]) -> AttackBuilder:
    def build(data: Dataset, random: np.random.Generator, folder: Path, request_rows: int) -> Attack:
        seeds = data.images[random.choice(len(data), SEEDS, replace=False)]
        return attack(seeds, request_rows=request_rows)

    return build


def _knockoff(data: Dataset, random: np.random.Generator, folder: Path, request_rows: int) -> Attack:
    return KnockoffNets(load_digits(folder).images, request_rows=request_rows)


ATTACKS: Mapping[str, AttackBuilder] = MappingProxyType(
    {
        "jbda-tr": _jacobian(JbdaTr),
        "jba-pgd": _jacobian(JbaPgd),
        "jb-top3": _jacobian(JbTop3),
        "knockoff-digits": _knockoff,
    }
)
"""How each attack is built from natural images (its seeds), its randomness, the data folder and the rows a request."""


def bundle_yardstick(bundle: Bundle, data: Dataset) -> Yardstick:
    """Measures copies by the undefended victim of a bundle.

    Raises:
        BundleError: the bundle has no such network.
    """
    labels = Model(bundle).logits(data.images).argmax(axis=1)
    return Yardstick(data.images, labels.astype(np.int64), data.labels)


class Campaign:
    """Drives a plan's accounts to their ends."""

    def __init__(self, plan: CampaignPlan) -> None:
        self._plan = plan
        test = load_fashion_mnist("test", plan.data)
        # Seeds and yardstick share no image.
        self._natural, self._clean = test[YARDSTICK_IMAGES:], test[:YARDSTICK_IMAGES]
        attacked = any(client.role == "attack" for client in plan.clients)
        self._yardstick = bundle_yardstick(Bundle.load(plan.bundle), self._clean) if attacked and plan.bundle else None
        self.report = CampaignReport(accounts={client.account: ClientReport() for client in plan.clients})
        self._lock = threading.Lock()

    def run(self, progress: Callable[[CampaignReport], None] = lambda report: None) -> CampaignReport:
        """Run every client to its end; the report is written about every second, and told to `progress`."""
        with ThreadPoolExecutor(max_workers=len(self._plan.clients)) as threads:
            running = [threads.submit(self._client, client) for client in self._plan.clients]
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
        partial = self._plan.report.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(self._plan.report)

    def _client(self, plan: ClientPlan) -> None:
        report = self.report.accounts[plan.account]
        # Each account's own stream of random numbers, whatever else is in the plan.
        random = np.random.default_rng([self._plan.seed, zlib.crc32(plan.account.encode())])
        report.state = "running"
        drive_one = self._honest if plan.role == "honest" else self._attack
        try:
            with VictimClient(self._plan.address, plan.key, self._plan.model) as client:
                drive_one(plan, Pace(plan.queries_per_second).pacing(client.query), random, report)
            report.state = "done"
        except Banned:
            report.state = "banned"
        except EndpointError as error:
            report.state, report.error = "failed", str(error)

    def _honest(self, plan: ClientPlan, ask: Ask, random: np.random.Generator, report: ClientReport) -> None:
        def told(answered: int) -> None:
            report.queries = answered

        drive(ask, HONEST_KINDS[plan.kind](self._natural, plan.queries, random), told)

    def _attack(self, plan: ClientPlan, ask: Ask, random: np.random.Generator, report: ClientReport) -> None:
        def told(progress: AttackReport) -> None:
            with self._lock:
                report.queries = progress.queries
                report.milestones = [
                    (milestone.queries, milestone.similarity.agreement, milestone.similarity.accuracy)
                    for milestone in progress.milestones
                    if milestone.similarity
                ]

        attack = ATTACKS[plan.kind](self._natural, random, self._plan.data, plan.request_rows)
        if attack.run(ask, plan.queries, random, self._yardstick, told).banned:
            raise Banned
