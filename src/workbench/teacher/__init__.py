"""Closed teachers: labels bought once, within a budget and the teacher's terms, and nothing sent that may not leave."""
