"""What the supervisor holds its workers to: rules, approvals, pins, limits, audits."""
