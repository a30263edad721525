"""MITRE ATLAS, the part that names what Portcullis detects; ids and names as in the matrix's data of this version."""

from __future__ import annotations

from dataclasses import dataclass

VERSION = "5.6.0"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tactic, a technique or a sub-technique."""

    uid: str
    name: str


EXFILTRATION = Entry("AML.TA0010", "Exfiltration")
EXFILTRATION_VIA_API = Entry("AML.T0024", "Exfiltration via AI Inference API")
EXTRACT_MODEL = Entry("AML.T0024.002", "Extract AI Model")
