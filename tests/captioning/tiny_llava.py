"""A random LLaVA of JoyCaption's make with 160,000 weights, as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path

SPECIALS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_69|>", "<|reserved_special_token_70|>",
    "<|reserved_special_token_71|>",
]  # fmt: skip
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% if message['role'] == 'user' and loop.index0 < 2 %}<|reserved_special_token_70|><|reserved_special_token_69|>"
    "<|reserved_special_token_71|>{% endif %}{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def make(folder: Path) -> Path:
    """Writes it; gives the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=309, special_tokens=SPECIALS, initial_alphabet=alphabet)
    inner.train_from_iterator(["Describe this image.", "a red square", "plain words about a picture"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=SPECIALS[0], eos_token=SPECIALS[4], pad_token=SPECIALS[5],
        additional_special_tokens=[SPECIALS[6]], model_max_length=4096, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    pictures = SiglipImageProcessor(size={"height": 28, "width": 28}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    LlavaProcessor(
        pictures, tokenizer, patch_size=14, vision_feature_select_strategy="full", chat_template=TEMPLATE,
        image_token=SPECIALS[6], num_additional_image_tokens=0,
    ).save_pretrained(folder)  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14,
        vision_use_head=False,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=0, eos_token_id=4, pad_token_id=5,
        tie_word_embeddings=False,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=6, image_seq_length=4, vision_feature_layer=-2,
        vision_feature_select_strategy="full", tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 4, 5
    model.save_pretrained(folder)
    return folder
