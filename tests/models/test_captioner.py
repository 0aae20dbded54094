import jax
import jax.numpy as jnp
import numpy as np

from afspl_jax.models.decoding import Decoding, make_decoder
from tests.conftest import make_batch, make_model


def test_the_target_never_reaches_the_encoder_or_the_generated_text(model, one_device):
  batch = make_batch(0, 8)
  other = batch._replace(
    targets=39 - batch.targets, targets_mask=~batch.targets_mask, caption=1 - batch.caption
  )
  greedy = make_decoder(model.captioner, Decoding(6), one_device)
  for with_target in (batch, other):
    encoded = model.encode(model.params, with_target)
    decoded = greedy(model.params, model.frozen, with_target)
    if with_target is batch:
      states, ids = np.asarray(encoded.states), np.asarray(decoded.ids)
  np.testing.assert_array_equal(states, encoded.states)
  np.testing.assert_array_equal(ids, decoded.ids)


def test_the_encoder_does_see_image_and_instruction(model):
  batch = make_batch(0, 4)
  states = model.encode(model.params, batch).states
  for change in (
    {"tokens": batch.tokens[::-1]},
    {"image": batch.image[::-1]},
    {"instruction": batch.instruction[::-1]},
  ):
    changed = model.encode(model.params, batch._replace(**change)).states
    assert np.abs(np.asarray(states - changed)).max() > 1e-4, list(change)


def test_the_image_blind_prompter_ignores_the_image():
  blind = make_model(see_image=False)
  batch = make_batch(0, 4)
  other = batch._replace(tokens=batch.tokens[::-1], image=batch.image[::-1])
  states = [blind.encode(blind.params, each).states for each in (batch, other)]
  np.testing.assert_array_equal(*states)


def test_padded_instruction_tokens_change_nothing(model):
  batch = make_batch(0, 4)
  noise = jnp.where(batch.instruction_mask, batch.instruction, 39 - batch.instruction)
  states = [
    model.encode(model.params, batch._replace(instruction=ids))
    for ids in (batch.instruction, noise)
  ]
  mask = np.asarray(states[0].mask)
  np.testing.assert_array_equal(
    np.asarray(states[0].states)[mask], np.asarray(states[1].states)[mask]
  )


def test_greedy_equals_step_by_step_argmax_of_teacher_forced_logits(model, one_device):
  batch, length = make_batch(3, 8), 6
  ids = np.asarray(
    make_decoder(model.captioner, Decoding(length), one_device)(
      model.params, model.frozen, batch
    ).ids
  )
  encoded = model.encode(model.params, batch)
  logits = np.asarray(model.logits(encoded, jnp.asarray(ids)))
  end, pad = model.captioner.eos_id, model.captioner.pad_id
  expected = logits.argmax(-1)
  ended = np.cumsum(ids == end, axis=1) - (ids == end) > 0
  np.testing.assert_array_equal(ids, np.where(ended, pad, expected))
  assert len(np.unique(ids)) > 3


def test_greedy_does_not_depend_on_the_number_of_devices(model, one_device, four_devices):
  batch = make_batch(3, 8)
  texts = [
    np.asarray(
      make_decoder(model.captioner, Decoding(6), mesh)(model.params, model.frozen, batch).ids
    )
    for mesh in (one_device, four_devices)
  ]
  np.testing.assert_array_equal(*texts)


def test_leaves_of_the_prompter_are_few_and_named(model):
  names = {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_leaves_with_path(model.params)
  }
  assert {"pool/prompts", "pool/keys", "visual_prompt", "textual_prompt"} <= names
  assert not {name for name in names if "encoder" in name or "decoder" in name}
