"""What is taken as public is listed, and known traps are refused."""

import copy
import itertools
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fxdp
from fxdp.data import FixedSizeSampler, PoissonSampler, pad_collate, private_loader
from fxdp.privacy import Ledger, statement
from tests.keywords import faster, grouped

DELTA = 1e-5
GIVEN: dict[str, Any] = {
    "loss_fn": F.cross_entropy, "max_grad_norm": 1.0, "noise_multiplier": 1.0,
    "expected_batch_size": 4, "backend": "eager", "accountant": "rdp",
}  # fmt: skip


class Words(nn.Module):
    """A mean over positions, padding included."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(10, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.embed(tokens).mean(1))


class Weighted(nn.Module):
    """A loss with arguments that are no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(
        self, x: Any, y: Any, temperature: Any = 1.0, table: Any = None, **more: Any
    ) -> Any:
        out = self.out(x) / temperature
        if table is not None:
            out = out + table
        loss = F.cross_entropy(out, y, reduction="none")
        return (loss / more.get("num_items", 1)).sum()


WORDS, WEIGHTED, LINEAR = Words(), Weighted(), nn.Linear(4, 3)
X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


@pytest.fixture(autouse=True)
def nothing_of_leftovers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps follow each other without an optimizer here."""
    monkeypatch.setattr("fxdp.module.leftovers.LOOKS", 0)


def words(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randint(1, 10, shape), torch.arange(shape[0]) % 3


STEPPERS: dict[Any, Any] = {}  # what compilation left, for the tests after the first


def shared(private: Any, *key: Any) -> Any:
    """A private module that needs no compilation of its own, of an equal model."""
    stepper = STEPPERS.setdefault((type(private._model), *key), private._stepper)
    private.__dict__["_stepper"] = private._inspector.stepper = stepper
    private.zero_grad()
    return private


def texts(microbatch_size: int | None = None) -> Any:
    return shared(fxdp.compile(WORDS, microbatch_size=microbatch_size, **grouped(GIVEN)))


def weighted(batch_dims: Any = 0) -> Any:
    return shared(
        fxdp.compile(WEIGHTED, **grouped(without(batch_dims=batch_dims))), str(batch_dims)
    )


def without(**options: Any) -> dict[str, Any]:
    """For models that return their loss."""
    return {k: v for k, v in GIVEN.items() if k != "loss_fn"} | options


def rows(private: Any) -> list[str]:
    """What the certificate and the statement say, which must be the same."""
    own = [a.what for a in private.certificate().assumptions if a.what.startswith("public: ")]
    text = private.privacy_statement(DELTA)
    for what in own:
        assert what.removeprefix("public: ") in text
    assert ("Assumed public" in text) == bool(own)
    return [what.removeprefix("public: ") for what in own]


class TestSizes:
    def test_one_that_changes_is_listed_and_warned_of_once(self) -> None:
        private = texts()
        for n in (4, 6):  # the number of samples is no such size
            private(*words(n, 5)).backward()
        assert rows(private) == []
        with pytest.warns(fxdp.PublicSizeWarning, match="axis 1 of `tokens`") as caught:
            private(*words(4, 7)).backward()
        (warning,) = caught
        assert "fxdp.data.pad_collate(length=" in str(warning.message)
        assert warning.filename == __file__
        private(*words(4, 9)).backward()
        assert rows(private) == ["axis 1 of `tokens`, a size that differed between steps"]
        certificate = private.certificate()
        assert fxdp.Certificate.from_json(certificate.to_json()) == certificate
        assert certificate  # it is proven, and assumed beside
        assert certificate == private.certificate()
        private(*words(4, 8)).backward()  # without a second warning
        assert "axis 1 of `tokens`" in copy.deepcopy(private).privacy_statement(DELTA)

    @pytest.mark.parametrize("microbatch_size", [None, 2])
    def test_pieces(self, microbatch_size: int | None) -> None:
        private = texts(microbatch_size)

        def step() -> None:
            with private.accumulate():
                for length in (5, 7):
                    private(*words(4, length)).backward()

        with pytest.warns(fxdp.PublicSizeWarning, match="axis 1 of `tokens`"):
            step()
        assert len(rows(private)) == 1

    def test_a_loss_made_outside(self) -> None:
        private = fxdp.compile(Words(), **grouped(without(loss_reduction="mean")))
        for length, many in ((5, False), (7, True)):
            x, y = words(4, length)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                F.cross_entropy(private(x), y).backward()
            assert len(caught) == many
        assert len(rows(private)) == 1

    def test_a_target_and_parts_of_an_argument(self) -> None:
        class Pair(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.out = nn.Linear(1, 1)

            def forward(self, pair: Any) -> Tensor:
                return self.out(pair[0].mean(1) + pair[1].mean(1))

        def loss(out: Tensor, target: Tensor) -> Tensor:
            return ((out - target.mean(1)) ** 2).mean()

        private = fxdp.compile(Pair(), **grouped(GIVEN | {"loss_fn": loss}))
        a, b, c = (torch.ones(4, n, 1) for n in (3, 4, 5))
        private([a, b], c).backward()
        with pytest.warns(fxdp.PublicSizeWarning) as caught:
            private([a, c], b).backward()
        assert len(caught) == 1
        assert [row.split(",")[0] for row in rows(private)] == [
            "axis 1 of `pair[1]`",
            "axis 1 of `target`",
        ]

    def test_looking_is_no_step(self) -> None:
        private = texts()
        private(*words(4, 5)).backward()
        private.per_sample_norms(*words(4, 6))
        private.certificate(*words(4, 7))
        with torch.no_grad():
            private(words(4, 8)[0])
        with pytest.raises(IndexError):
            private(torch.full((4, 9), 99), words(4, 9)[1])
        assert rows(private) == []


class TestValues:
    def test_numbers_and_shared_tensors(self) -> None:
        private = weighted({"table": None})
        private(X, Y, 2.0, torch.zeros(3), mode="a", count=3, flag=True, nothing=None).backward()
        wanted = [
            "`count` (int)",
            "`flag` (bool)",
            "`mode` (str)",
            "`table` (a tensor that all samples share)",
            "`temperature` (float)",
        ]
        assert rows(private) == wanted

    def test_of_inputs_that_are_no_step(self) -> None:
        found = fxdp.prove(Weighted(), X, Y, 2.0)
        assert "public: `temperature` (float)" in {a.what for a in found.assumptions}
        private = weighted()
        private(X, Y).backward()
        given = private.certificate(X, Y, 2.0).assumptions
        assert "public: `temperature` (float)" in {a.what for a in given}
        assert rows(private) == []


TRAPS = ("num_items_in_batch", "num_items", "ntokens", "avg_factor", "batch_size", "rows_per_batch")


class TestTotals:
    """What was computed of the batch, outside."""

    @pytest.mark.parametrize("name", TRAPS)
    @pytest.mark.parametrize("total", [6, 6.0, torch.tensor(6), torch.tensor([6])])
    def test_are_refused(self, name: str, total: Any) -> None:
        private = weighted({name: None})
        for call in (private, private.certificate, private.per_sample_norms):
            with pytest.raises(ValueError, match=f"'{name}' is known as a total of the batch"):
                call(X, Y, **{name: total})
        assert private.releases == 0
        assert all(p.grad is None for p in private.parameters())

    def test_by_default_and_in_a_mapping(self) -> None:
        private = weighted()
        for given in ({"num_items": torch.tensor(6)}, {"more": {"num_items": torch.tensor(6)}}):
            with pytest.raises(ValueError, match="'num_items' is known"):
                private(X, Y, **given)
        with pytest.raises(ValueError, match="'num_items' is known"):
            fxdp.prove(Weighted(), X, Y, num_items=6)

    def test_each_samples_own_is_fine(self) -> None:
        private = weighted()
        private(X, Y, num_items=torch.arange(1, 7)).backward()
        private(X, Y, num_items=torch.arange(2, 8)).backward()
        assert private.releases == 2
        private(X, Y, num_items_in_batch=None).backward()

    @pytest.mark.parametrize("total", [6, torch.tensor(6)])
    def test_through_torch_compile(self, total: Any) -> None:
        options = {k: v for k, v in without().items() if k != "accountant"}
        model = Weighted()
        step = torch.compile(model, backend="fxdp", fullgraph=True, options=options)
        with pytest.raises(Exception, match="'num_items' is known as a total"):
            step(X, Y, num_items=total)
        assert model.out.weight.grad is None


class TestNumberOfSamples:
    def made(self, **options: Any) -> Any:
        model = LINEAR
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data = TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)
        given = {k: v for k, v in GIVEN.items() if k not in ("loss_fn", "expected_batch_size")}
        given |= {"delta": DELTA, "epochs": 1, **options}
        source = DataLoader(data, 4)
        private, _, loader = fxdp.make_private(
            model, optimizer, source, F.cross_entropy, **faster(given)
        )
        shared(private)(*next(iter(loader))).backward()
        return private

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({}, "expected_batch_size and sample_rate were derived"),
            ({"expected_batch_size": 5}, "sample_rate was derived"),
            ({"sample_rate": 0.2}, "expected_batch_size was derived"),
            ({"sampler": PoissonSampler(24, 0.2, 5)}, "expected_batch_size was derived"),
            ({"sample_rate": 0.2, "expected_batch_size": 5.5}, None),
            (
                {"sampler": FixedSizeSampler(24, 5, 5), "neighbours": "replace-one"},
                None,
            ),
        ],
    )
    def test_is_said_to_be_public_if_something_is_derived_from_it(
        self, options: dict[str, Any], words: str | None
    ) -> None:
        private = self.made(**options)
        wanted = [] if words is None else [f"the number of samples, from which {words}"]
        assert rows(private) == wanted
        if "expected_batch_size" in options:
            assert private.expected_batch_size == options["expected_batch_size"]
        said = {a.what for a in private.certificate().assumptions}
        own = "expected_batch_size is public and was not read from the data" in said
        assert own == (words is None or "expected" not in words)

    @pytest.mark.parametrize("size", [0, -1.0, float("nan"), "4"])
    def test_a_bad_size(self, size: Any) -> None:
        with pytest.raises((TypeError, ValueError), match="expected_batch_size"):
            self.made(expected_batch_size=size)


class TestState:
    def test_a_run_that_goes_on_says_what_was_taken_before(self) -> None:
        private = texts()
        private(*words(4, 5)).backward()
        state = private.privacy_state_dict()
        resumed = texts()
        resumed.load_privacy_state_dict(state)
        with pytest.warns(fxdp.PublicSizeWarning):
            resumed(*words(4, 6)).backward()
        assert len(rows(resumed)) == 1
        again = texts()
        again.load_privacy_state_dict(resumed.privacy_state_dict())
        assert again.privacy_state_dict() == resumed.privacy_state_dict()
        assert "Assumed public: axis 1 of `tokens`" in again.privacy_statement(DELTA)

    def test_states_without_it_and_malformed(self) -> None:
        private = texts()
        state = private.privacy_state_dict()
        bad: tuple[Any, ...] = ([], {}, {"rows": [1], "shapes": {}, "derived": []}, 3)
        for public in bad:
            with pytest.raises(ValueError, match="public must have rows"):
                private.load_privacy_state_dict(state | {"public": public})
        del state["public"]
        private.load_privacy_state_dict(state)

    def test_nothing_is_said_of_nothing(self) -> None:
        nothing = "Nothing was released from the data, which costs no privacy."
        assert statement(Ledger(), DELTA) == nothing
        assert statement(Ledger(), DELTA, public=("a",)) == f"{nothing} Assumed public: a."


class Texts(Dataset[Any]):
    """Sequences of 1, 2, ... words, each as a tuple, a mapping, or alone."""

    def __init__(self, kind: str, count: int = 12) -> None:
        self.kind, self.count = kind, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        tokens, label = torch.full((1 + index,), 1 + index % 9), index % 3
        match self.kind:
            case "tuple":
                return tokens, label
            case "mapping":
                return {"ids": tokens.tolist(), "labels": tokens.numpy(), "name": "a", "y": label}
            case _:
                return tokens


class TestPadding:
    def test_of_tuples_tensors_and_mappings(self) -> None:
        pad = pad_collate(length=4)
        x, y = pad([Texts("tuple")[i] for i in (0, 2)])
        assert x.tolist() == [[1, 0, 0, 0], [3, 3, 3, 0]]
        assert y.tolist() == [0, 2]
        assert pad([Texts("alone")[1]]).tolist() == [[2, 2, 0, 0]]
        pad = pad_collate(length=4, padding_value={"labels": -100})
        batch = pad([Texts("mapping")[i] for i in (0, 2)])
        assert batch["ids"].tolist() == [[1, 0, 0, 0], [3, 3, 3, 0]]
        assert batch["labels"].tolist() == [[1, -100, -100, -100], [3, 3, 3, -100]]
        assert batch["name"] == ["a", "a"]
        assert batch["y"].tolist() == [0, 2]

    def test_of_vectors_and_of_fields(self) -> None:
        sample = (torch.ones(2, 3), torch.ones(2, 2), np.ones(3, dtype=bool))
        a, b, c = pad_collate(length=4, fields=[0, 2], padding_value=0)([sample])
        assert (a.shape, b.shape, c.shape) == ((1, 4, 3), (1, 2, 2), (1, 4))
        assert (c.dtype, a.sum().item()) == (torch.bool, 6)
        with pytest.raises(ValueError, match=r"fields has \['9'\]"):
            pad_collate(length=4, fields=[9])([sample])

    def test_buckets(self) -> None:
        pad = pad_collate(buckets=(2, 4, 8))
        sizes = [pad([Texts("alone")[i] for i in (0, n - 1)]).shape[1] for n in (1, 2, 3, 5, 8)]
        assert sizes == [2, 2, 4, 8, 8]
        with pytest.raises(ValueError, match="a sequence of 9 items"):
            pad([Texts("alone")[8]])
        cut = pad_collate(buckets=(2, 4, 8), truncate=True)
        assert cut([Texts("alone")[8]]).shape == (1, 8)

    def test_too_long(self) -> None:
        for sample, where in ((Texts("tuple")[4], "field 0"), (Texts("mapping")[4], "field 'ids'")):
            with pytest.raises(ValueError, match=f"5 items in {where}, and the greatest"):
                pad_collate(length=4)([sample])
            assert len(pad_collate(length=4, truncate=True)([sample])) == len(sample)
        with pytest.raises(ValueError, match="empty list in field 'x'"):
            pad_collate(length=4)([{"x": []}])

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"length": 4, "buckets": (4,)},
            {"length": 0},
            {"length": 2.5},
            {"buckets": ()},
            {"buckets": (4, 2)},
            {"buckets": (0, 2)},
            {"length": 4, "fields": "ids"},
        ],
    )
    def test_bad_input(self, options: dict[str, Any]) -> None:
        with pytest.raises((TypeError, ValueError), match="length|buckets|fields"):
            pad_collate(**options)

    @pytest.mark.parametrize("kind", ["tuple", "mapping", "alone"])
    @pytest.mark.parametrize("chosen", [{"length": 12}, {"buckets": (8, 12)}])
    def test_in_a_loader_with_empty_batches(self, kind: str, chosen: dict[str, Any]) -> None:
        pad = pickle.loads(pickle.dumps(pad_collate(**chosen)))
        generator = torch.Generator().manual_seed(0)
        loader = private_loader(
            Texts(kind), sample_rate=0.08, steps=12, collate_fn=pad, generator=generator
        )
        shapes = set()
        for batch in loader:
            first = batch[0] if kind == "tuple" else batch["ids"] if kind == "mapping" else batch
            shapes.add((len(first) > 0, first.shape[1]))
        least = min(chosen.get("buckets", (12,)))
        assert (False, least) in shapes
        assert {size for some, size in shapes if some} == set(chosen.get("buckets", (12,)))

    def test_an_empty_batch_has_the_least_length_whatever_the_data(self) -> None:
        backwards = torch.utils.data.Subset(Texts("alone"), [11])
        pad = pad_collate(buckets=(2, 12))
        loader = private_loader(backwards, sample_rate=0.001, collate_fn=pad, steps=1)
        assert next(iter(loader)).shape == (0, 2)

    @pytest.mark.parametrize(
        ("chosen", "warns"), [({"length": 12}, False), ({"buckets": (8, 12)}, True)]
    )
    def test_a_fixed_length_is_silent_and_buckets_are_not(
        self, chosen: dict[str, Any], warns: bool
    ) -> None:
        private = texts()
        loader = private_loader(
            Texts("tuple"), sample_rate=0.08, steps=12, collate_fn=pad_collate(**chosen),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for batch in itertools.islice(loader, 12):
                private(*batch).backward()
        assert [w.category for w in caught] == [fxdp.PublicSizeWarning] * warns
        assert bool(rows(private)) == warns
