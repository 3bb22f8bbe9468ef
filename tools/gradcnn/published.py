"""The numbers of the paper (arXiv:1912.06015): seconds for 20 batches, mean of 10 runs.

They were measured on a P100 with PyTorch 1.1. Table 1 is printed in the paper; the figures have
no printed numbers, so theirs were read off the vector graphics. All of it is for batches of 8 and
images of 3x256x256 unless said otherwise.

`multi` there is one replica of the model for each sample, and `naive` a forward and backward pass
for each; in fxdp both differ from other strategies in the sums over samples alone: `multi` is
torch.vmap over these, `naive` a loop.
"""

from collections.abc import Mapping

NO_DP = "no DP"
BATCHES = 20  # that a published time is for
Published = Mapping[str, float]  # seconds by contender
Curves = Mapping[int, Mapping[float, Published]]  # by layers, then by channel rate


def _columns(keys: str, **seconds: str) -> dict[float, Published]:
    """Columns of numbers by contender, as rows by key."""
    columns = {name: [float(v) for v in text.split()] for name, text in seconds.items()}
    rows = zip(*columns.values(), strict=True)
    return {
        float(key): dict(zip(columns, row, strict=True))
        for key, row in zip(keys.split(), rows, strict=True)
    }


# 25 channels in the first layer, kernel 3.
FIGURE_1: Curves = {
    2: _columns(
        "1 2 4 8 16",
        crb="1.455 1.781 2.470 3.957 6.845",
        multi="1.201 1.872 3.232 6.212 11.895",
    ),
    3: _columns(
        "1 2 3 4 5",
        crb="1.598 2.594 4.212 6.687 9.479",
        multi="1.274 3.280 7.017 12.002 18.020",
    ),
    4: _columns(
        "1 1.75 2.5 3.25 4",
        crb="1.574 2.359 4.584 9.651 20.295",
        multi="0.904 1.960 4.407 9.957 19.134",
    ),
}

# By batch size; 3 layers of 256 channels, kernel 5.
FIGURE_2: Mapping[float, Published] = _columns(
    "3 5 7 9 12 15",
    crb="4.527 6.718 6.844 8.139 9.596 11.549",
    multi="3.751 6.180 8.593 11.047 14.648 18.292",
    naive="5.548 9.170 12.736 16.366 21.727 27.152",
)

# As figure 1, kernel 5.
FIGURE_3: Curves = {
    2: _columns(
        "1 2 4 8 16",
        crb="1.543 2.121 2.998 5.281 9.663",
        multi="1.579 2.311 3.714 7.100 13.392",
    ),
    3: _columns(
        "1 2 3 4 5",
        crb="1.704 3.102 5.341 8.036 12.696",
        multi="1.736 3.932 8.106 13.954 25.222",
    ),
    4: _columns(
        "1 1.75 2.5 3.25 4",
        crb="1.717 3.549 7.671 18.113 59.664",
        multi="1.479 3.967 11.738 28.075 51.956",
    ),
}

# AlexNet in batches of 16, VGG16 in batches of 8.
TABLE_1: Mapping[str, Published] = {
    "AlexNet": {NO_DP: 0.747, "naive": 30.17, "multi": 3.076, "crb": 2.030},
    "VGG16": {NO_DP: 1.947, "naive": 37.20, "multi": 4.630, "crb": 5.591},
}

# gradcnn's README, for the net of run_test.
RUN_TEST: Published = {"naive": 0.5, "multi": 0.3, "crb": 0.1}

# What gradcnn's own gradient check prints, seed 42, on a CPU with torch 2.13; its three
# strategies agree to the digits given.
GRADCHECK = (0.000190298, 0.0187779, 0.0346483, 0.0280856, 0.043476)
