"""The evaluate stage: who is asked, what is asked, who judges, and what the report tells beside it."""
