"""Side-by-side measurements: what they are (`subjects`) and how they are made (`harness`)."""
