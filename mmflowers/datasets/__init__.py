"""Dataset folder → samples. ``folder`` reads one without torch; ``flowers`` is the dataset MMEngine builds."""
