"""A scenario's file says who asks what, or which field of it is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from services.cli.redteam import SCENARIOS
from services.redteam.scenario import ROLES, Scenario, ScenarioError, load_scenario, load_secrets

THIEF = {"name": "thief", "role": "attack", "kind": "jbda-tr"}
SHOP = {"name": "shop", "role": "honest", "kind": "steady"}


def scenario(*parties: dict[str, object]) -> Scenario:
    return Scenario.model_validate({"title": "test", "parties": parties})


def test_the_kinds_that_a_scenario_may_name_are_those_that_there_are() -> None:
    # In a process of its own: it imports tritonclient's stubs, and this one may have others.
    program = (
        "from services.redteam.campaign import ATTACKS; from services.redteam.honest import HONEST_KINDS;"
        "from services.redteam.blinding import BLINDINGS; print(*ATTACKS, '|', *HONEST_KINDS, '|', *BLINDINGS)"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    attacks, honest, blindings = (set(part.split()) for part in said.split("|"))
    assert attacks == set(ROLES["attack"])
    assert honest == set(ROLES["honest"])
    for name in blindings:
        scenario({**THIEF, "blinding": name})


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_scenario_is_one(path: Path) -> None:
    loaded = load_scenario(path)
    assert loaded.clients(dict.fromkeys(loaded.accounts, "key"))


def test_parties_become_accounts_and_accomplices() -> None:
    found = scenario({**SHOP, "count": 2}, {**THIEF, "accomplices": 2, "mix": 0.5, "queries": 70})
    assert found.accounts == ("shop-1", "shop-2", "thief", "thief:1", "thief:2")
    keys = {account: f"key of {account}" for account in found.accounts}
    first, second, thief = found.clients(keys)
    assert (first.account, second.key, second.queries) == ("shop-1", "key of shop-2", 1_200)
    assert thief.accomplices == {"thief:1": "key of thief:1", "thief:2": "key of thief:2"}
    assert (thief.mix, thief.queries, thief.kind) == (0.5, 70, "jbda-tr")
    assert "key of" not in repr(thief)


def test_an_account_without_a_key_is_named_with_what_to_do() -> None:
    with pytest.raises(ScenarioError, match="no key for thief; 'portcullis redteam keys'"):
        scenario(SHOP, THIEF).clients({"shop": "key"})


@pytest.mark.parametrize(
    ("parties", "said"),
    [
        ([{**THIEF, "kind": "burglary"}], r"field parties.0.kind"),
        ([{**THIEF, "kind": "steady"}], r"field parties.0: .*steady is no kind of role attack"),
        ([{**SHOP, "mix": 0.5}], r"field parties.0: .*honest and has nothing to disguise"),
        ([{**THIEF, "queries": 0}], r"field parties.0.queries"),
        ([{**THIEF, "pace": 3}], r"field parties.0.pace"),
        ([THIEF, {**SHOP, "name": "thief"}], r"two parties have an account thief"),
        ([{**THIEF, "name": "thief 1"}], r"field parties.0.name"),
        ([], r"field parties"),
    ],
)
def test_a_mistake_is_told_with_file_and_field(parties: list[object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"title": "wrong", "parties": parties}))
    with pytest.raises(ScenarioError, match=rf"wrong\.yaml: .*{said}"):
        load_scenario(path)


@pytest.mark.parametrize("text", ["[", "- a", "", "a: [1]"])
def test_what_is_no_mapping_of_keys_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "secrets.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=r"secrets\.yaml"):
        load_secrets(path)
