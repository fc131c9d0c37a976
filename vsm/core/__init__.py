"""Pure decisions: no os, time or socket; the present moment is an argument."""
