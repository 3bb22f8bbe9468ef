"""The experiments of arXiv:1912.06015 run, and their nets and files are what they should be."""

import gzip
import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tools.bench.timing import Times
from tools.gradcnn import experiments, gradcheck, mnist, report
from tools.gradcnn.__main__ import main
from tools.gradcnn.contenders import How
from tools.gradcnn.flags import parse
from tools.gradcnn.grids import figure1, table1
from tools.gradcnn.idx import IdxError, find, read, read_images
from tools.gradcnn.imagenet import alexnet, vgg16
from tools.gradcnn.nets import Net


@pytest.mark.parametrize(
    ("make", "count"), [(gradcheck.net, 81_560), (alexnet, 61_100_840), (vgg16, 138_357_544)]
)
def test_parameter_counts(make: Callable[[], nn.Module], count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count


def test_layers_grow_at_the_channel_rate() -> None:
    with torch.device("meta"):
        net = Net(256, 4, 25, 3.25, 5)
    assert [conv.out_channels for conv in net.conv_layers] == [25, 81, 264, 858]


class TestGradcheck:
    def test_strategies_agree(self) -> None:
        how = How(strategies=("naive", "crb"))  # the others take their time in the tool
        found = gradcheck.courses(lambda: Net(8, 1, 4, 1.0, 3), 8, 3, 2, how)
        assert gradcheck.agree(found)
        text = gradcheck.text(found)
        assert text.count("GRADIENT AVG AT BATCH 2:") == len(found)

    def test_a_difference_is_noticed(self) -> None:
        course = gradcheck.Course((1.0, 2.0), 0.0)
        assert gradcheck.agree({"crb": course, "multi": course})
        other = replace(course, means=(1.0, 2.0001))
        assert not gradcheck.agree({"crb": course, "multi": other})
        assert not gradcheck.agree({"crb": course, "multi": replace(course, worst_norm=1e-4)})


def test_a_point_of_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, path = figure1(full=False), tmp_path / "figure.png"
    flags = ["figure1", "--rounds", "2", "--strategy", "crb", "--plot", str(path)]
    options = parse(flags, None)
    done = experiments.grid(replace(grid, points=grid.points[:1]), options)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(done.records)) == done.records
    rows = {row["contender"]: row for row in done.records}
    assert rows.keys() == {"no DP", "crb"}
    assert rows["no DP"]["ratio"] == 1
    assert rows["crb"]["paper"] == 1.455
    assert all(row["rounds"] == 2 and row["best"] > 0 for row in rows.values())
    assert "scaled: images of 3x32x32, not 3x256x256" in capsys.readouterr().out


def test_ratios_are_of_the_best_rounds() -> None:
    grid = table1(full=True)
    seconds = {"no DP": (1.0, 9.0), "multi": (7.0, 4.0), "crb": (2.0, 3.0), "auto": (2.0, 9.0)}
    times = {name: Times(cpu=s, wall=s) for name, s in seconds.items()}
    rows = report.lines(grid, grid.points[0], times, batches=1)
    assert [row.best for row in rows] == [20, 80, 40, 40]
    assert [row.ratio for row in rows] == [1, 4, 2, 2]
    ratios = [row.paper_ratio for row in rows[:3]]
    assert ratios == pytest.approx([1, 4.12, 2.72], abs=0.01)
    assert report.summary(rows).count("1 of 1 points") == 2
    assert len({len(line) for line in report.text(rows).splitlines()}) == 1


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as an idx file."""
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


IMAGES = np.arange(3 * 28 * 28).reshape(3, 28, 28) % 251


class TestIdx:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """The training half plain, the test half gzipped and where torchvision puts it."""
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES))
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([1, 2, 3])))
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True)
        (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[:2])))
        (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([4, 5]))))
        return tmp_path

    def test_plain_and_gzipped(self, folder: Path) -> None:
        train, test = read_images(folder, "train"), read_images(folder, "t10k")
        assert (train.images == IMAGES).all()
        assert (test.images == IMAGES[:2]).all()
        assert (train.labels.tolist(), test.labels.tolist()) == ([1, 2, 3], [4, 5])
        data = mnist.load(folder)
        wanted = (torch.from_numpy(IMAGES[0]) / 255 - 0.1307) / 0.3081
        torch.testing.assert_close(data.train.x[0, 0], wanted.float())
        assert data.test.y.tolist() == [4, 5]

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("train-images-idx3-ubyte", lambda b: b[:-5], "truncated: 2347 bytes of data, where 3"),
            ("train-images-idx3-ubyte", lambda b: b + b"x", "too long"),
            ("train-images-idx3-ubyte", lambda b: b[:7], "truncated: 7 bytes, where the head"),
            ("train-images-idx3-ubyte", lambda b: b"<html>" + b, "no idx file"),
            ("train-labels-idx1-ubyte", lambda b: idx(np.array([1, 2])), "2 labels for 3 images"),
            ("MNIST/raw/t10k-images-idx3-ubyte.gz", lambda b: b[:-9], "cannot be read"),
            ("MNIST/raw/t10k-labels-idx1-ubyte.gz", lambda b: b"no gzip", "cannot be read"),
        ],
    )
    def test_a_broken_file_is_named(
        self, folder: Path, name: str, change: Callable[[bytes], bytes], message: str
    ) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(IdxError, match=rf"{re.escape(str(path))}: {message}"):
            mnist.load(folder)

    def test_sizes_beyond_all_memory(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12)
        with pytest.raises(IdxError, match="truncated: 0 bytes of data"):
            read(path, axes=3)

    def test_a_missing_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(IdxError, match="no a and no a.gz"):
            find(tmp_path, "a")
        monkeypatch.setattr(logging, "disable", lambda level: None)
        assert main(["mnist", "--data", str(tmp_path)]) == 2
        assert "no train-images-idx3-ubyte and no" in capsys.readouterr().err


def scans() -> mnist.Half:
    """A few of the scans that are there without MNIST."""
    test = mnist.load(None).test
    return mnist.Half(test.x[:20], test.y[:20])


@pytest.mark.parametrize("dp", [False, True])
def test_mnist_prints_its_three_lines(
    dp: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    data = mnist.Data(scans(), scans(), "")
    path = tmp_path / "net.pt"
    mnist.run(data, mnist.Options(batch_size=8, log_interval=2, dp=dp, save_model=path))
    lines = capsys.readouterr().out.splitlines()
    patterns = (
        r"Train Epoch: 1 \[0/20 \(0%\)\]\tLoss: \d+\.\d{6}",
        r"Train Epoch: 1 \[8/20 \(67%\)\]\tLoss: \d+\.\d{6}",
        r"",
        r"Test set: Average loss: \d+\.\d{4}, Accuracy: \d+/20 \(\d+%\)",
        r"Elapsed time: \d+\.\d\ds",
    )
    assert len(lines) == len(patterns)
    assert all(re.fullmatch(p, line) for p, line in zip(patterns, lines, strict=True))
    saved: dict[str, Tensor] = torch.load(path)
    assert sum(v.numel() for v in saved.values()) == 1_199_882


@pytest.mark.parametrize(
    "flags",
    [["figure1", "--rounds", "0"], ["figure1", "--plot", "x.pdf"], ["mnist", "--device", "tpu"],
     ["figure4"], ["table1", "--strategy", "best"], ["mnist", "--lr", "nan"]],
)  # fmt: skip
def test_bad_flags(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(flags, None)
    assert "usage: tools/run gradcnn" in capsys.readouterr().err
