"""The parts of the miniature, and the one that ships."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mirlab import world
from mirlab.model import evaluation
from mirlab.model.miniature import (
    VISION_TOKENS,
    assemble,
    insert_identity_layers,
    language_model_of,
    new_encoder,
    new_language_model,
    new_processor,
    pixel_values,
    save_miniature,
)
from mirlab.world import language
from mirlib.errors import MirlibError
from mirlib.loading import MINIATURE, load_miniature


@pytest.fixture(scope="module")
def miniature():
    return load_miniature()


def test_identity_layers_leave_the_logits_unchanged():
    model = new_language_model(layers=5)
    deeper = insert_identity_layers(model, 3)
    assert deeper.config.num_hidden_layers == len(deeper.model.layers) == 8
    ids = torch.randint(4, language.VOCABULARY_SIZE, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, deeper(ids).logits)


def test_identity_layers_can_wake_up():
    deeper = insert_identity_layers(new_language_model(layers=2), 1)
    ids = torch.randint(4, language.VOCABULARY_SIZE, (2, 40), generator=torch.Generator().manual_seed(0))
    deeper(ids, labels=ids).loss.backward()
    assert all(layer.mlp.down_proj.weight.grad.abs().sum() > 0 for layer in deeper.model.layers)


def test_too_many_identity_layers_are_refused():
    with pytest.raises(ValueError, match="at most 2 layers"):
        insert_identity_layers(new_language_model(layers=2), 3)


def test_new_models_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    assemble(new_encoder(), new_language_model())
    assert torch.equal(torch.get_rng_state(), before)


def test_assembling_keeps_the_parts():
    clip, llm = new_encoder(), new_language_model(layers=2)
    model = assemble(clip, llm)
    pixels = pixel_values([world.sample_scene(np.random.default_rng(0))])
    ids = torch.tensor([[language.BOS, 7, 8, 9]])
    with torch.no_grad():
        expected = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        features = model.model.multi_modal_projector(expected)
        assert torch.allclose(model.get_image_features(pixels).pooler_output[0], features[0], atol=1e-5)
        assert torch.allclose(model(input_ids=ids).logits, llm(ids).logits, atol=1e-5)
        assert torch.allclose(language_model_of(model)(ids).logits, llm(ids).logits, atol=1e-5)


def test_saving_and_loading(tmp_path):
    tokenizer = language.load_tokenizer(MINIATURE)
    model = assemble(new_encoder(), new_language_model(layers=2))
    save_miniature(model, new_processor(tokenizer), tmp_path)
    assert model.dtype == torch.float32
    loaded, _ = load_miniature(tmp_path)
    for (name, old), (_, new) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(old.half().float(), new), name


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(MirlibError, match="no miniature in .*model.safetensors is missing"):
        load_miniature(tmp_path)


# The one that ships


def test_the_shipped_folder_is_small_and_holds_no_pickle():
    files = [path for path in MINIATURE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja", ".md"}


def test_the_shipped_miniature_loads_as_float32(miniature):
    model, processor = miniature
    assert model.dtype == torch.float32
    assert not model.training
    assert model.config.text_config.num_hidden_layers >= 7
    assert load_miniature(dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_the_auto_classes_load_it_too(miniature):
    model = AutoModelForImageTextToText.from_pretrained(MINIATURE, dtype=torch.float32, local_files_only=True)
    processor = AutoProcessor.from_pretrained(MINIATURE, local_files_only=True)
    inputs = processor(images=world.to_image(evaluation.held_out_scenes(1)[0]), text="<image>\n", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, miniature[0](**inputs).logits)


def test_a_picture_becomes_36_image_tokens(miniature):
    model, processor = miniature
    inputs = processor(images=world.to_image(evaluation.held_out_scenes(1)[0]), text="<image>\n", return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == VISION_TOKENS == 36
    with torch.no_grad():
        assert model.get_image_features(inputs["pixel_values"]).pooler_output[0].shape == (36, 128)


def test_the_processor_sees_what_training_saw(miniature):
    scene = evaluation.held_out_scenes(1)[0]
    inputs = miniature[1](images=world.to_image(scene), text="<image>", return_tensors="pt")
    assert torch.allclose(inputs["pixel_values"], pixel_values([scene]), atol=1e-6)


def test_pictures_of_any_size_are_taken(miniature):
    from PIL import Image

    for size in ((640, 480), (20, 300), (48, 48)):
        inputs = miniature[1](images=Image.new("L", size, 90), text="<image>", return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, 48, 48)


def test_the_chat_template_works_from_messages_to_answer(miniature):
    model, processor = miniature
    image = world.to_image(evaluation.held_out_scenes(1)[0])
    content = [{"type": "image", "image": image}, {"type": "text", "text": "how many objects ?"}]
    messages = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == "USER:<image>\n how many objects ? ASSISTANT:"
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["input_ids"][0, 0] == language.BOS
    assert (inputs["input_ids"] == language.BOS).sum() == 1
    output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :]).strip()
    assert answer in world.NUMBERS


def test_captions_of_held_out_pictures_beat_the_blind_baseline(miniature):
    model, processor = miniature
    own = evaluation.caption_scores(model, processor.tokenizer, scenes=100)
    permuted = evaluation.caption_scores(model, processor.tokenizer, scenes=100, image="permuted")
    assert own["loss"] < 0.6 * permuted["loss"]
    for slot in ("position", "shape", "size"):
        assert own[slot] > permuted[slot] + 0.1


def test_colours_of_held_out_pictures_beat_the_blind_baseline(miniature):
    model, processor = miniature
    own = evaluation.caption_scores(model, processor.tokenizer, scenes=100)
    permuted = evaluation.caption_scores(model, processor.tokenizer, scenes=100, image="permuted")
    assert own["colour"] > permuted["colour"] + 0.1


def test_written_captions_beat_the_blind_baseline(miniature):
    model, processor = miniature
    own = evaluation.written_scores(model, processor.tokenizer, scenes=40)
    permuted = evaluation.written_scores(model, processor.tokenizer, scenes=40, permuted=True)
    assert own["f1"] > permuted["f1"] + 0.3


def test_writing_by_hand_equals_generate_with_the_processor(miniature):
    model, processor = miniature
    scenes = evaluation.held_out_scenes(4)
    from mirlab.model import train

    by_hand = evaluation.write_captions(model, processor.tokenizer, train.vision_features(model, scenes))
    images = [[world.to_image(scene)] for scene in scenes]
    inputs = processor(images=images, text=["<image>\n"] * 4, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in texts] == by_hand
