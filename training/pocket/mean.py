"""Takes the mean of two backbones' weights, number by number, where both went on from the same one.

    python -m training.pocket.mean FIRST SECOND --share 0.25 --out DIR

Such a mean often does better than either (Wortsman et al. 2022, "Model soups"). Knows two folders of weights. Knows
nothing of how they were trained.
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def write_mean(first: Path, second: Path, share: float, out: Path) -> None:
    """Write `first` to `out` with the weights `(1 - share) · first + share · second`, computed in fp32.

    Raises ValueError if they have other tensors or shapes."""
    ours, theirs = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    if {name: tensor.shape for name, tensor in ours.items()} != {name: tensor.shape for name, tensor in theirs.items()}:
        raise ValueError(f"{first} and {second} are models of different shapes, so their weights have no mean")
    shutil.copytree(first, out, ignore=shutil.ignore_patterns(WEIGHTS), dirs_exist_ok=True)
    mean = {name: ours[name].float().lerp(theirs[name].float(), share).to(ours[name].dtype) for name in ours}
    save_file(mean, out / WEIGHTS, metadata={"format": "pt"})


def main() -> None:
    """Read the folders from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", type=Path, help="folder of a model")
    parser.add_argument("second", type=Path, help="folder of another that went on from the same one")
    parser.add_argument("--share", type=float, required=True, help="of the second in the mean, 0 to 1")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the tokenizer")
    args = parser.parse_args()
    if not 0 <= args.share <= 1:
        parser.error(f"--share {args.share:g} is no part of a whole: 0 to 1")
    write_mean(args.first, args.second, args.share, args.out)


if __name__ == "__main__":
    main()
