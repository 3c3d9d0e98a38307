"""The tokenizer of GLaMM and LISA: LLaMA's sentencepiece model as the slow tokenizer of Transformers 4.28 read it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers import LlamaTokenizer, PreTrainedTokenizerFast


def load_legacy_tokenizer(folder: str | Path, image_token: str = "<image>") -> PreTrainedTokenizerFast:
    """Build the tokenizer that gives a prompt the ids of the original code.

    What today's classes do differently, and what is done about it:

    - white space around an added token disappeared, and the text after it got a leading space: the added tokens are
      registered again, stripping on both sides;
    - a beginning-of-sequence token was added although `tokenizer_config.json` does not ask for one;
    - sentencepiece merges runs of spaces last, by their scores; the merges that build them are moved to the end.

    `image_token`, which the original cut out of the text before tokenizing it, gets the first free id, after the
    model's table of embeddings (see [`PlaceholderEmbedding`]).

    Args:
        folder: holds `tokenizer.model` and `added_tokens.json`, and may hold `tokenizer_config.json` and
            `special_tokens_map.json`.
        image_token: the placeholder of an image.

    Returns:
        A tokenizer that saves as `tokenizer.json`, after which nothing of the above has to be repeated.

    Raises:
        ValueError: if a file is missing, or an added token cannot have the id that the file gives it.
    """
    folder = Path(folder)
    for name in ("tokenizer.model", "added_tokens.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}, which the tokenizer of GLaMM and LISA is made of.")
    llama = LlamaTokenizer.from_pretrained(folder, legacy=True, add_bos_token=True)
    added = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))

    backend = json.loads(llama.backend_tokenizer.to_str())
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["content"] not in added]
    backend["model"]["merges"].sort(key=lambda pair: set("".join(pair)) == {"▁"})
    tokenizer = Tokenizer.from_str(json.dumps(backend))
    for content, token_id in sorted(added.items(), key=lambda item: item[1]):
        token = AddedToken(content, lstrip=True, rstrip=True, normalized=False, special=True)
        tokenizer.add_special_tokens([token])
        given = tokenizer.token_to_id(content)
        if given != token_id:
            raise ValueError(
                f"{folder / 'added_tokens.json'}: {content} has the id {token_id}, but {given} "
                "is the next one after the vocabulary of tokenizer.model. Do the two files belong together?"
            )
    # The original split the text at the placeholder and kept the white space on both sides.
    tokenizer.add_special_tokens([AddedToken(image_token, normalized=False, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=llama.bos_token,
        eos_token=llama.eos_token,
        unk_token=llama.unk_token,
        pad_token=llama.pad_token or llama.unk_token,
        padding_side=llama.padding_side,
        model_max_length=llama.model_max_length,
    )
