"""The evaluation: recorded streams through the very detectors that the services run, beside the papers' numbers."""
