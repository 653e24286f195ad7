"""Training: token rows and a base model become an adapter, or a tuned model. One loop trains, PEFT adapts."""
