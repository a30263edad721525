"""A mistake in a policy is refused with file, line and field."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from services.decision.policy_file import DEFAULT_POLICY, PolicyFileError, load_policy
from services.decision.rules import FOREVER
from shared.events import Action
from tests.support.decisions import HOUR, LOG_THRESHOLD, default_policy

GOOD = """\
format: 1
name: mine
threat_model: whatever
detectors: [tmsp, prada]
responses: {mild: {policy: amao, group: 16}}
throttled_queries_per_second: 1.0
pardon_queries: 100
rules:
  - name: first
    when:
      all:
        - evidence: {at_least: 10 * calibrated}
        - flagged: tmsp
    action: perturb
    time_to_live: 1h
    release: {evidence_below: calibrated}
"""


def load(folder: Path, text: str) -> str:
    """The message with which a policy is refused, without the folder."""
    path = folder / "policy.yaml"
    path.write_text(text)
    with pytest.raises(PolicyFileError) as refused:
        load_policy(path, LOG_THRESHOLD)
    return str(refused.value).removeprefix(f"{folder}/")


def test_the_default_policy_changes_answers_on_calibrated_evidence_only() -> None:
    policy = default_policy()
    for rule in policy.document.rules:
        asks = [one.evidence.at_least.calibrated for one in rule.when.walk() if one.evidence]
        assert rule.action is Action.OBSERVE or asks == [True]
    assert "foreign natural data" in policy.document.threat_model


def test_calibrated_stands_for_the_bundles_threshold(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    rule = load_policy(path, LOG_THRESHOLD).document.rules[0]
    assert rule.when.all_ is not None
    evidence = rule.when.all_[0].evidence
    assert evidence is not None
    assert evidence.at_least.logarithm(math.log(1e6)) == pytest.approx(math.log(1e7))
    assert evidence.at_least.logarithm(math.log(1e3)) == pytest.approx(math.log(1e4))
    assert rule.time_to_live == HOUR


def test_the_same_text_has_the_same_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for number, text in enumerate((GOOD, GOOD, GOOD.replace("1h", "2h"))):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        prints.add(load_policy(path, LOG_THRESHOLD).fingerprint)
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [("90s", 90_000_000), ("30m", 1_800_000_000), ("7d", 7 * 24 * HOUR), ("forever", FOREVER)],
)
def test_durations_are_written_as_people_write_them(tmp_path: Path, text: str, microseconds: int) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD.replace("time_to_live: 1h", f"time_to_live: {text}"))
    assert load_policy(path, LOG_THRESHOLD).document.rules[0].time_to_live == microseconds


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        ("action: perturb", "action: spoil", "policy.yaml:14: field rules.0.action: 'spoil' is no action"),
        ("flagged: tmsp", "flagged: tsmp", "policy.yaml:13: field rules.0.when.all.1.flagged: 'tsmp' is no detector"),
        ("flagged: tmsp", "flagged: similarity", "policy.yaml:1: field (top level): rule 'first' asks 'similarity'"),
        ("flagged: tmsp", "flagged: {at_least: 0}", "policy.yaml:13: field rules.0.when.all.1.flagged.at_least: "),
        ("flagged: tmsp", "flaged: tmsp", "policy.yaml:13: field rules.0.when.all.1.flaged: "),
        ("10 * calibrated", "ten", "policy.yaml:12: field rules.0.when.all.0.evidence.at_least: 'ten' is no amount"),
        ("10 * calibrated", "-1", "policy.yaml:12: field rules.0.when.all.0.evidence.at_least: -1 is no amount"),
        ("10 * calibrated", ".nan", "policy.yaml:12: field rules.0.when.all.0.evidence.at_least: nan is no amount"),
        ("10 * calibrated", "1e9 * calibrated", "policy.yaml:10: field rules.0.when: rule 'first' asks for evidence"),
        ("time_to_live: 1h", "time_to_live: soon", "policy.yaml:15: field rules.0.time_to_live: 'soon' is no duration"),
        ("    time_to_live: 1h\n", "", "policy.yaml:9: field rules.0.time_to_live: Field required"),
        ("below: calibrated", "below: 1e8", "policy.yaml:16: field rules.0.release.evidence_below: rule 'first' would"),
        ("format: 1", "format: 2", "policy.yaml:1: field format: "),
        ("name: mine", "name: mine\nname: yours", "policy.yaml:3: field name is there twice"),
        ("name: mine", "nam: mine", "policy.yaml:2: field nam: Extra inputs"),
        ("[tmsp, prada]", "[]", "policy.yaml:4: field detectors: "),
        ("name: first", "name: override", "policy.yaml:9: field rules.0: 'override' is a name"),
        ("rules:", "rules: [", "policy.yaml:"),
        ("action: perturb", "action: allow", "policy.yaml:9: field rules.0: a rule's action is observe"),
    ],
    ids=lambda text: str(text).strip(),
)
def test_a_mistake_is_named_with_its_line_and_field(tmp_path: Path, change: str, to: str, message: str) -> None:
    assert change in GOOD
    refused = load(tmp_path, GOOD.replace(change, to, 1))
    assert refused.startswith(message)
    assert "\n" not in refused


def test_two_rules_of_one_name_are_refused(tmp_path: Path) -> None:
    rule = GOOD[GOOD.index("  - name: first") :]
    assert "2 rules named 'first'" in load(tmp_path, GOOD + rule)


@pytest.mark.parametrize("text", ["", "just words", "- a list", "a: &x [*x]", "\x00", "!!python/object:os.system {}"])
def test_what_is_no_policy_at_all_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    refused = load(tmp_path, text)
    assert refused.startswith("policy.yaml:")
    assert "\n" not in refused


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        load_policy(tmp_path / "nowhere.yaml", LOG_THRESHOLD)


def test_the_default_policy_is_where_the_settings_look() -> None:
    assert DEFAULT_POLICY.is_file()
