"""Photos → dataset folder: sources → inspection → duplicates → splitting → writing. Never imports torch."""
