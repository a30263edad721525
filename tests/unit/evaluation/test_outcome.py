"""What a scenario's report says of accounts that were caught, went free or were hurt."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.evaluation.outcome import Outcome
from services.evaluation.report import write
from services.redteam.plan import CampaignReport, ClientReport
from services.redteam.scenario import Scenario
from shared.events import Action, Verdict

SCENARIO = Scenario.model_validate(
    {
        "title": "A test",
        "text": "Three thieves and two shops.",
        "parties": [
            {"name": "shop", "role": "honest", "kind": "steady", "count": 2},
            {"name": "caught", "role": "attack", "kind": "jbda-tr", "mix": 0.5},
            {"name": "gang", "role": "attack", "kind": "jb-top3", "accomplices": 2},
            {"name": "free", "role": "attack", "kind": "dfme"},
        ],
    }
)


def verdict(account: str, action: Action, at_query: int, seconds: float) -> Verdict:
    return Verdict(
        "v", account, "fashion-mnist", action, "evident", "similarity 10^7", 20.0, int(seconds * 1e6), 0,
        at_query=at_query,
    )  # fmt: skip


def client(state: str = "done", *copies: tuple[int, float, float], error: str = "") -> ClientReport:
    return ClientReport.model_validate({"state": state, "queries": 1_200, "milestones": list(copies), "error": error})


CLIENTS = {
    "shop-1": client(), "shop-2": client(), "caught": client("banned", (100, 0.7, 0.69), (900, 0.5, 0.49)),
    "gang": client("done", (800, 0.6, 0.58)), "free": client("done", (1_100, 0.3, 0.29)),
}  # fmt: skip
VERDICTS = {
    "caught": [verdict("caught", Action.PERTURB, 120, 3), verdict("caught", Action.BAN, 900, 9)],
    "gang:2": [verdict("gang:2", Action.PERTURB, 70, 5), verdict("gang:2", Action.ALLOW, 90, 6)],
}


def outcome(clients: dict[str, ClientReport] = CLIENTS, verdicts: object = VERDICTS) -> Outcome:
    alone = CampaignReport(accounts={"caught": client("done", (1_200, 0.8, 0.78))})
    return Outcome(SCENARIO, CampaignReport(accounts=clients), alone, verdicts, 1_000_000)  # type: ignore[arg-type]


def test_a_lead_reads_who_was_caught_what_the_best_copy_is_worth_and_what_went_wrong() -> None:
    assert outcome().sentences == [
        "2 of 3 attackers were caught, 1 of them banned.",
        "None of 2 honest accounts was hurt.",
        "The best copy, gang's, is right on 58% of clean images.",
        "free went free.",
    ]


def test_an_honest_account_that_was_hurt_and_a_client_that_failed_are_named() -> None:
    clients = CLIENTS | {"free": client("failed", error="no route"), "shop-2": client("banned")}
    found = outcome(clients, VERDICTS | {"shop-1": [verdict("shop-1", Action.THROTTLE, 9, 2)]})
    assert found.complaints == [
        "free went free.",
        "Honest accounts were hurt: shop-1, shop-2.",
        "Clients failed, so nothing is known of them: free (no route).",
    ]


def test_without_verdicts_a_ban_is_known_from_the_client_alone() -> None:
    found = outcome(verdicts=None)
    assert [fate.account for fate in found.attackers if fate.touched] == ["caught"]


def test_the_page_holds_when_and_by_what_and_the_copies_with_and_without(tmp_path: Path) -> None:
    write(outcome().study(tmp_path), tmp_path, "a test")
    page = (tmp_path / "report.md").read_text()
    assert "| caught | jbda-tr (50% honest) | 1,200 | 120 | 900 | 2.0 | 8.7 | evident: similarity 10^7 |" in page
    assert "| gang | jb-top3 (2 accomplices) | 1,200 | 70 |" in page
    assert "| free | dfme | 1,200 |  |  |  |  | not caught |" in page
    assert "| caught | jbda-tr (50% honest) | 900 | 50.0 | 49.0 | 1,200 | 78.0 |" in page
    assert "| shop | steady | 2 | 2,400 | 0 |  |" in page
    assert (tmp_path / "copies.png").stat().st_size > 5_000


@pytest.mark.parametrize("role", ["attack", "honest"])
def test_a_scenario_of_one_role_has_a_page_too(role: str, tmp_path: Path) -> None:
    kind = "steady" if role == "honest" else "dfme"
    scenario = Scenario.model_validate({"title": "one", "parties": [{"name": "a", "role": role, "kind": kind}]})
    found = Outcome(scenario, CampaignReport(accounts={"a": ClientReport()}), None, {}, 0)
    write(found.study(tmp_path), tmp_path, "a test")
    assert (tmp_path / "report.md").read_text().startswith("# one")
