"""The tokenizer of the bundled pair: a byte-level BPE of 768 tokens that splits text exactly as Qwen2 does.

`AutoTokenizer` gives every checkpoint of model type "qwen2" Qwen2's own splitting, whatever its tokenizer.json says.
So the BPE is learned behind that very splitting, and numbers are read digit by digit.
"""

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

VOCABULARY = 768
PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
THOUGHTS = ("<think>", "</think>")  # one token each, but visible text
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)  # a system message has no place in this world and is left out


def learn(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Learn the BPE from `texts` (without the tokens named above) and wrap it as transformers will load it."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(THOUGHTS),
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return _as_qwen2(bpe)


def _as_qwen2(bpe: Tokenizer) -> Qwen2Tokenizer:
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=PAD,  # bytes leave nothing unknown; unnamed, it would become a 769th token
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THOUGHTS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prompt_text(prompt: str, chat: bool) -> str:
    """What stands before a model's first own token: the prompt in its roles, or verbatim."""
    return f"{USER}{prompt}{ASSISTANT}" if chat else prompt


def answer_text(answer: str, chat: bool) -> str:
    """What a model has to write: behind a plain prompt it begins a new line first."""
    return f"{'' if chat else chr(10)}{answer}{END}"
