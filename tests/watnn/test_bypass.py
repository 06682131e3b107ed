"""Layers whose weight the model reads instead of calling them are noticed, and no others."""

import copy
import io
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
import watnn
from torch import nn
from torch._dynamo import compiled_autograd
from torch.utils.checkpoint import checkpoint
from watnn import bypass
from watnn.transforms import WAT, DropConnect

from tests.conftest import DEVICE

NOTICED = r"mixer\.conv1d is a shadow layer that was not called, and its weight got a gradient"
X = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0)).to(DEVICE)


@pytest.fixture(autouse=True)
def _as_if_nothing_was_compiled(monkeypatch):
    monkeypatch.setattr(bypass, "_traced", False)


class Mixer(nn.Module):
    """As Mamba's: the convolution's weight goes to a kernel of its own."""

    def __init__(self, weight="conv1d"):
        super().__init__()
        self.conv1d = nn.Conv1d(4, 4, 3, groups=4, padding=1)
        self.read = weight

    def forward(self, x):
        conv = getattr(self, self.read)  # not seen in the source
        return F.conv1d(x, conv.weight, conv.bias, padding=1, groups=4)


class Model(nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.stem = nn.Conv1d(4, 4, 3, padding=1)
        self.mixer = mixer

    def forward(self, x):
        return self.mixer(self.stem(x))


def converted():
    return watnn.convert(Model(Mixer()), WAT())


def train_step(model, x=X):
    model(x).square().sum().backward()


def test_a_weight_that_is_read_and_never_called_is_noticed_once():
    model = converted()
    with pytest.warns(UserWarning, match=NOTICED) as record:
        for _ in range(3):
            train_step(model)
    assert len(record) == 1 and "exclude it" in str(record[0].message) and "watnn.summary" in str(record[0].message)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def emptied(model):
    model.to_empty(device=DEVICE)
    for parameter in model.parameters():
        nn.init.uniform_(parameter)
    return model


def on_meta(model):
    return emptied(model.to("meta"))


def again(model):
    return watnn.convert(watnn.revert(model), WAT())


@pytest.mark.parametrize("change", [copy.deepcopy, pickled, saved, emptied, on_meta, again, nn.Module.double])
def test_copies_and_new_parameters_are_watched_once_training_begins(change):
    model = change(converted()).train()
    with pytest.warns(UserWarning, match=NOTICED) as record:
        train_step(model, X.to(model.stem.weight.dtype))
    assert len(record) == 1


def called(self, x):
    return self.conv1d(x)


class Called(Mixer):
    forward = called


class Checkpointed(Mixer):
    def forward(self, x):
        return checkpoint(self.conv1d, x, use_reentrant=False)


class Reentrant(Mixer):
    def forward(self, x):
        return checkpoint(self.conv1d, x, use_reentrant=True)


class Threaded(Mixer):
    def forward(self, x):
        results = []
        thread = threading.Thread(target=lambda: results.append(self.conv1d(x)))
        thread.start()
        thread.join()
        return results[0]


class Unused(Mixer):
    def forward(self, x):
        return x


class Replicated(Mixer):
    def forward(self, x):  # what nn.DataParallel calls: copies of the modules with the same attributes
        replica = self.conv1d._replicate_for_data_parallel()
        for name, parameter in self.conv1d._parameters.items():
            setattr(replica, name, None if parameter is None else parameter * 1)
        return replica(x)


@pytest.mark.parametrize("mixer", [Called, Checkpointed, Reentrant, Threaded, Unused, Replicated])
def test_layers_that_are_called_or_get_no_gradient_are_not_noticed(mixer):
    model = watnn.convert(Model(mixer()), WAT())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            train_step(model)
            optimizer.step()


@pytest.mark.parametrize("switch", [watnn.aom, nn.Module.eval])
def test_pw_is_what_such_a_model_should_read_in_aom_and_eval(switch):
    model = converted()
    switch(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_step(model)
    watnn.auto(model).__enter__().train()
    with pytest.warns(UserWarning, match=NOTICED):
        train_step(model)


def test_an_evaluation_before_the_training_hides_nothing():
    class Switching(Mixer):
        def forward(self, x):
            return super().forward(x) if self.training else self.conv1d(x)

    model = watnn.convert(Model(Switching()), WAT()).eval()
    with torch.no_grad():
        model(X)
    with pytest.warns(UserWarning, match=NOTICED):
        train_step(model.train())


def test_a_gradient_from_the_other_user_of_a_tied_weight_says_nothing():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)
            self.head.weight = self.wte.weight

        def forward(self, tokens):
            return self.wte(tokens)

    model = watnn.convert(Tied(), DropConnect(0.5), include="head")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_step(model, torch.arange(5))


def test_calls_inside_compiled_code_are_not_missed():
    torch._dynamo.reset()
    model = watnn.convert(Model(Called()), WAT())
    model.mixer.compile(fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*shadow layer")
        for _ in range(2):
            train_step(model)
    torch._dynamo.reset()


def test_compiled_autograd_has_no_part_of_the_hooks():
    torch._dynamo.reset()
    model, plain = watnn.convert(Model(Called()), WAT()), Model(Called())
    plain.load_state_dict(model.state_dict())
    watnn.aom(model)
    with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        train_step(model)
    train_step(plain)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch._dynamo.reset()


def test_the_hooks_come_off():
    model = watnn.convert(Model(Called()), WAT())
    assert len(model.stem.weight._post_accumulate_grad_hooks) == 1
    model.train()
    assert len(model.stem.weight._post_accumulate_grad_hooks) == 1
    train_step(model)
    assert not model.stem.weight._post_accumulate_grad_hooks


class Reading(Mixer):
    def forward(self, x):
        return F.conv1d(x, self.conv1d.weight, self.conv1d.bias, padding=1, groups=4)


class Both(Mixer):
    def forward(self, x):
        return Reading.forward(self, x) if x.is_cuda else self.conv1d(x)

    def kernel(self):
        return self.conv1d.weight.view(-1)


class LooksAtTheType(Mixer):
    def forward(self, x):
        return F.silu(x.to(self.conv1d.weight.dtype))


class HandsOn(Mixer):
    def forward(self, x):
        return self.run(self.conv1d, self.conv1d.weight.sum() * x)

    def run(self, layer, x):
        return layer(x)


class Initialises(Mixer):
    def reset_parameters(self):
        nn.init.zeros_(self.conv1d.weight)


def test_convert_names_the_layers_that_the_source_reads():
    model = nn.Sequential(*[Reading() for _ in range(5)], nn.Conv1d(4, 4, 3))
    message = r"Reading reads self\.conv1d\.weight and never calls self\.conv1d \(0\.conv1d, 1\.conv1d, 2\.conv1d and 2 more\)"
    with pytest.warns(UserWarning, match=message) as record:
        watnn.convert(model, WAT())
    assert len(record) == 1 and record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watnn.convert(model, WAT(), exclude="*.conv1d")


@pytest.mark.parametrize("mixer", [Called, Both, LooksAtTheType, HandsOn, Initialises, Mixer])
def test_convert_suspects_no_others(mixer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watnn.convert(Model(mixer()), WAT())


def test_attention_of_torch_keeps_its_projection():
    """F.multi_head_attention_forward reads out_proj.weight; its type is a private subclass of Linear, which is left."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = watnn.convert(model, DropConnect(0.2))
        train_step(model, torch.randn(2, 3, 8))
    assert [name for name, _ in watnn.layers.shadow_layers(model)] == ["linear1", "linear2"]
