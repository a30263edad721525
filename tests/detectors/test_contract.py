"""What every detector owes the worker, the decision and the accounts. A fifth one joins by one line in `CASES`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from services.similarity.detector import SimilarityDetector
from shared.bundle import Bundle
from shared.detection import Detector, Features, Observation, StateError
from tests.support.accounts import CLASSES, SHAPE, Stream, honest
from tests.support.detectors import CASES, silent
from tests.support.store import Store

few = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(params=list(CASES))
def detector(request: pytest.FixtureRequest, detectors: dict[str, Detector[Any]]) -> Detector[Any]:
    return detectors[request.param]


def bits(value: Any) -> Any:
    """A value in which equal means equal bit for bit, NaN included."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, float | np.floating):
        return np.float64(value).tobytes()
    return {key: bits(item) for key, item in value.items()} if isinstance(value, dict) else value


def said(observation: Observation) -> tuple[Any, ...]:
    """An observation, bit for bit."""
    rule = observation.rule
    return (
        observation.queries,
        observation.repeats,
        bits(rule.statistic),
        bits(rule.threshold),
        rule.flagged,
        bits(dict(rule.details)),
        bits(observation.log_evidence),
    )


def held(detector: Detector[Any], store: Store) -> dict[str, Any]:
    """The stored state without the one counter that only speaks of deletions, which depends on the cuts."""
    assert store.head is not None
    head = {name: array[:2] if name.startswith("rows.") else array for name, array in load(store.head).items()}
    return bits(head) | {name: store.chunks[name] for name in detector.needed_chunks(store.head)}


def pieces(rows: int, cuts: Sequence[int]) -> list[NDArray[np.intp]]:
    """Rows 0 to `rows`, cut at `cuts`."""
    return [part for part in np.split(np.arange(rows), sorted(cuts)) if len(part)]


def features_of(detector: Detector[Any], account: Stream) -> Features:
    return detector.features(account.inputs, account.logits)


ROWS = 700
"""Enough that growing rows have been evicted more than once."""


@pytest.fixture(scope="module")
def long_features(detectors: dict[str, Detector[Any]]) -> dict[str, Features]:
    """One honest account of `ROWS` queries, scored once by each detector."""
    account = honest(50, ROWS)
    return {name: features_of(detector, account) for name, detector in detectors.items()}


# ---- score ----


@few
@given(order=st.permutations(range(21)), cuts=st.lists(st.integers(1, 20), max_size=4))
def test_a_querys_features_are_the_same_bits_in_any_company(
    detector: Detector[Any], order: list[int], cuts: list[int]
) -> None:
    account = honest(20, 21)
    whole = features_of(detector, account)
    for part in pieces(21, cuts):
        rows = np.array(order)[part]
        features = detector.features(account.inputs[rows], account.logits[rows])
        assert features.keys() == whole.keys()
        for name, column in features.items():
            assert bits(column) == bits(whole[name][rows]), name


def test_a_hundred_queries_at_once_are_scored_as_one_by_one(detector: Detector[Any]) -> None:
    account = honest(21, 100)
    whole = features_of(detector, account)
    for row in range(0, 100, 9):
        alone = detector.features(account.inputs[row : row + 1], account.logits[row : row + 1])
        assert {n: bits(c[0:1]) for n, c in whole.items() if n not in alone} == {}
        assert all(bits(alone[name][0]) == bits(column[row]) for name, column in whole.items())


def test_scoring_changes_neither_inputs_nor_logits(detector: Detector[Any]) -> None:
    account = honest(22, 30)
    before = account.inputs.copy(), account.logits.copy()
    for array in (account.inputs, account.logits):
        array.setflags(write=False)
    features_of(detector, account)
    assert (account.inputs.tobytes(), account.logits.tobytes()) == (before[0].tobytes(), before[1].tobytes())


