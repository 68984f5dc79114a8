# PYTHON_ARGCOMPLETE_OK
"""Export a trained run as ONNX, TorchScript or a slim checkpoint, and verify each file on the run's photos."""

from mmflowers.cli.export import main
from mmflowers.cli.process import run

if __name__ == "__main__":
    run(main)
