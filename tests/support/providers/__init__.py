"""Pretend providers for `teacher_server`.

model.py                settings, what the pretend model answers, and which call goes wrong
openai_wire.py          requests checked and answers shaped as OpenAI documents
anthropic_wire.py       the same for Anthropic
shop.py                 the books: every call, what it was charged, and the faults that were played
batches.py, openai_batches.py, anthropic_batches.py   files and batches
"""
