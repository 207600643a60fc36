"""The vision-language model: SigLIP encoder, Gemma decoder, and their sizes."""