def test_two_detectors_of_one_bundle_say_the_same(bundle: Bundle, detector: Detector[Any]) -> None:
    other = CASES[detector.name].make(bundle)
    account = honest(23, 120)
    one_features, other_features = features_of(detector, account), features_of(other, account)
    assert bits(one_features) == bits(other_features)
    assert said(detector.step(detector.initial(), one_features)[1]) == said(
        other.step(other.initial(), other_features)[1]
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_refused(detector: Detector[Any], bad: float) -> None:
    account = honest(24, 4)
    account.logits[2, 3] = bad
    with pytest.raises(ValueError, match="logits"):
        features_of(detector, account)


def test_logits_for_other_queries_are_refused(detector: Detector[Any]) -> None:
    account = honest(24, 4)
    with pytest.raises(ValueError, match="logits"):
        detector.score(account.inputs, account.logits[:3])


@pytest.mark.parametrize(
    ("shape", "classes"), [((1, 14, 14), CLASSES), ((3, 28, 28), CLASSES), ((28, 28), CLASSES), (SHAPE, CLASSES + 1)]
)
def test_other_shapes_than_the_bundles_are_refused_wherever_they_matter(
    detector: Detector[Any], shape: tuple[int, ...], classes: int
) -> None:
    """A detector that does not look at the inputs, or at the logits, may ignore their shape: then it says the same."""
    random = np.random.default_rng(1)
    inputs = random.integers(0, 256, (4, *shape), dtype=np.uint8)
    logits = random.normal(size=(4, classes)).astype(np.float32)
    try:
        scored = detector.score(inputs, logits)
    except ValueError:
        return
    well_formed = random.integers(0, 256, (4, *SHAPE), dtype=np.uint8) if shape != SHAPE else inputs
    assert bits(scored) == bits(detector.score(well_formed, logits[:, :CLASSES]))


# ---- step ----


def test_stepping_leaves_features_untouched(detector: Detector[Any]) -> None:
    features = features_of(detector, honest(30, 60))
    before = bits(features)
    for column in features.values():
        column.setflags(write=False)
    detector.step(detector.initial(), features)
    assert bits(features) == before


def test_a_new_account_has_nothing_against_it(detector: Detector[Any]) -> None:
    features = features_of(detector, honest(30, 1))
    _, nothing = detector.step(detector.initial(), features, np.array([], dtype=np.intp))
    assert (nothing.queries, nothing.repeats, nothing.rule.flagged) == (0, 0, False)
    assert (nothing.log_evidence == 0).all()


@few
@given(length=st.integers(1, 150), seed=st.integers(0, 5))
def test_evidence_is_one_finite_number_for_each_profile(detector: Detector[Any], length: int, seed: int) -> None:
    account = CASES[detector.name].attack(seed, length) if seed % 2 else honest(seed, length)
    _, observation = detector.step(detector.initial(), features_of(detector, account))
    assert observation.log_evidence.shape == (detector.evidence.profiles,)
    assert observation.log_evidence.dtype == np.float32
    assert np.isfinite(observation.log_evidence).all()
    assert (observation.log_evidence >= 0).all()
    assert math.isfinite(observation.rule.threshold)
    assert isinstance(observation.rule.flagged, bool)
    assert all(isinstance(value, float) for value in observation.rule.details.values())


def test_what_a_rule_says_of_no_statistic_is_never_guilt(detector: Detector[Any]) -> None:
    features = features_of(detector, honest(31, 200))
    state = detector.initial()
    for part in pieces(200, range(200)):
        state, observation = detector.step(state, features, part)
        assert not (math.isnan(observation.rule.statistic) and observation.rule.flagged)


@few
@given(cuts=st.lists(st.integers(1, 199), max_size=6))
def test_where_an_account_is_cut_changes_no_later_bit(
    detector: Detector[Any], long_features: dict[str, Features], cuts: list[int]
) -> None:
    features = long_features[detector.name]
    whole, last = detector.step(detector.initial(), features, np.arange(200))
    state = detector.initial()
    for part in pieces(200, cuts):
        state, observation = detector.step(state, features, part)
    assert said(observation) == said(last)
    assert bits(state.evidence.sums) == bits(whole.evidence.sums)


def test_interleaved_accounts_do_not_know_of_each_other(detector: Detector[Any]) -> None:
    accounts = [honest(33, 90), CASES[detector.name].attack(33, 90), honest(34, 90)]
    random = np.random.default_rng(5)
    owner = random.permutation(np.repeat(np.arange(3), 90))
    place = np.array([np.count_nonzero(owner[:row] == owner[row]) for row in range(270)])
    mixed = Stream(
        np.stack([accounts[a].inputs[p] for a, p in zip(owner, place, strict=True)]),
        np.stack([accounts[a].logits[p] for a, p in zip(owner, place, strict=True)]),
    )
    features = features_of(detector, mixed)
    states = [detector.initial() for _ in accounts]
    latest: list[Observation | None] = [None, None, None]
    for part in pieces(270, range(10, 270, 10)):
        for account in range(3):
            rows = part[owner[part] == account]
            states[account], latest[account] = detector.step(states[account], features, rows)
    for account, observation in zip(accounts, latest, strict=True):
        assert observation is not None
        alone = detector.step(detector.initial(), features_of(detector, account))[1]
        assert said(observation) == said(alone)


# ---- exact repeats ----


@few
@given(data=st.data())
def test_an_exact_repeat_changes_no_statistic_and_no_evidence(
    detector: Detector[Any], long_features: dict[str, Features], data: st.DataObject
) -> None:
    rows = list(range(130))
    for _ in range(data.draw(st.integers(1, 12))):
        repeated = data.draw(st.integers(0, 129))
        rows.insert(data.draw(st.integers(rows.index(repeated) + 1, len(rows))), repeated)
    features = long_features[detector.name]
    plain, without = detector.step(detector.initial(), features, np.arange(130))
    state, repeats = detector.step(detector.initial(), features, np.array(rows))
    assert repeats.queries == len(rows)
    assert repeats.repeats == len(rows) - 130
    assert said(repeats)[2:] == said(without)[2:]
    assert bits(state.memory.arrays()) == bits(plain.memory.arrays())
    for name, kept in state.memory.rows().items():
        assert bits(kept.array) == bits(plain.memory.rows()[name].array)


def test_a_repeat_with_other_answers_is_a_repeat_all_the_same(detector: Detector[Any]) -> None:
    account = honest(41, 60)
    again = Stream(np.concatenate([account.inputs] * 2), np.concatenate([account.logits, account.logits[::-1]]))
    once = detector.step(detector.initial(), features_of(detector, account))[1]
    twice = detector.step(detector.initial(), features_of(detector, again))[1]
    assert twice.repeats == 60
    assert said(twice)[2:] == said(once)[2:]


# ---- the state in bytes ----


@few
@given(cuts=st.lists(st.integers(1, ROWS - 1), max_size=5))
def test_going_on_from_the_bytes_gives_the_same_bits(
    detector: Detector[Any], long_features: dict[str, Features], cuts: list[int]
) -> None:
    features = long_features[detector.name]
    straight, kept = Store(), detector.initial()
    restarted = Store()
    for part in pieces(ROWS, cuts):
        kept, expected = detector.step(kept, features, part)
        found, observation = detector.step(restarted.load(detector), features, part)
        restarted.save(detector.encode(found))
        assert said(observation) == said(expected)
    straight.save(detector.encode(kept))
    assert held(detector, restarted) == held(detector, straight)


@few
@given(data=st.data())
def test_a_crash_between_any_two_writes_costs_nothing(
    detector: Detector[Any], long_features: dict[str, Features], data: st.DataObject
) -> None:
    """After a crash the rows since the last stored head come again, and everything ends as if nothing had been."""
    features, cuts = long_features[detector.name], data.draw(st.lists(st.integers(1, ROWS - 1), max_size=4))
    store, absorbed, state = Store(), 0, detector.initial()
    expected = detector.step(detector.initial(), features)[1]
    for part in pieces(ROWS, cuts):
        state, observation = detector.step(state, features, part)
        before = store.head
        encoded = detector.encode(state)
        store.save(encoded, most=data.draw(st.integers(1, len(encoded.chunks) + 1 + len(encoded.deleted))))
        state = store.load(detector)
        if store.head is before:
            state, observation = detector.step(state, features, np.arange(absorbed, part[-1] + 1))
            store.save(detector.encode(state))
            state = store.load(detector)
        absorbed = int(part[-1]) + 1
        assert state.queries == absorbed
    assert said(observation) == said(expected)


def test_a_save_writes_what_is_new_and_not_the_whole_history(
    detector: Detector[Any], long_features: dict[str, Features]
) -> None:
    features = long_features[detector.name]
    state, _ = detector.step(detector.initial(), features, np.arange(400))
    first = detector.encode(state)
    state, _ = detector.step(state, features, np.arange(400, 401))
    second = detector.encode(state)
    names = {name.split("/")[0] for name in first.chunks}
    assert len(second.chunks) <= len(names)
    assert detector.encode(state).chunks == {}


@pytest.mark.timeout(300)
def test_the_state_of_an_account_is_bounded_over_its_life(
    detector: Detector[Any], long_features: dict[str, Features]
) -> None:
    """The same features come round again, under new digests: as far as the detector can tell, new queries."""
    features = long_features[detector.name]
    queries = 100_000
    if isinstance(detector, SimilarityDetector):
        # A query costs as much as there are earlier ones to compare it with. 18,432 digests are held.
        detector = copy(detector)
        detector.section = detector.section.model_copy(update={"capacity": 1000})
        queries = 2 * 20_000
    store, state, sizes = Store(), detector.initial(), []
    for start in range(0, queries, ROWS):
        turn = features | {"digest": np.arange(start, start + ROWS, dtype=np.uint64)}
        detector.replay(state, turn, np.arange(ROWS))
        store.save(detector.encode(state))
        sizes.append(store.size)
        assert store.head is not None
        assert len(store.head) < 64 * 1024
    assert state.repeats == 0
    assert max(sizes) <= detector.largest_state_bytes()
    assert max(sizes[len(sizes) // 2 :]) <= 1.02 * max(sizes[: len(sizes) // 2])
    assert bits(store.load(detector).memory.arrays()) == bits(state.memory.arrays())


def test_a_state_of_other_parameters_is_not_read(
    bundle: Bundle, detector: Detector[Any], long_features: dict[str, Features]
) -> None:
    state, _ = detector.step(detector.initial(), long_features[detector.name], np.arange(20))
    head = detector.encode(state).head
    assert detector.readable(head)
    other = CASES[detector.name].make(Bundle(bundle.folder, bundle.manifest, "another fingerprint"))
    assert not other.readable(head)


@pytest.mark.parametrize(
    "head", [b"", b"not a state", bytes(64), save({"other": np.zeros(3)})], ids=["empty", "text", "zeros", "foreign"]
)
def test_bytes_that_are_no_state_are_refused(detector: Detector[Any], head: bytes) -> None:
    for read in (detector.readable, detector.needed_chunks, lambda head: detector.decode(head, {})):
        with pytest.raises(StateError):
            read(head)


def test_a_state_whose_chunks_are_gone_is_refused(detector: Detector[Any], long_features: dict[str, Features]) -> None:
    state, _ = detector.step(detector.initial(), long_features[detector.name], np.arange(20))
    with pytest.raises(StateError, match="chunk 0 is missing"):
        detector.decode(detector.encode(state).head, {})


def test_evidence_for_other_statistics_is_refused(bundle: Bundle, detector: Detector[Any]) -> None:
    class Foreign(type(detector)):  # type: ignore[misc]
        statistics = (*detector.statistics, *detector.statistics)

    foreign = object.__new__(Foreign)
    with pytest.raises(ValueError, match="evidence is calibrated for"):
        Detector.__init__(foreign, silent(CASES[detector.name].statistics), bundle.fingerprint)


# ---- what it is all for ----


def evidence_over(detector: Detector[Any], account: Stream) -> NDArray[np.float32]:
    """[n], the account's evidence after each query: the smallest over the profiles."""
    features, state, found = features_of(detector, account), detector.initial(), []
    for row in range(len(account)):
        state, observation = detector.step(state, features, np.array([row]))
        found.append(observation.log_evidence.min())
    return np.array(found)


def test_honest_accounts_and_a_gross_attack_lie_far_apart(detector: Detector[Any]) -> None:
    honest_peak = max(evidence_over(detector, honest(seed, 300)).max() for seed in (60, 61, 62))
    attack_peak = min(evidence_over(detector, CASES[detector.name].attack(seed, 300)).max() for seed in (1, 2))
    assert honest_peak < math.log(1e4)
    assert attack_peak > math.log(1e6)


def test_every_case_bears_its_detectors_name(detectors: dict[str, Detector[Any]]) -> None:
    assert {name: detector.name for name, detector in detectors.items()} == {name: name for name in CASES}
    names = [s.name for s in itertools.chain.from_iterable(d.statistics for d in detectors.values())]
    assert len(set(names)) == len(names)
