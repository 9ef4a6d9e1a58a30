"""The door to the Hugging Face Hub: the card that a published model carries."""
