"""What is measured of a model: bits per byte, CORE, chat tasks, compression, samples."""
