"""Profile → plan → confined process: what is applied, and what this host can give."""
