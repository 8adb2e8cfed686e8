"""What a model on disk is: where it lies, its headers, its tokenizer, its tensors one at a time, and opening it."""
