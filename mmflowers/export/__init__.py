"""A trained run as files for other programs."""
