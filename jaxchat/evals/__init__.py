"""Evaluation of models: bits per byte, CORE, chat tasks, compression, samples."""
