"""A report to where people look: the run's folder and its loggers."""

import math
from dataclasses import replace

from lightning import Trainer

from mti_lightning.files import replacing
from mti_lightning.loggers import log_numbers, log_text, loggers_of, run_folder, tensorboards
from mti_lightning.validity.report import Report


def write_report(report: Report, trainer: Trainer, features: int) -> None:
    """Write validity.md and validity.json to a run's folder, if it has one.

    Args:
        report: Of as many of the features as are done.
        trainer: Of the run.
        features: How many there are.
    """
    if (folder := run_folder(trainer)) is None:
        return
    if (done := len(report.findings)) < features:
        so_far = {"unfinished": f"{done} of {features} features so far"}
        report = replace(report, provenance=report.provenance | so_far)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("validity.md", report.markdown()), ("validity.json", report.json())):
        with replacing(folder / name) as part:
            part.write_text(text, encoding="utf-8")


def log_report(report: Report, trainer: Trainer) -> None:
    """Log a report where a run logs, if it keeps anything."""
    if run_folder(trainer) is None:
        return
    loggers = loggers_of(trainer)
    log_text(loggers, "validity", report.markdown())
    numbers = {
        f"validity/{report.shown(feature)}/{finding.check}/{name}": value
        for feature, findings in report.findings.items()
        for finding in findings
        for name, value in finding.values.items()
        if math.isfinite(value)
    }
    log_numbers(loggers, numbers, 0)
    for writer in tensorboards(loggers):
        writer.flush()
