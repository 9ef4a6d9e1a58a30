"""The workshop: commands that prepare data, search, retrain, evaluate and measure."""
