"""Side-by-side measurements: what they are (`subjects`), how they are made (`harness`) and where (`process`)."""
