"""Makes the embedded default model: a tiny GPT-2 trained from scratch, and prefixes for seven tasks on it.

Order: `corpus` and `pairs` give the text, `tokenizer` and `packing` turn it into tokens, `backbone` trains, `prefixes`
tunes one prefix per task of `tasks`, `card` measures and writes the model card.
"""
