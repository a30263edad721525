"""Decision as a process: the policy file and the bundle, made into a stage."""

from __future__ import annotations

from services.decision.policy_file import load_policy
from services.decision.settings import DecisionSettings
from services.decision.stage import DecisionStage
from shared.bundle import Bundle


def build_stage(settings: DecisionSettings) -> DecisionStage:
    """Read bundle and policy.

    Raises:
        BundleError: the bundle has a mistake; the message names file and field.
        PolicyFileError: the policy has one; the message names file, line and field.
    """
    bundle = Bundle.load(settings.bundle)
    policy = load_policy(settings.policy, bundle.manifest.evidence.log_threshold)
    return DecisionStage(policy, bundle.manifest, bundle.fingerprint, settings.partitions)
