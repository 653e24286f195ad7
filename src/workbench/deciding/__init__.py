"""Open, closed or both: what each way costs, which requests the student may keep. Computes; asks and writes nothing."""
