"""Accounts are counted as the report counts them, and a detector that knows nothing asks for none."""

from __future__ import annotations

import numpy as np
import pytest
from rich.progress import Progress

from services.evaluation.berkeley import DFME, JB_TOP3, Accounts, joined, paper_of
from services.evaluation.papers_attackers import ON_SEEDS, PLAIN, report_attackers
from services.evaluation.replaying import (
    Burned,
    Rule,
    accounts_needed,
    accounts_needed_together,
    bisected,
    burned,
    replay,
    similarity_of,
    tuned_delta,
    tuned_likelihood,
    with_sections,
)
from services.evaluation.streams import Stream
from services.evaluation.verdicts import LEAST_QUERIES, Judge, first_alarm
from services.redteam.blinding import BLINDINGS
from services.similarity.detector import SimilarityDetector
from services.training.tracing import DETECTORS, Recording, trace
from shared.bundle import Bundle
from shared.datasets import Dataset
from tests.support import accounts
from tests.support.detectors import detector_bundle

PAIRS = 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Random networks, evidence from made-up honest accounts, and an account that five pairs close."""
    made = detector_bundle(tmp_path_factory.mktemp("bundle"), accounts=3, queries=200)
    return with_sections(made, similarity=made.manifest.similarity.model_copy(update={"pairs": PAIRS}))


def recording(stream: accounts.Stream) -> Recording:
    return Recording(stream.inputs, stream.logits)


def test_a_fresh_account_follows_whenever_the_rule_condemns(bundle: Bundle) -> None:
    detector = similarity_of(bundle, 0.05)
    sent = recording(accounts.crafted(1, 120))
    found = accounts_needed(detector, sent)
    features = detector.features(sent.inputs, sent.logits)
    starts = [0, *(alarm + 1 for alarm in found.alarms)]
    assert len(found.alarms) >= 2
    for start, alarm in zip(starts, found.alarms, strict=False):
        state, before = detector.initial(), None
        for row in range(start, alarm + 1):
            state, observation = detector.step(state, features, np.array([row]))
            assert before is None or not before.rule.flagged
            before = observation
        assert before is not None
        assert before.rule.flagged
    assert found.accounts in (len(found.alarms), len(found.alarms) + 1)


def test_accounts_are_extrapolated_by_the_rate_of_alarms() -> None:
    found = Burned(1000, (99, 499))
    assert (found.accounts, found.rate) == (3, 0.002)
    assert found.accounts_for(50_000) == pytest.approx(101.0)
    assert Burned(1000, (499, 999)).accounts == 2
    assert Burned(1000, ()).accounts == Burned(1000, ()).accounts_for(50_000) == 1


def test_streams_that_are_joined_keep_their_alarms_apart() -> None:
    assert joined([Burned(10, (3,)), Burned(5, ()), Burned(10, (0, 9))]) == Burned(25, (3, 15, 24))


@pytest.mark.parametrize("rising", [True, False])
def test_bisection_stops_where_alarms_are_just_few_enough(rising: bool) -> None:
    found = bisected(lambda threshold: (threshold > 0.3) == rising, 0.01, 1.0)
    assert found == pytest.approx(0.3, rel=0.01)
    assert (found <= 0.3) == rising
    with pytest.raises(ValueError, match="too many alarms at both"):
        bisected(lambda threshold: True, 0.1, 1.0)


def test_delta_is_the_largest_at_the_wanted_rate(bundle: Bundle) -> None:
    natural = recording(accounts.honest(7, 200))
    delta = tuned_delta(bundle, natural, rate=2 / 200)
    assert len(accounts_needed(similarity_of(bundle, delta), natural).alarms) <= 2
    assert len(accounts_needed(similarity_of(bundle, 1.02 * delta), natural).alarms) > 2


def test_beta_is_the_smallest_at_the_wanted_rate(bundle: Bundle) -> None:
    natural = recording(accounts.honest(7, 200))
    alpha, beta = tuned_likelihood(bundle, natural, rate=1 / 200)
    detector = Rule(bundle.folder, "likelihood", {"benign_mean": alpha, "beta": beta})
    assert len(detector.replayed(natural).alarms) <= 1


def test_swapped_streams_make_the_figures_collapse(bundle: Bundle) -> None:
    honest, attack = recording(accounts.honest(8, 200)), recording(accounts.crafted(8, 200))
    right = similarity_of(bundle, tuned_delta(bundle, honest, rate=1 / 200))
    assert len(accounts_needed(right, attack).alarms) > 10 * max(len(accounts_needed(right, honest).alarms), 1)
    # Tuned on the attack as if it were honest, the rule lets nearly all of it pass.
    swapped = similarity_of(bundle, tuned_delta(bundle, attack, rate=1 / 200))
    assert len(accounts_needed(swapped, attack).alarms) <= 1


def test_exchanged_vectors_make_pairs_say_nothing(bundle: Bundle) -> None:
    honest, attack = recording(accounts.honest(8, 200)), recording(accounts.crafted(8, 200))
    detector = similarity_of(bundle, tuned_delta(bundle, honest, rate=1 / 200))
    apart = [detector.features(sent.inputs, sent.logits) for sent in (honest, attack)]
    vectors = np.random.default_rng(0).permutation(np.concatenate([one["vector"] for one in apart]))
    together = [one | {"vector": part} for one, part in zip(apart, np.split(vectors, 2), strict=True)]
    told, exchanged = ([len(burned(detector, one).alarms) for one in parts] for parts in (apart, together))
    assert told[1] > 10 * max(told[0], 1)
    assert 0.6 < exchanged[1] / exchanged[0] < 1.6


def test_evidence_closes_the_first_account_where_the_judge_would(bundle: Bundle) -> None:
    detectors = [kind.from_bundle(bundle) for kind in DETECTORS]
    sent = recording(accounts.crafted(2, 160))
    traces = {detector.name: trace(detector, sent) for detector in detectors}
    judge = Judge({kind.name: kind.calibrated_evidence(bundle) for kind in DETECTORS}, 0.0)
    (path,) = judge.paths([traces])
    threshold = float(path[80:].max()) - 1e-6
    found = accounts_needed_together(detectors, threshold, sent)
    assert found.alarms[0] == first_alarm(path, traces, threshold)
    # No account is closed before the decision may speak.
    assert min(np.diff([-1, *found.alarms])) >= LEAST_QUERIES


def test_replays_are_kept(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("cache")
    sent = recording(accounts.crafted(1, 60))
    rule = Rule(bundle.folder, SimilarityDetector.name, {"delta": 0.05, "pairs": PAIRS})
    with Progress(disable=True) as progress:
        first = replay([sent], rule, bundle, cache, progress, "replaying", 1)
        (path,) = cache.rglob("*.json")
        written = path.stat().st_mtime_ns
        again = replay([sent], rule, bundle, cache, progress, "replaying", 1)
    assert first == again == [accounts_needed(similarity_of(bundle, 0.05), sent)]
    assert path.stat().st_mtime_ns == written


def test_every_scheme_of_the_report_is_there_with_its_number() -> None:
    natural = Dataset(accounts.honest(1, 40).inputs, np.arange(40) % 10)
    attackers = report_attackers(natural, natural, [1], 90, 10)
    for attack in ("JB-top3", "JBA-PGD"):
        mine = {one.scheme for one in attackers if one.attack == attack}
        assert mine == {PLAIN, ON_SEEDS} | {s for s in mine if "other images" in s or "blinding" in s}
        assert len(mine) == 3 + len(BLINDINGS)
        assert all(paper_of(attack, scheme)[0] is not None for scheme in mine)
    assert paper_of(JB_TOP3, "query blinding, auto-encoder") == (6, 81)
    assert round(paper_of(DFME, PLAIN)[0] or 0) == 142
    assert len({one.key for one in attackers}) == len(attackers)
    assert all(one.seeds * 10 == one.budget for one in attackers if one.seeds)


def test_the_cheapest_disguise_is_found() -> None:
    natural = Dataset(accounts.honest(1, 40).inputs, np.arange(40) % 10)
    attackers = report_attackers(natural, natural, [1, 2], 90, 10)
    nothing = recording(accounts.honest(1, 1))
    streams = [Stream(one, nothing, np.ones(1, dtype=bool)) for one in attackers]
    cheap = ("JBA-PGD", "query blinding, scale")
    found = [Burned(100, () if (one.attack, one.scheme) == cheap else tuple(range(0, 100, 10))) for one in attackers]
    assert Accounts(streams, found).least_adaptive() == ("JBA-PGD", "query blinding, scale")
