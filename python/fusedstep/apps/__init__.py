"""Programs: the commands, what they train and measure, the gallery. They use the library as anybody would.

No other package imports this one.
"""
