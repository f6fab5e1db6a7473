"""How large the experiments are: what two CPU cores finish in an afternoon, or the paper's own sizes.

Knows numbers alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from training.settings import PAPER_TEMPLATE

# Ways for a prefix to start that are no words: at random, and as the activations of the first training examples.
RANDOM, EXAMPLES = "", "<training examples>"


@dataclass(frozen=True, slots=True)
class Scale:
    """`num_pairs` (None: all) are drawn from the training set and read `epochs` times, `batch_size` at once, both by
    problem; where a question is not how good a tuning gets but what changes it, a run has `ablation_steps` (None: as
    many). A dev loss is taken `evaluations` times in a run, on `num_dev_pairs`, and three in a row without a better one
    end it. BLEU is on so many inputs of a split, drawn once.

    `init_text`: how a prefix starts where a trial does not say, by words or one of `RANDOM` and `EXAMPLES`.

    `learning_rates`: by method, where the search begins; it goes on by factors of 3 while the best one is at an
    edge, up to `most_rates` in all.
    """

    prompt_template: str
    num_virtual_tokens: int
    mlp_width: int
    init_text: str
    num_pairs: int | None
    batch_size: Mapping[str, int]
    epochs: Mapping[str, int]
    ablation_steps: int | None
    evaluations: int
    num_dev_pairs: int | None
    num_dev_inputs: int | None
    num_test_inputs: int | None
    learning_rates: Mapping[str, tuple[float, ...]]
    most_rates: int
    num_seeds: int
    lengths: tuple[int, ...]
    low_data_sizes: tuple[int, ...]
    low_data_steps: int
    num_subsets: int


SCALES = {
    "small": Scale(
        prompt_template="{inputs}\n",
        num_virtual_tokens=128,
        mlp_width=0,
        init_text=EXAMPLES,
        num_pairs=2000,
        batch_size={"e2e": 4, "webnlg": 4, "commongen": 4},
        epochs={"e2e": 4, "webnlg": 2, "commongen": 2},
        ablation_steps=400,
        evaluations=6,
        num_dev_pairs=200,
        num_dev_inputs=200,
        num_test_inputs=300,
        learning_rates={
            "prefix": (3e-3, 1e-2, 3e-2, 1e-1),
            "full": (1e-4, 3e-4, 1e-3, 3e-3),
            "top-two": (3e-4, 1e-3, 3e-3, 1e-2),
            "lora": (1e-3, 3e-3, 1e-2, 3e-2),
            "embeddings": (3e-3, 1e-2, 3e-2, 1e-1),
            "infix": (3e-3, 1e-2, 3e-2, 1e-1),
        },
        most_rates=6,
        num_seeds=3,
        lengths=(1, 2, 5, 10, 20, 40, 64, 128),
        low_data_sizes=(50, 100, 200, 500),
        low_data_steps=400,
        num_subsets=2,
    ),
    "paper": Scale(
        prompt_template=PAPER_TEMPLATE,
        num_virtual_tokens=5,
        mlp_width=512,
        init_text=RANDOM,
        num_pairs=None,
        batch_size={"e2e": 10, "webnlg": 5, "commongen": 10},
        epochs={"e2e": 5, "webnlg": 5, "commongen": 5},
        ablation_steps=None,
        evaluations=5,
        num_dev_pairs=None,
        num_dev_inputs=None,
        num_test_inputs=None,
        learning_rates={
            "prefix": (2.7e-5, 8e-5, 2.4e-4),
            "full": (1e-5, 3e-5, 9e-5),
            "top-two": (1e-5, 3e-5, 9e-5),
            "lora": (6e-5, 2e-4, 6e-4),
            "embeddings": (1e-3, 3e-3, 1e-2),
            "infix": (2.7e-5, 8e-5, 2.4e-4),
        },
        most_rates=5,
        num_seeds=3,
        lengths=(1, 2, 5, 10, 20, 40),
        low_data_sizes=(50, 100, 200, 500),
        low_data_steps=400,
        num_subsets=5,
    ),
}  # fmt: skip
