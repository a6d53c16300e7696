"""`apportion devices check`: figures of devices and prices held against the catalog."""

import argparse
from typing import Any

from hardware.check_tables import Checked, check_catalog, check_file, check_table
from hardware.conflicts import Verdict
from ui import terminal
from ui.emit import emit
from ui.exits import BAD_INPUT, DONE


def check(arguments: argparse.Namespace) -> int:
    """Check a file, a table, or the catalog itself; exit code 2 where anything is found."""
    if arguments.against:
        checked = check_table(arguments.against)
    elif arguments.file:
        checked = check_file(arguments.file)
    else:
        checked = check_catalog()
    subject = str(arguments.against or arguments.file or "the catalog")
    if not emit(arguments, check_document(subject, checked)):
        _show(subject, checked)
    return BAD_INPUT if checked.findings else DONE


def check_document(subject: str, checked: Checked) -> dict[str, Any]:
    """The findings as plain data."""
    return {
        "schema": "apportion.check/1",
        "checked": subject,
        "num_checked": checked.num_checked,
        "findings": [vars(finding) for finding in checked.findings],
        "not_in_catalog": list(checked.unknown),
        "conflicts": [_verdict_document(verdict) for verdict in checked.verdicts],
    }


def _verdict_document(verdict: Verdict) -> dict[str, Any]:
    return {
        **vars(verdict.conflict),
        "flagged": bool(verdict.said),
        "correction_accepted": not verdict.corrected,
        "was_read": verdict.was_read,
        "rules": [finding.rule for finding in verdict.said],
        "findings": [finding.message for finding in verdict.said],
        "against_correction": [finding.message for finding in verdict.corrected],
    }


def _show(subject: str, checked: Checked) -> None:
    if checked.verdicts:
        rows = [[*_verdict_cells(verdict)] for verdict in checked.verdicts]
        columns = ["where: field", "says", "rule", "finding", "correction"]
        terminal.table(f"Conflicts of {subject}", columns, rows)
        caught = sum(verdict.is_caught for verdict in checked.verdicts)
        terminal.out.print(
            f"{caught} of {len(checked.verdicts)} rows: what it says is flagged, and what it "
            "should be is accepted"
        )
        return
    for finding in checked.findings:
        terminal.out.print(f"[{finding.rule}] {finding}", markup=False)
    if checked.unknown:
        terminal.out.print(f"Not in the catalog, not compared: {', '.join(checked.unknown)}")
    number = len(checked.findings) or "no"
    terminal.out.print(f"{subject}: {checked.num_checked} checked, {number} findings")


def _verdict_cells(verdict: Verdict) -> list[str]:
    row = verdict.conflict
    if not verdict.was_read:
        return [f"{row.where}: {row.field}", row.says, "", "no claim could be read", ""]
    correction = "; ".join(f.message for f in verdict.corrected) or "accepted"
    rules = ", ".join(dict.fromkeys(finding.rule for finding in verdict.said))
    found = "; ".join(f.message for f in verdict.said) or "nothing found"
    return [f"{row.where}: {row.field}", row.says, rules, found, f"{row.should_be}: {correction}"]
