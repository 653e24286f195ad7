"""Training: TRL trains, PEFT adapts, bitsandbytes quantizes; here are the joints and the proofs."""
