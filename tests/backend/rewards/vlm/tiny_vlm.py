"""Real VLMs of transformers at tiny random size, with a tokenizer trained here, as folders."""

import json
from importlib.metadata import version
from importlib.util import find_spec

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

try:  # transformers 5 has one that needs no torchvision beside the one that does
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
except ImportError:
    from transformers import CLIPImageProcessor as CLIPImageProcessorPil
    from transformers import Idefics3ImageProcessor as Idefics3ImageProcessorPil

SAID = [word for yes in ("yes", "no") for word in (yes, yes.title(), yes.upper())]
WORDS = [*SAID, *(f" {word}" for word in SAID), 'Does this figure show "a red circle"? Please say.'] * 20
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TEMPLATE = (
    "<s>{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}


def tokenizer(pictures, words=WORDS):
    """Byte-level BPE; `pictures` are the tokens that stand for them."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[*SPECIAL, *pictures],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    pad, start, end, unknown = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        unk_token=unknown,
        additional_special_tokens=pictures,
    )


def language(vocabulary):
    return LlamaConfig(
        vocab_size=len(vocabulary),
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        **SIZES,
    )


def random_weights(model):
    """Large enough that pictures and words change what is said."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return model


def llava(folder, vocabulary=None):
    """One fixed size of picture, CLIP and Llama."""
    vocabulary = vocabulary or tokenizer(["<image>"])
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=language(vocabulary),
        vision_feature_layer=-1,
        image_token_index=vocabulary.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_select_strategy="default",
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=vocabulary,
        patch_size=8,
        image_token="<image>",
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    random_weights(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    processor.save_pretrained(folder)


def idefics3(folder):
    """Pictures are cut into tiles, as many as their shape asks for (SmolVLM's way)."""
    vocabulary = tokenizer(["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"])
    config = Idefics3Config(
        vision_config=VISION,
        text_config=language(vocabulary),
        scale_factor=2,
        pad_token_id=0,
        image_token_id=vocabulary.convert_tokens_to_ids("<image>"),
    )
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(
        image_processor=pictures, tokenizer=vocabulary, image_seq_len=4, chat_template=TEMPLATE
    )
    random_weights(Idefics3ForConditionalGeneration(config)).save_pretrained(folder)
    processor.save_pretrained(folder)


QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen2_5_vl(folder):
    """As many patches as the picture has, and positions in three directions. transformers 5 wants torchvision
    for its processor, which is written here as it is published."""
    marks = [
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    vocabulary = tokenizer(marks)
    ids = dict(zip(marks, vocabulary.convert_tokens_to_ids(marks)))
    config = Qwen2_5_VLConfig.from_dict(
        {
            "vocab_size": len(vocabulary),
            "image_token_id": ids["<|image_pad|>"],
            "num_key_value_heads": 2,
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "max_position_embeddings": 2048,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            **SIZES,
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 2,
                "out_hidden_size": 32,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "window_size": 56,
                "fullatt_block_indexes": [1],
                "temporal_patch_size": 2,
            },
        }
    )
    random_weights(Qwen2_5_VLForConditionalGeneration(config)).save_pretrained(folder)
    vocabulary.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
                "min_pixels": 56 * 56,
                "max_pixels": 112 * 112,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            }
        )
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": QWEN_TEMPLATE}))


BUILDERS = {"llava": llava, "idefics3": idefics3}
NO_TORCHVISION = not find_spec("torchvision") and int(version("transformers").split(".")[0]) >= 5
if not NO_TORCHVISION:
    BUILDERS["qwen2_5_vl"] = qwen2_5_vl
