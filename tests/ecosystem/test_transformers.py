"""Image models of Hugging Face transformers, made from a configuration: converted, trained, saved, loaded, reverted."""

import os

import pytest
import torch
import watnn
from torch import nn
from watnn import bypass
from watnn.layers import shadow_layers
from watnn.transforms import WAT, DropConnect, MultiplicativeNoise, RandomAffine

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import Trainer, TrainingArguments
from transformers.models.convnext import ConvNextConfig, ConvNextForImageClassification
from transformers.models.distilbert import DistilBertConfig, DistilBertForMaskedLM
from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel
from transformers.models.mamba import MambaConfig, MambaForCausalLM
from transformers.models.mobilenet_v2 import MobileNetV2Config, MobileNetV2ForImageClassification
from transformers.models.resnet import ResNetConfig, ResNetForImageClassification
from transformers.models.vit import ViTConfig, ViTForImageClassification

SIZE = 32


def resnet():
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    )


def mobilenet():
    return MobileNetV2ForImageClassification(MobileNetV2Config(image_size=SIZE, depth_multiplier=0.25, num_labels=3))


def convnext():
    return ConvNextForImageClassification(
        ConvNextConfig(
            patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=SIZE, num_labels=3,
            layer_scale_init_value=0.1,
        )
    )  # fmt: skip


def vit():
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=SIZE,
            patch_size=8, num_labels=3,
        )
    )  # fmt: skip


# the model, the transform, and how many layers of each kind redraw their weight
MODELS = {
    "resnet": (resnet, WAT(), {"WATConv2d": 5}),
    "mobilenet": (mobilenet, WAT(), {"WATConv2d": 18}),
    "convnext": (convnext, WAT(), {"WATConv2d": 4}),
    "vit-multiplicative": (vit, MultiplicativeNoise(0.2), {"WATConv2d": 1, "WATLinear": 13}),
    "vit-dropconnect": (vit, DropConnect(0.2), {"WATConv2d": 1, "WATLinear": 13}),
    "vit-patches": (vit, RandomAffine(0, translate=(0.2, 0.2)), {"WATConv2d": 1}),
}
models = pytest.mark.parametrize("name", MODELS)
X = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


class Images(torch.utils.data.Dataset):
    """16 images of three kinds, that differ in brightness."""

    def __init__(self):
        self.labels = torch.arange(16) % 3
        noise = torch.randn(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        self.images = noise + self.labels.view(-1, 1, 1, 1)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def train(model, folder, steps=4):
    """A few steps by the Trainer; returns the loss before and after, of PW."""
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=8, per_device_eval_batch_size=16, learning_rate=1e-2,
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, seed=1,
    )  # fmt: skip
    data = Images()
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    return before, trainer.evaluate()["eval_loss"]


def counts(model):
    kinds = [type(layer).__name__ for _, layer in shadow_layers(model)]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def logits(model):
    with torch.no_grad():
        return model.eval()(pixel_values=X).logits


@models
def test_converted_trained_saved_loaded_and_reverted(name, tmp_path):
    build, transform, expected = MODELS[name]
    original = build()
    model = watnn.convert(original, transform)
    assert counts(model) == expected
    assert type(model) is type(original)
    torch.testing.assert_close(logits(model), logits(original))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, tmp_path)
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
        assert not torch.equal(parameter, before[key]), f"{key} has not been trained"
    plain = logits(model)
    with watnn.dom(model, key=3):
        assert not torch.allclose(logits(model), plain, atol=1e-4)

    model.save_pretrained(tmp_path)
    loaded, report = type(original).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not shadow_layers(loaded)
    torch.testing.assert_close(logits(loaded), plain, atol=1e-4, rtol=1e-4)
    again = watnn.convert(loaded, transform)  # and on with the training
    with watnn.dom(model, key=3), watnn.dom(again, key=3):
        torch.testing.assert_close(logits(again), logits(model), atol=1e-4, rtol=1e-4)

    reverted = watnn.revert(model)
    assert not shadow_layers(reverted) and [*reverted.state_dict()] == [*original.state_dict()]
    assert [type(m) for m in reverted.modules()] == [type(m) for m in original.modules()]
    torch.testing.assert_close(logits(reverted), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet", "vit-multiplicative"])
def test_the_trainer_lowers_the_loss(name, tmp_path):
    build, transform, _ = MODELS[name]
    before, after = train(watnn.convert(build(), transform), tmp_path, steps=25)
    assert after < 0.6 * before


@models
def test_dom_exports_compute_the_same(name):
    """Whole kernels where the model's own code reads the layer: MobileNetV2 its kernel size, ViT its weight's dtype."""
    build, transform, _ = MODELS[name]
    model = watnn.convert(build(), transform).eval()
    for key in range(3):
        exported = watnn.export(model, mode="dom", key=key, crop=name not in ("mobilenet", "vit-patches"))
        with watnn.dom(model, key=key):
            torch.testing.assert_close(logits(exported), logits(model), atol=1e-4, rtol=1e-4)


def test_a_gain_reaches_the_unconverted_model_through_export(tmp_path):
    """save_pretrained of the converted model itself would leave the gain where the plain one does not look."""
    model = watnn.convert(resnet(), WAT(), gain="channel")
    for _, layer in shadow_layers(model):
        nn.init.uniform_(layer.gain, 0.5, 2)
    watnn.export(model).save_pretrained(tmp_path)
    loaded = ResNetForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)


