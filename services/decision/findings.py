"""Alerts as security tools read them: OCSF Detection Finding (class 2004) in CloudEvents' binary mode for Kafka.

Never a tensor: identifiers, counts, statistics and thresholds only.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from services.decision.policy import Activity, Alert
from services.decision.record import Held
from shared import atlas
from shared.events import Action

OCSF_VERSION = "1.8.0"
_CLASS = 2004
_CATEGORY = 2
_RULE_ANALYTIC = 1
_STATISTICAL_ANALYTIC = 3

_SEVERITIES = {
    Action.ALLOW: (1, "Informational"),
    Action.OBSERVE: (2, "Low"),
    Action.PERTURB: (4, "High"),
    Action.THROTTLE: (4, "High"),
    Action.BAN: (5, "Critical"),
}
_STATUSES = {
    Activity.CREATE: (1, "New"),
    Activity.UPDATE: (2, "In Progress"),
    Activity.CLOSE: (4, "Resolved"),
    Activity.AUDIT: (4, "Resolved"),
}
# Of the profile security_control: (action_id, action, disposition_id, disposition).
_CONTROLS = {
    Action.ALLOW: (1, "Allowed", 1, "Allowed"),
    Action.OBSERVE: (3, "Observed", 15, "Detected"),
    Action.PERTURB: (4, "Modified", 11, "Corrected"),
    Action.THROTTLE: (4, "Modified", 14, "Delayed"),
    Action.BAN: (2, "Denied", 24, "Access Revoked"),
}
_ATTACK = {
    "version": atlas.VERSION,
    "tactic": {"uid": atlas.EXFILTRATION.uid, "name": atlas.EXFILTRATION.name},
    "technique": {"uid": atlas.EXFILTRATION_VIA_API.uid, "name": atlas.EXFILTRATION_VIA_API.name},
    "sub_technique": {"uid": atlas.EXTRACT_MODEL.uid, "name": atlas.EXTRACT_MODEL.name},
}


def severity(alert: Alert) -> str:
    """OCSF's name of it."""
    return _SEVERITIES[alert.action][1]


def detection_finding(alert: Alert) -> dict[str, Any]:
    """The alert as an OCSF Detection Finding; times in milliseconds, evidence as R's natural logarithm."""
    activity = alert.activity.name.capitalize()
    severity_id, severity_name = _SEVERITIES[alert.action]
    status_id, status = _STATUSES[alert.activity]
    action_id, action, disposition_id, disposition = _CONTROLS[alert.action]
    return {
        "activity_id": int(alert.activity),
        "activity_name": activity,
        "category_uid": _CATEGORY,
        "category_name": "Findings",
        "class_uid": _CLASS,
        "class_name": "Detection Finding",
        "type_uid": _CLASS * 100 + int(alert.activity),
        "type_name": f"Detection Finding: {activity}",
        "time": _milliseconds(alert.issued_at),
        "start_time": _milliseconds(alert.began_at),
        "severity_id": severity_id,
        "severity": severity_name,
        "status_id": status_id,
        "status": status,
        "is_alert": alert.action.enforced,
        "action_id": action_id,
        "action": action,
        "disposition_id": disposition_id,
        "disposition": disposition,
        "message": f"{alert.account}: {alert.previous_action.name.lower()} to {alert.action.name.lower()}; "
        f"{alert.reason}",
        "metadata": {
            "version": OCSF_VERSION,
            "uid": alert.alert_id,
            "profiles": ["security_control"],
            "product": {"name": "Portcullis", "vendor_name": "Portcullis", "version": product_version()},
        },
        "finding_info": {
            "uid": alert.finding_id,
            "title": "Possible extraction of the model through its API",
            "created_time": _milliseconds(alert.began_at),
            "modified_time": _milliseconds(alert.issued_at),
            "analytic": {
                "type_id": _RULE_ANALYTIC,
                "type": "Rule",
                "name": alert.rule,
                "uid": f"{alert.policy}/{alert.rule}",
                "version": alert.policy_fingerprint,
            },
            "related_analytics": [
                {"type_id": _STATISTICAL_ANALYTIC, "type": "Statistical", "name": detector}
                for detector in alert.detectors
            ],
            "attacks": [_ATTACK],
        },
        "attacks": [_ATTACK],
        "resources": [
            {"type": "account", "uid": alert.account},
            {"type": "model", "uid": alert.model_name, "name": alert.model_name},
        ],
        "unmapped": {
            "account": alert.account,
            "model": alert.model_name,
            "action": alert.action.name.lower(),
            "previous_action": alert.previous_action.name.lower(),
            "rule": alert.rule,
            "author": alert.author,
            "queries": alert.queries,
            "query_id": alert.cause_query_id,
            "query_time": _milliseconds(alert.cause_accepted_at),
            "log_evidence": alert.log_evidence,
            "log_threshold": alert.log_threshold,
            "detectors": {name: _detector(held) for name, held in alert.detectors.items()},
        },
    }


def encode_finding(alert: Alert) -> bytes:
    """The finding as a record's value."""
    return json.dumps(detection_finding(alert), allow_nan=False, separators=(",", ":")).encode()


def finding_headers(alert: Alert) -> tuple[tuple[str, bytes], ...]:
    """CloudEvents 1.0 attributes, as the Kafka binding's binary mode carries them."""
    attributes = {
        "ce_specversion": "1.0",
        "ce_id": alert.alert_id,
        "ce_type": f"portcullis.detection_finding.{alert.activity.name.lower()}",
        "ce_source": "/portcullis/decision",
        "ce_subject": alert.finding_id,
        "ce_time": datetime.fromtimestamp(alert.issued_at / 1e6, UTC).isoformat(timespec="milliseconds"),
        "ce_partitionkey": alert.account,
        "content-type": "application/json",
    }
    return tuple((name, value.encode()) for name, value in attributes.items())


def product_version() -> str:
    """Of the installed distribution; a bare checkout has none."""
    try:
        return version("portcullis")
    except PackageNotFoundError:
        return "0"


def _detector(held: Held) -> dict[str, Any]:
    return {
        "statistic": held.statistic if math.isfinite(held.statistic) else None,
        "threshold": held.threshold if math.isfinite(held.threshold) else None,
        "flagged": held.flagged,
        "queries": held.queries,
        "log_evidence": float(held.log_evidence.min()),
        "query_id": held.query_id,
    }


def _milliseconds(microseconds: int) -> int:
    return microseconds // 1000
