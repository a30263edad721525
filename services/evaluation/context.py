"""What every study works with: the bundle, the data, the victim, and how much work it may do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from services.evaluation.streams import Attacker, Stream, record
from services.evaluation.thefts import Theft, Thief, steal
from services.evaluation.verdicts import Judge
from services.inference.image_hash import IMAGE_HASH
from services.inference.model import Model
from services.redteam.substitute import Images, Yardstick
from services.training.bundling import QUICK as QUICK_PLAN
from services.training.bundling import Plan
from services.training.response_making import ResponsePlan
from services.training.tracing import HonestPlan, Recordable, Tracer, Traces, populations
from shared.bundle import Bundle
from shared.datasets import Dataset, Splits

RESPONSES = ResponsePlan()
YARDSTICK_IMAGES = 2_000
DIGITS = Plan(
    architecture="lenet5", responses=ResponsePlan(files=(IMAGE_HASH,)),
    calibration_accounts=84, holdout_accounts=84, queries=1_000, holdout_queries=1_000,
)  # fmt: skip
"""There are fewer digits than clothes, and AMAO's tables need no evidence of them."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work an evaluation does; the defaults are the published one's.

    Attributes:
        seeds: of randomness; every attack is drawn anew for each.
        radii: of the Jacobian attacks, pixels in [0, 1].
        weights: of Cloudleak's triplet loss.
        seed_counts: natural images that the attacks start from.
        many_seeds: the same of a patient attacker, who starts from half of a test set.
        crafted: queries of an attack after its seeds.
        long_crafted: the same where single queries are judged.
        counted_crafted: the same where accounts are counted.
        honest_accounts: of the whole population.
        honest_queries: of each.
        lives: further accounts of the whole population, and queries of each: many short ones, a few long ones.
        samples: images of each kind where single queries are judged.
        drawn_accounts: of the pictures that explain, and of drifting cameras; of each kind.
        drawn_queries: of each of the first.
        kinds_left_out: kinds of account without which calibration is done again; all where None.
        held: accounts and queries of each that stand for the bundle's own calibration and holdout accounts; those
            themselves where None.
        processes: for recording and replaying; one a core where None.
        digits: the plan of the bundle of digits.
        theft_seeds: of randomness, of attacks on the whole system; what is only compared with it has the first.
        theft_budget: queries of such an attack, its seeds included.
        theft_architecture: of the copies; the victim's own where None.
        data_free_seeds: of randomness, of attacks without data; what is only compared has the first.
        data_free_budget: queries of such an attack.
        data_free_architectures: of the copies.
        mending: whether there are thieves who mend answers too, each of whom takes minutes more.
        innocents: models that learnt nothing from the victim.
        innocent_images: that each of them learnt from.
        utility: honest accounts, and queries of each, whose answers under the system are compared with the model's.
        responses: the plan of the networks that spoil answers, where a bundle lacks them.
        plain_epochs: of the same architecture, trained without any thought of thieves; its recipe's where None.
        encoder_epochs: of a similarity encoder with other positives, as a classifier and contrastive.
    """

    seeds: Sequence[int] = (1, 2, 3)
    radii: Sequence[float] = (4 / 255, 0.03, 0.1, 0.2, 0.3)
    weights: Sequence[float] = (10.0, 30.0, 100.0)
    seed_counts: Sequence[int] = (50, 150, 500)
    many_seeds: int = 5_000
    crafted: int = 600
    long_crafted: int = 2_000
    counted_crafted: int = 1_200
    honest_accounts: int = 308
    honest_queries: int = 10_000
    lives: Sequence[tuple[int, int]] = ((2_002, 1_000), (8, 50_000))
    samples: int = 2_000
    drawn_accounts: int = 2
    drawn_queries: int = 400
    kinds_left_out: int | None = None
    held: tuple[int, int] | None = None
    processes: int | None = None
    digits: Plan = DIGITS
    theft_seeds: Sequence[int] = (1, 2, 3)
    theft_budget: int = 10_000
    theft_architecture: str | None = None
    data_free_seeds: Sequence[int] = (1, 2, 3)
    data_free_budget: int = 100_000
    data_free_architectures: Sequence[str] = ("lenet5", "convnet")
    mending: bool = True
    innocents: int = 100
    innocent_images: int = 1_000
    utility: tuple[int, int] = (28, 1_000)
    responses: ResponsePlan = RESPONSES
    plain_epochs: int | None = None
    encoder_epochs: tuple[int, int] = (DIGITS.similarity_epochs, DIGITS.contrastive_epochs)


QUICK = Sizes(
    seeds=(1,), radii=(0.1,), weights=(30.0,), seed_counts=(50,), many_seeds=120, crafted=60, long_crafted=200,
    counted_crafted=200, honest_accounts=14, honest_queries=80, lives=((2, 60), (1, 100)), samples=200,
    drawn_accounts=1, drawn_queries=60, kinds_left_out=1, held=(28, 50), processes=1,
    digits=replace(QUICK_PLAN, architecture="lenet5"), encoder_epochs=(1, 1), theft_seeds=(1,), theft_budget=330,
    theft_architecture="lenet5", mending=False, data_free_seeds=(1,), data_free_budget=4_000,
    data_free_architectures=("lenet5",), innocents=4, innocent_images=200, utility=(2, 100),
    responses=ResponsePlan(misleading_epochs=1, meco_epochs=1, shadow_epochs=1, map_epochs=1), plain_epochs=1,
)  # fmt: skip
"""Minutes, to see that everything runs; its numbers say little."""


@dataclass(frozen=True)
class Context:
    """What a study is given.

    Attributes:
        bundle: under evaluation.
        splits: of the bundle's data; honest accounts, natural seeds and yardsticks come from `test` alone.
        foreign: natural images of another kind.
        sizes: how much work.
        cache: folder of recorded streams and traces.
        output: folder of the results.
        progress: shows bars.
    """

    bundle: Bundle
    splits: Splits
    foreign: Dataset
    sizes: Sizes
    cache: Path
    output: Path
    progress: Progress

    @cached_property
    def model(self) -> Model:
        """The undefended victim."""
        return Model(self.bundle)

    @cached_property
    def judge(self) -> Judge:
        """Evidence and threshold, as the services have them."""
        return Judge.of_bundle(self.bundle)

    @cached_property
    def yardstick(self) -> Yardstick:
        """What copies are measured by: the last test images, which no attacker should start from."""
        labels = self.logits(self.clean.images).argmax(axis=1)
        return Yardstick(self.clean.images, labels.astype(np.int64), self.clean.labels)

    def logits(self, images: Images) -> NDArray[np.float32]:
        """[n, classes], the victim's logits of any number of images."""
        parts = [self.model.logits(images[start : start + 256]) for start in range(0, len(images), 256)]
        return np.concatenate(parts)

    @property
    def natural(self) -> Dataset:
        """Images that attackers start from; none of them is on the yardstick."""
        return self.splits.test[: -self._clean_images]

    @property
    def clean(self) -> Dataset:
        """Images that copies are measured on, and no attacker sees."""
        return self.splits.test[-self._clean_images :]

    @property
    def _clean_images(self) -> int:
        return min(YARDSTICK_IMAGES, len(self.splits.test) // 2)

    def populations(self) -> tuple[list[HonestPlan], list[HonestPlan]]:
        """The accounts that the bundle was calibrated on, and those that had the last word."""
        section = self.bundle.manifest.calibration
        if self.sizes.held:
            accounts, queries = self.sizes.held
            smaller = {"accounts": accounts, "queries": queries}
            section = section.model_copy(update=smaller | {f"holdout_{name}": size for name, size in smaller.items()})
        return populations(section, self.splits)

    def streams(self, attackers: Sequence[Attacker], label: str) -> list[Stream]:
        """The attackers' streams, recorded against this victim."""
        return record(
            attackers, self.bundle, self.cache / "streams", self.progress, label, self.sizes.processes, self.yardstick
        )

    def steal(self, thieves: Sequence[Thief], label: str, bundle: Bundle | None = None) -> list[Theft]:
        """What thieves get of this victim, or of another bundle's."""
        return steal(
            thieves, bundle or self.bundle, self.yardstick, self.cache / "thefts", self.progress, label,
            self.sizes.processes,
        )  # fmt: skip

    def traces(self, accounts: Sequence[Recordable], label: str) -> list[Traces]:
        """The accounts in the eyes of every detector."""
        return self._tracer.trace(accounts, label)

    def trace_files(self, accounts: Sequence[Recordable], label: str) -> list[Path]:
        """As `traces`, but where `read_traces` finds each: many long accounts fit no memory."""
        return self._tracer.files(accounts, label)

    @cached_property
    def _tracer(self) -> Tracer:
        return Tracer(self.bundle, self.trace_cache, self.progress, self.sizes.processes)

    @property
    def trace_cache(self) -> Path:
        """Folder of traces, of any bundles."""
        return self.cache / "traces"
