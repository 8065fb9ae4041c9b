"""Tiny random vision-language models with their processors, in the format of the hub; none needs a network.

Chat templates are those of the published models, cut down to one question about one image.
"""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

PROMPT = "Describe this image in one plain English sentence."

_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 2048,
    "pad_token_id": None,
}
_VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_CHATML = (
    "{% for message in messages %}<|im_start|>user\n{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _template(start, image, end, reply):
    return (
        f"{start}{{% for part in messages[0].content %}}{{% if part.type == 'image' %}}{image}"
        f"{{% else %}}{{{{ part.text | trim }}}}{{% endif %}}{{% endfor %}}{end}"
        f"{{% if add_generation_prompt %}}{reply}{{% endif %}}"
    )


def _tokenizer(*special, **named):
    """Byte pairs as GPT-2's, in which a word has the blank before it; ``named`` special tokens are attributes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [PROMPT, "USER: ASSISTANT: user\n assistant\n model\n You are a helpful assistant."] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", extra_special_tokens=named
    )
    fast.add_special_tokens({"additional_special_tokens": [*special]}, replace_extra_special_tokens=False)
    return fast


def _pixtral(merge=1):
    tokenizer = _tokenizer("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    images = transformers.PixtralImageProcessor(size={"longest_edge": 32}, patch_size={"height": 4, "width": 4})
    processor = transformers.PixtralProcessor(
        images,
        tokenizer,
        patch_size=4,
        spatial_merge_size=merge,
        chat_template=_template("<s>[INST]", "[IMG]", "[/INST]", ""),
    )
    image_token = tokenizer.convert_tokens_to_ids("[IMG]")
    vision = transformers.PixtralVisionConfig(**_VISION, image_size=32, patch_size=4, head_dim=8)
    text = transformers.MistralConfig(**_TEXT, vocab_size=len(tokenizer), head_dim=8)
    if merge > 1:
        return processor, transformers.Mistral3Config(
            vision_config=vision, text_config=text, image_token_id=image_token, spatial_merge_size=merge
        )
    return processor, transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def _llava():
    tokenizer = _tokenizer("<image>")
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor = transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("USER: ", "<image>\n", " ", "ASSISTANT:"),
    )
    vision = transformers.CLIPVisionConfig(**_VISION, image_size=24, patch_size=8)
    return processor, transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**_TEXT, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )


def _llava_of_tiles(is_onevision):
    """LLaVA-NeXT and LLaVA-OneVision: the whole image, then its tiles, with a token at the end of each row."""
    tokenizer = _tokenizer("<image>", "<video>")
    size = {"height": 24, "width": 24}
    grid = [[24, 48], [48, 24], [48, 48]]
    settings = {"chat_template": _template("USER: ", "<image>\n", " ", "ASSISTANT:")}
    vision_settings = {**_VISION, "image_size": 24, "patch_size": 8}
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    if is_onevision:
        images = transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grid)
        processor = transformers.LlavaOnevisionProcessor(
            images,
            tokenizer,
            transformers.LlavaOnevisionVideoProcessor(),
            num_image_tokens=9,
            vision_feature_select_strategy="full",
            **settings,
        )
        return processor, transformers.LlavaOnevisionConfig(
            vision_config=transformers.SiglipVisionConfig(**vision_settings, vision_use_head=False),
            text_config=transformers.Qwen2Config(**_TEXT, vocab_size=len(tokenizer)),
            image_token_index=image_token,
            video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
            image_grid_pinpoints=grid,
        )
    images = transformers.LlavaNextImageProcessor(size={"shortest_edge": 24}, crop_size=size, image_grid_pinpoints=grid)
    processor = transformers.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **settings,
    )
    return processor, transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**vision_settings),
        text_config=transformers.LlamaConfig(**_TEXT, vocab_size=len(tokenizer)),
        image_token_index=image_token,
        image_grid_pinpoints=grid,
    )


def _qwen(version):
    tokenizer = _tokenizer(
        "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
    )
    ids = tokenizer.convert_tokens_to_ids
    images = transformers.Qwen2VLImageProcessor(
        size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32}, patch_size=4, merge_size=2, temporal_patch_size=2
    )
    template = _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    tokens = {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "patch_size": 4}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32}
    text = {**_TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope}
    if version == 3:
        processor = transformers.Qwen3VLProcessor(
            images, tokenizer, transformers.Qwen3VLVideoProcessor(), chat_template=template
        )
        vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
        return processor, transformers.Qwen3VLConfig(
            vision_config=vision, text_config={**text, "head_dim": 8}, **tokens
        )
    if version == 2:
        processor = transformers.Qwen2VLProcessor(
            images, tokenizer, transformers.Qwen2VLVideoProcessor(), chat_template=template
        )
        vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
        return processor, transformers.Qwen2VLConfig(vision_config=vision, text_config=text, **tokens)
    processor = transformers.Qwen2_5_VLProcessor(
        images, tokenizer, transformers.Qwen2VLVideoProcessor(), chat_template=template
    )
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    return processor, transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **tokens)


def _gemma3():
    tokenizer = _tokenizer(
        "<start_of_turn>",
        "<end_of_turn>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    images = transformers.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    template = _template("<s><start_of_turn>user\n", "<start_of_image>", "<end_of_turn>\n", "<start_of_turn>model\n")
    processor = transformers.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)
    vision = transformers.SiglipVisionConfig(**_VISION, image_size=32, patch_size=8, vision_use_head=False)
    text = {**_TEXT, "vocab_size": len(tokenizer), "head_dim": 8, "sliding_window": 20, "query_pre_attn_scalar": 8}
    text["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    return processor, transformers.Gemma3Config(
        vision_config=vision,
        text_config=transformers.Gemma3TextConfig(**text),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )


def _idefics3(config=transformers.Idefics3Config):
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = _tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows)
    images = transformers.Idefics3ImageProcessor(size={"longest_edge": 48}, max_image_size={"longest_edge": 24})
    processor = transformers.Idefics3Processor(
        images,
        tokenizer,
        image_seq_len=4,
        chat_template=_template("<s>User:", "<image>", "<end_of_utterance>\n", "Assistant:"),
    )
    vision = {**_VISION, "image_size": 24, "patch_size": 6}
    return processor, config(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**_TEXT, vocab_size=len(tokenizer)),
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )


def _internvl():
    tokenizer = _tokenizer(
        "<|im_start|>",
        "<|im_end|>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    images = transformers.GotOcr2ImageProcessor(
        size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = transformers.InternVLProcessor(
        images,
        tokenizer,
        transformers.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=_CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    vision = transformers.InternVLVisionConfig(**_VISION, image_size=[16, 16], patch_size=[4, 4])
    return processor, transformers.InternVLConfig(
        vision_config=vision,
        text_config=transformers.Qwen2Config(**_TEXT, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )


def _mllama():
    tokenizer = _tokenizer("<|image|>")
    images = transformers.MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=2)
    template = _template("<s>user\n", "<|image|>", "\n", "assistant\n")
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2}
    vision |= {"intermediate_size": 32, "vision_output_dim": 32, "image_size": 28, "patch_size": 14}
    vision |= {"max_num_tiles": 2, "intermediate_layers_indices": [1]}
    vision["supported_aspect_ratios"] = [[1, 1], [1, 2], [2, 1]]
    text = {**_TEXT, "vocab_size": len(tokenizer), "cross_attention_layers": [1], "pad_token_id": 1}
    return transformers.MllamaProcessor(images, tokenizer, chat_template=template), transformers.MllamaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<|image|>")
    )


MAKERS = {
    "pixtral": _pixtral,
    "mistral3": lambda: _pixtral(merge=2),
    "llava": _llava,
    "llava_next": lambda: _llava_of_tiles(is_onevision=False),
    "llava_onevision": lambda: _llava_of_tiles(is_onevision=True),
    "qwen2_vl": lambda: _qwen(2),
    "qwen2_5_vl": lambda: _qwen(2.5),
    "qwen3_vl": lambda: _qwen(3),
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "smolvlm": lambda: _idefics3(transformers.SmolVLMConfig),  # its own processor wants num2words; this is its model's
    "internvl": _internvl,
}

REFUSED = {"mllama": _mllama}  # looks at images by cross-attention


def save_model(folder, family, seed=0):
    """A random model with its processor; its weights are large enough that layers and images differ."""
    processor, config = {**MAKERS, **REFUSED}[family]()
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model
