"""From a checkpoint to a GGUF file that llama.cpp reads; imported for its parts, which say what they do."""
