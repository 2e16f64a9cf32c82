"""Instruction data written by a teacher: recipes, filters, and the events they leave."""
