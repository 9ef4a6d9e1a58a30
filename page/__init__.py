"""The page, a module per tab; app.py at the top puts the tabs together and launches them."""