def test_initialization_knows_shadow_layers_for_what_they_are():
    """_init_weights asks with isinstance; the gain stays."""
    model = watnn.convert(vit(), MultiplicativeNoise(0.1), gain="layer")
    layer = model.vit.layers[0].mlp.fc1
    with torch.no_grad():
        layer.weight.fill_(7.0)
        layer.bias.fill_(7.0)
    model._init_weights(layer)
    assert 0 < layer.weight.std() < 0.1 and torch.equal(layer.bias, torch.zeros_like(layer.bias))
    assert layer.gain == 1


TOKENS = torch.arange(12).view(2, 6)


def distilbert():
    return DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=16)
    )


def gpt2():
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16, **tokens))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4))


def token_logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def token_step(model):
    model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()


def test_a_tied_head_is_left_and_the_rest_is_converted(caplog):
    converted = watnn.convert(distilbert(), DropConnect(0.1))
    assert type(converted.vocab_projector) is nn.Linear
    assert "vocab_projector (one Parameter with distilbert.embeddings.word_embeddings.weight;" in caplog.text
    assert converted.vocab_projector.weight is converted.distilbert.embeddings.word_embeddings.weight
    token_step(converted)
    assert all(layer.weight.grad.abs().sum() > 0 for _, layer in shadow_layers(converted))
    assert len(shadow_layers(converted)) == 7


def test_a_model_with_nothing_but_a_tied_head_says_so():
    """The layers of GPT-2 are Conv1D, a class of transformers."""
    message = r"no shadow layer for Conv1D.*lm_head: one Parameter with transformer\.wte\.weight; name it in include"
    with pytest.raises(ValueError, match=message):
        watnn.convert(gpt2(), DropConnect(0.1))


@pytest.mark.parametrize(("build", "head"), [(gpt2, "lm_head"), (distilbert, "vocab_projector")])
def test_a_tied_head_that_is_named_stays_tied_when_saved_and_loaded(build, head, tmp_path):
    original = build()
    model = watnn.convert(original, DropConnect(0.3), include=head)
    embedding = model.get_input_embeddings()
    assert type(model.get_submodule(head)) is watnn.WATLinear and model.get_submodule(head).weight is embedding.weight
    assert list(model.state_dict()) == list(original.state_dict())
    before = embedding.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    token_step(model)
    optimizer.step()
    assert not torch.equal(embedding.weight, before)
    plain = token_logits(model)
    with watnn.dom(model, key=3):
        assert not torch.allclose(token_logits(model), plain, atol=1e-4)
    model.tie_weights()
    assert model.get_submodule(head).weight is embedding.weight

    model.save_pretrained(tmp_path)
    loaded = type(original).from_pretrained(tmp_path)
    assert loaded.get_submodule(head).weight is loaded.get_input_embeddings().weight
    torch.testing.assert_close(token_logits(loaded), plain)
    fresh = watnn.convert(build(), DropConnect(0.3), include=head)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(token_logits(fresh), plain)


def test_a_tied_head_with_a_gain_is_saved_untied(tmp_path):
    model = watnn.convert(gpt2(), DropConnect(0.3), include="lm_head", gain="layer")
    nn.init.constant_(model.lm_head.gain, 2.0)
    with pytest.warns(UserWarning, match=r"lm_head\.weight was one Parameter with transformer\.wte\.weight"):
        exported = watnn.export(model)
    exported.config.tie_word_embeddings = False
    exported.save_pretrained(tmp_path)
    torch.testing.assert_close(token_logits(GPT2LMHeadModel.from_pretrained(tmp_path)), token_logits(model))


def test_a_mixer_that_reads_its_convolution_is_noticed_twice(monkeypatch):
    """By convert in the source, by the first training step in what happens."""
    monkeypatch.setattr(bypass, "_traced", False)  # whatever other tests compiled
    with pytest.warns(UserWarning, match=r"MambaMixer reads self\.conv1d\.weight and never calls self\.conv1d"):
        model = watnn.convert(mamba(), WAT())
    with pytest.warns(UserWarning, match="shadow layer that was not called") as record:
        token_step(model)
        token_step(model)
    named = [str(warning.message).split()[0] for warning in record if "shadow layer" in str(warning.message)]
    assert sorted(named) == [f"backbone.layers.{layer}.mixer.conv1d" for layer in range(2)]
