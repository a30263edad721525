"""`python -m services.decision`"""

from services.decision.app import build_stage
from services.decision.settings import DecisionSettings
from shared.worker import run_worker

if __name__ == "__main__":
    run_worker(build_stage, DecisionSettings)
