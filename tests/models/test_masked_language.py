"""Masked language models: loaded, made around a student's encoder, and the encoder given back."""

import copy

import pytest
import torch
from torch import nn

from masked_tiny import FAMILIES, VOCABULARY, WIDTH, classifier, encoder, masked, texts, tokenizer
from tutelage.data import MaskedTokens, Masking, masked_texts
from tutelage.errors import ModelError
from tutelage.models import ModelSource, scores_and_features
from tutelage.models.masked_language import (
    begins_with_head,
    carry_over,
    encoder_of,
    load_masked_language_model,
    masked_language_student,
)
from tutelage.signals import NO_LABEL, HeadLogits


def batch(count=5):
    data = masked_texts(texts(count), MaskedTokens(tokenizer(), Masking(0.3)))
    return data.batch(torch.arange(count))


def drawn(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def _taken(family, some):
    return {name: values for name, values in some["student"].items() if name != "token_type_ids" or family == "bert"}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_hidden_tokens_meet_the_vocabulary(family):
    """BERT's head has layers before its output layer: were these left out with it, the scores would be those of another
    model; were the output layer not left out, B × T × C logits would be made for the 15% that are asked for."""
    model = masked(family).eval()
    some = batch()
    ran = []
    model.get_output_embeddings().register_forward_hook(lambda layer, given, made: ran.append(made.shape))
    scores, features = scores_and_features(model, some["student"], some["labels"], ["hidden_states.-1"])
    asked = some["labels"] != NO_LABEL
    assert isinstance(scores, HeadLogits)
    assert scores.hidden.shape == (int(asked.sum()), WIDTH)
    assert ran
    assert (*asked.shape, VOCABULARY) not in ran
    whole = model(**_taken(family, some), output_hidden_states=True)
    # layers show the words around the hidden ones too
    torch.testing.assert_close(features["hidden_states.-1"], whole.hidden_states[-1])
    expected = whole.logits[asked]
    torch.testing.assert_close(scores.at(1.0), expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_comes_back_with_the_encoder_that_the_stage_trained(family):
    """Were part of the encoder left behind, the task would begin from layers that never met; were the task's head lost,
    from another start than the arm beside it."""
    student = classifier(family)
    before = copy.deepcopy(student.state_dict())
    stage = drawn(lambda: masked_language_student(student))
    same(before, student.state_dict())
    with torch.no_grad():
        for values in stage.parameters():
            values.add_(torch.randn_like(values))
    returned = carry_over(stage, student)
    assert returned is student
    learnt = stage.base_model.state_dict()
    prefix = f"{student.base_model_prefix}."
    carried = 0
    for name, values in student.state_dict().items():
        inside = name.removeprefix(prefix) if name.startswith(prefix) else None
        if inside in learnt:
            torch.testing.assert_close(values, learnt[inside], rtol=0, atol=0)
            assert values.data_ptr() != learnt[inside].data_ptr()
            assert not values.is_floating_point() or not torch.equal(values, before[name])
            carried += 1
        else:
            torch.testing.assert_close(values, before[name], rtol=0, atol=0)
    assert carried == len(learnt)


def test_the_head_is_the_teachers_where_it_fits_and_the_output_layer_the_students_embeddings():
    """DistilBERT's head began as BERT's; were its output layer the teacher's too, it would be tied to embeddings no more,
    or would overwrite the student's."""
    teacher, student = masked(seed=5), classifier(layers=1)
    stage = drawn(lambda: masked_language_student(student, teacher))
    head = {name: values for name, values in stage.state_dict().items() if name.startswith("cls.predictions.transform")}
    same(head, {name: teacher.state_dict()[name] for name in head})
    own = student.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(stage.get_output_embeddings().weight, own, rtol=0, atol=0)
    assert stage.get_output_embeddings().weight is stage.get_input_embeddings().weight
    assert stage.training
    assert begins_with_head(stage, teacher)
    other = drawn(lambda: masked_language_student(student, masked("distilbert")))
    assert not begins_with_head(other, masked("distilbert"))
    assert not begins_with_head(other, nn.Linear(2, 2))
    again = drawn(lambda: masked_language_student(student, masked("distilbert")))
    same(other.state_dict(), again.state_dict())
    assert not torch.equal(other.cls.predictions.transform.dense.weight, stage.cls.predictions.transform.dense.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_with_an_output_layer_of_its_own_gives_its_head_all_the_same(family):
    """The weight of its output layer is one name more: were the names alone compared, every layer before it would be drawn
    at random, without a word."""
    config, kind, _ = FAMILIES[family]
    untied = config(2)
    untied.tie_word_embeddings = False
    teacher = drawn(lambda: kind(untied), 5)
    with torch.no_grad():
        teacher.get_output_embeddings().bias.normal_()
    student = classifier(family, layers=1)
    stage = drawn(lambda: masked_language_student(student, teacher))
    output, prefix = stage.get_output_embeddings(), f"{stage.base_model_prefix}."
    assert output.weight is stage.get_input_embeddings().weight
    torch.testing.assert_close(output.bias, teacher.get_output_embeddings().bias, rtol=0, atol=0)
    between = {
        name: values
        for name, values in stage.named_parameters()
        if not name.startswith(prefix) and values is not output.bias
    }
    assert between
    same(between, {name: teacher.get_parameter(name) for name in between})


def test_an_encoder_of_another_shape_is_refused():
    """With three layers of four trained, a student would pass for one that passed the stage."""
    stage = drawn(lambda: masked_language_student(classifier(layers=2)))
    for other, words in (
        (classifier(layers=3), r"16 of that one's are not there \(encoder\.layer\.2"),
        (classifier(layers=1), r"16 have no place there \(encoder\.layer\.1"),
        (classifier("distilbert"), "BertModel, and that of DistilBertForSequenceClassification a DistilBertModel"),
    ):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ModelError, match=words):
            carry_over(stage, other)
        same(before, other.state_dict())
    narrow = classifier()
    narrow.resize_token_embeddings(VOCABULARY - 3)
    with pytest.raises(ModelError, match=rf"1 have another shape \(.*{VOCABULARY}, {WIDTH}.* for .*{VOCABULARY - 3}"):
        carry_over(stage, narrow)


def test_the_encoder_is_found_in_a_module_around_it():
    """A sentence encoder is a module around one: taken for one without an encoder it could pass no stage, and of two the
    wrong one might be trained."""

    class Around(nn.Module):
        def __init__(self, **held):
            super().__init__()
            for name, model in held.items():
                setattr(self, name, model)

    inner = encoder()
    assert encoder_of(Around(transformer=inner)) is inner
    held = classifier()
    assert encoder_of(Around(model=held)) is held.bert
    carry_over(masked(seed=9), Around(transformer=inner))
    same({n: v for n, v in inner.state_dict().items() if "pooler" not in n}, masked(seed=9).bert.state_dict())
    with pytest.raises(ModelError, match=r"holds 2 models of transformers \('one', 'other'\)"):
        encoder_of(Around(one=inner, other=held))
    with pytest.raises(ModelError, match="holds 0 models of transformers"):
        encoder_of(nn.Linear(2, 2))


def test_a_folder_with_its_head_is_loaded_as_it_was(tmp_path):
    """Loaded as a classifier, the head that tells words would be dropped, and another drawn."""
    model = masked()
    model.save_pretrained(tmp_path)
    same(load_masked_language_model({"hub": str(tmp_path)}, trained=True).state_dict(), model.state_dict())


def test_an_encoder_without_a_head_cannot_teach_but_can_be_trained(tmp_path):
    """A sentence encoder's folder loads as a masked language model without an error, with a head of noise: students would
    be taught that noise for hours."""
    model = encoder()
    model.save_pretrained(tmp_path)
    source = ModelSource(hub=str(tmp_path))
    with pytest.raises(ModelError, match=r"lacks \d+ of the weights of BertForMaskedLM .*a teacher would teach noise"):
        load_masked_language_model(source, trained=True)
    made = load_masked_language_model(source, seed=3)
    assert made.get_output_embeddings().weight is made.get_input_embeddings().weight
    carried = {name: values for name, values in model.state_dict().items() if "pooler" not in name}
    same(made.bert.state_dict(), carried)
    same(made.state_dict(), load_masked_language_model(source, seed=3).state_dict())
    other = load_masked_language_model(source, seed=4)
    assert not torch.equal(made.cls.predictions.transform.dense.weight, other.cls.predictions.transform.dense.weight)
