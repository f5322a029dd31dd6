"""Torchvision's networks, halved, through both forms that need nothing of this package to run.

``python tests/campaigns/round_trips.py resnet50 vgg11_bn`` or, without names, every network of the tests.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from export.test_torchvision_nets import SIDES, make_round_trips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="in torchvision's registry")
    torch.set_num_threads(1)  # as the process that rebuilds them: sums in another order have other last digits
    for name in parser.parse_args().names or SIDES:
        with tempfile.TemporaryDirectory() as folder:
            make_round_trips([name], Path(folder), in_onnx=[name])
        print(f"{name}: the same in both forms", flush=True)


if __name__ == "__main__":
    main()
